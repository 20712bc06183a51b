"""Figures with their bootstrap intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

RESAMPLES = 1000
SEED = 0
BLOCK = 2_000_000  # weights at a time, as many resamples as that makes
DIGITS = 6  # of every figure in `results.json`


def summarise(
    values: Mapping[str, Tensor],
    categories: Sequence[str] | None = None,
    clusters: Sequence[int] | np.ndarray | Tensor | None = None,
    resamples: int = RESAMPLES,
    against: Mapping[str, Tensor] | None = None,
) -> dict[str, dict]:
    """Means with 95 % intervals, in all and by category.

    The interval runs from the 2.5th to the 97.5th percentile of the figure over resamples of the queries with
    replacement (Efron's percentile bootstrap). All figures share the resamples, which follow from a fixed seed.
    Queries of one cluster are drawn together, since they are no independent evidence.

    Args:
        values: for each figure, one value a query, NaN for queries that have none, which count for nothing. Where the
            name ends in `rank`, the figure is the median, by the name `..median_rank`; elsewhere the mean.
        categories: the category of each query.
        clusters: a number for each query, equal where queries belong together, such as five captions of an
            image; by default each stands alone.
        resamples: how many times the queries are drawn anew.
        against: the values of the same queries by another model.

    Returns:
        `{figure: {"value", "low", "high"}}`, and in each, given categories,
        `"by_category": {category: {"value", "low", "high", "n"}}`, and in each mean, given `against`,
        `"change": {"value", "low", "high"}`: the mean over the queries of how far each differs from there, which is
        known better than the two means are.
    """
    if not values:
        return {}
    names = [name for name in values if not np.isnan(np.asarray(values[name])).all()]
    if not names:
        return {}
    table = np.stack([np.asarray(values[name], dtype=np.float64) for name in names], axis=1)
    there = ~np.isnan(table)
    table = np.where(there, table, 0.0)
    count = len(table)
    cluster_of = np.arange(count) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    cluster_count = cluster_of.max() + 1
    rng = np.random.default_rng(SEED)
    groups = {} if categories is None else {name: np.asarray(categories) == name for name in sorted(set(categories))}
    means = [name for name in range(len(names)) if not names[name].endswith("_rank")]
    medians = [name for name in range(len(names)) if names[name].endswith("_rank")]
    in_group = {
        group: (table[mask][:, means], there[mask][:, means].astype(np.float64)) for group, mask in groups.items()
    }
    counted = there[:, means].astype(np.float64)
    given = against or {}
    others = {names[column]: np.asarray(given[names[column]]) for column in means if names[column] in given}
    moved = np.array([np.asarray(values[name]) - other for name, other in others.items()]).reshape(-1, count).T
    both = ~np.isnan(moved)
    moved = np.where(both, moved, 0.0)
    order = {column: np.argsort(table[:, column], kind="stable") for column in medians}

    drawn_all = np.empty((resamples, len(names)))
    drawn_groups = {group: np.empty((resamples, len(means))) for group in groups}
    drawn_changes = np.empty((resamples, len(others)))
    block = max(1, BLOCK // count)
    for first in range(0, resamples, block):
        draws = slice(first, min(first + block, resamples))
        drawn = [rng.integers(cluster_count, size=cluster_count) for _ in range(draws.start, draws.stop)]
        weights = np.stack([np.bincount(each, minlength=cluster_count)[cluster_of] for each in drawn]).astype(
            np.float64
        )
        drawn_all[draws, means] = _means(weights, table[:, means], counted)
        drawn_changes[draws] = _means(weights, moved, both.astype(np.float64))
        for column in medians:
            ranked = order[column]
            drawn_all[draws, column] = _weighted_medians(
                table[ranked, column], weights[:, ranked] * there[ranked, column]
            )
        for group, mask in groups.items():
            drawn_groups[group][draws] = _means(weights[:, mask], *in_group[group])

    figures: dict[str, dict[str, Any]] = {}
    for column, name in enumerate(names):
        known = table[there[:, column], column]
        value = np.median(known) if column in order else known.mean()
        key = name.removesuffix("rank") + "median_rank" if column in order else name
        figures[key] = _figure(value, drawn_all[:, column])
        if name in others:
            place = list(others).index(name)
            if both[:, place].any():
                by = moved[both[:, place], place].mean()
                figures[key]["change"] = _figure(by, drawn_changes[:, place])
        if groups and column not in order:
            figures[key]["by_category"] = {
                group: {
                    **_figure(
                        table[mask & there[:, column], column].mean(), drawn_groups[group][:, means.index(column)]
                    ),
                    "n": int((mask & there[:, column]).sum()),
                }
                for group, mask in groups.items()
                if (mask & there[:, column]).any()
            }
    return figures


def share_interval(count: int, of: int) -> dict[str, float]:
    """A share with its 95 % interval, from how many of so many independent queries: Wilson's score interval.

    Unlike the bootstrap it takes no value for each query, and is honest about few: 0 of 3 is 0, and up to 0.56.

    Args:
        count: of how many it is true.
        of: how many there are, at least one.

    Returns:
        `{"value", "low", "high"}`, in [0, 1].
    """
    share, z = count / of, 1.959964
    centre, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    low, high = (min(1.0, max(0.0, (centre + sign * half) / (1 + z * z / of))) for sign in (-1, 1))
    return {name: round(value, DIGITS) for name, value in (("value", share), ("low", low), ("high", high))}


def _means(weights: np.ndarray, table: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Weighted means of the columns of a table, over the rows that each has; NaN for a column without any.

    Args:
        weights: D x N, of N rows in each of D draws.
        table, counted: N x K values, and 1 where there is one.

    Returns:
        D x K.
    """
    total = weights @ counted
    return np.divide(weights @ table, total, out=np.full(total.shape, np.nan), where=total > 0)


def _weighted_medians(ordered: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The medians in D draws of N ordered values, each occurring as often as its weights (D x N) say; NaN of none."""
    upto = weights.cumsum(axis=1)
    half = upto[:, -1:] / 2
    low, high = (upto < half).sum(axis=1), (upto <= half).sum(axis=1)  # which differ where the two middle values do
    last = len(ordered) - 1
    return np.where(half[:, 0] > 0, (ordered[np.minimum(low, last)] + ordered[np.minimum(high, last)]) / 2, np.nan)


def _figure(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {
        "value": round(float(value), DIGITS),
        "low": round(float(low), DIGITS),
        "high": round(float(high), DIGITS),
    }
