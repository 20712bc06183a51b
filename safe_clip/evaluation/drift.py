"""Whether the queries of one time differ from those of another by more than chance: two plain tests.

The share of queries that something is true of is compared by the z-test for two proportions, with the pooled share. The
distribution of scores is compared by the two-sample Kolmogorov-Smirnov test on histograms of the same bins, where the
distance can only be smaller than that of the scores themselves, and the p-value is that of the limiting distribution.
Both take queries for independent of one another. The p-values of a run are corrected for their number (Holm, 1979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST = 30  # queries of a period, or of a reference, below which nothing is tested
EXPECTED = 5  # queries of each kind that either side has to expect, below which the z-test does not hold
TERMS = 100  # of the series of Kolmogorov's distribution
SCORES = "scores"


@dataclass(frozen=True)
class Finding:
    """What differs between a period and the reference.

    Attributes:
        what: `"scores"`, or the name of a share.
        before, after: of a share, what it was and is; of the scores, their means.
        size: the difference of the two shares, or the distance of the two distributions, in [0, 1].
        p: how likely chance is to bring a difference as large anywhere in the run: corrected for the number of tests.
    """

    what: str
    before: float
    after: float
    size: float
    p: float


def two_proportions(one: int, of_one: int, other: int, of_other: int) -> float | None:
    """The two-sided p-value of the z-test for two proportions; `None` for too few to test."""
    pooled = (one + other) / (of_one + of_other)
    least = min(of_one, of_other) * min(pooled, 1 - pooled)
    if min(of_one, of_other) < FEWEST or least < EXPECTED:
        return None
    z = (one / of_one - other / of_other) / math.sqrt(pooled * (1 - pooled) * (1 / of_one + 1 / of_other))
    return math.erfc(abs(z) / math.sqrt(2))


def kolmogorov_smirnov(one: Sequence[int], other: Sequence[int]) -> tuple[float, float | None]:
    """The largest distance between the two cumulative distributions, and its p-value; `None` for too few to test.

    Args:
        one, other: how many scores lie in each bin, of the same bins.
    """
    counts = [np.asarray(each, dtype=np.float64) for each in (one, other)]
    sizes = [each.sum() for each in counts]
    if min(sizes) < FEWEST:
        return 0.0, None
    cumulative = [each.cumsum() / size for each, size in zip(counts, sizes, strict=True)]
    distance = float(np.abs(cumulative[0] - cumulative[1]).max())
    x = distance * math.sqrt(sizes[0] * sizes[1] / sum(sizes))
    if x < 0.2:  # where the series has not converged, and the value is 1 to ten digits
        return distance, 1.0
    terms = np.arange(1, TERMS + 1)
    p = 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * x) ** 2)).sum()
    return distance, float(min(1.0, max(0.0, p)))


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: the chance that any of them is as small where nothing differs."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def drift(
    periods: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    shares: Sequence[str],
    level: float = 0.01,
    least: float = 0.01,
) -> list[list[Finding]]:
    """What differs in each period.

    Args:
        periods: each with `queries`, how many there are; `counts`, of how many a share's name is true; `histogram`, how
            many scores lie in each bin; `mean_score`.
        reference: the same of what they are compared with.
        shares: the names of shares that are compared, besides the scores.
        level: the chance of any finding at all in a run of which no query differs.
        least: smaller differences of shares, and distances of distributions, are no findings.

    Returns:
        For each period, what differs, surest first.
    """
    tested: list[tuple[int, Finding]] = []
    for number, period in enumerate(periods):
        for name in shares:
            pair = [(each["counts"][name], each["queries"]) for each in (reference, period)]
            p = two_proportions(*pair[0], *pair[1])
            if p is not None:
                before, after = (count / of for count, of in pair)
                tested.append((number, Finding(name, before, after, abs(after - before), p)))
        distance, p = kolmogorov_smirnov(reference["histogram"], period["histogram"])
        if p is not None:
            tested.append((number, Finding(SCORES, reference["mean_score"], period["mean_score"], distance, p)))
    corrected = holm([finding.p for _, finding in tested])
    found: list[list[Finding]] = [[] for _ in periods]
    for (number, finding), p in zip(tested, corrected, strict=True):
        if p < level and finding.size >= least:
            found[number].append(Finding(finding.what, finding.before, finding.after, finding.size, p))
    return [sorted(each, key=lambda finding: finding.p) for each in found]
