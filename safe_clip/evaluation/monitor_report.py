"""What `safe-clip monitor` found, as text, as a table and drawn."""

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .drift import FEWEST, SCORES, Finding
from .monitoring import AFTER, BEFORE, CHANGED, REDIRECTED, REFERENCE

LABELS = {
    REDIRECTED: "redirected",
    CHANGED: "first changed",
    BEFORE: "first unsafe, before",
    AFTER: "first unsafe, after",
}
SENTENCES = {
    REDIRECTED: "of queries are redirected",
    CHANGED: "of queries find another first result than by the original",
    BEFORE: "of queries find something labelled unsafe first by the original",
    AFTER: "of queries find something labelled unsafe first",
}
ELSEWHERE = (
    "These queries are of another kind than those of the reference, such as another language or length, or others ask. "
    "Measure rows like them with safe-clip eval, calibrate with safe queries like them, and take a new reference."
)
# What to do, by what differs and whether it rose.
REMEDIES = {
    (
        REDIRECTED,
        True,
    ): "More queries are moved as what training made safe is. Look at these periods in your own log: one "
    "client that repeats itself (few different texts), or more people who ask for what is unsafe. If safe queries are "
    "among them, calibrate with safe queries like them.",
    (REDIRECTED, False): "Fewer queries are moved. See to it that the service embeds with these weights, and look at "
    "these periods in your own log for unsafe queries in words or a language that training did not show: measure those "
    "with safe-clip eval, and train on them.",
    (
        AFTER,
        True,
    ): "More first results are labelled unsafe. Look at these periods in your own log, measure what is asked "
    "for with safe-clip eval, train on rows like it, or take what is labelled unsafe out of the index.",
}
SHOWN = 60  # periods of a table on the terminal
LINE = 116  # characters
SUREST = 1e-15  # below which a p-value says no more
WIDTH = 22  # characters of a share with its interval


def table(periods: Sequence[Mapping[str, Any]], reference: Mapping[str, Any], findings: Sequence[list[Finding]]) -> str:
    """The reference and the last periods, shares in percent with 95 % intervals."""
    shares = [*reference["shares"]]
    head = f"{'':12}{'queries':>10}{'different':>11}" + "".join(f"{LABELS[name]:>{WIDTH}}" for name in shares)
    lines = [f"{head}{'mean score':>12}"]
    for figures, found in [(reference, []), *list(zip(periods, findings, strict=True))[-SHOWN:]]:
        cells = "".join(f"{_share(figures['shares'][name]):>{WIDTH}}" for name in shares)
        name = REFERENCE if figures is reference else figures["period"]
        mark = "  < drift" if found else "  (few)" if figures["queries"] < FEWEST else ""
        counts = f"{figures['queries']:10,}{figures['different_texts']:11,}"
        lines.append(f"{name:12}{counts}{cells}{figures['mean_score']:12.4f}{mark}")
    if len(periods) > SHOWN:
        lines.append(f"The {len(periods) - SHOWN:,} periods before these are in the files.")
    return "\n".join(lines)


def _share(share: Mapping[str, float]) -> str:
    value, low, high = (100 * share[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def alarms(periods: Sequence[Mapping[str, Any]], findings: Sequence[list[Finding]]) -> list[str]:
    """A line for all that differs, and what to do for each kind of it."""
    lines, remedies = [], {}
    for figures, found in zip(periods, findings, strict=True):
        for finding in found:
            lines.append(f"{figures['period']}: {_sentence(finding)}.")
        known = [REMEDIES.get((finding.what, finding.after > finding.before)) for finding in found]
        # What else differs follows from what is known a remedy for.
        remedies |= dict.fromkeys([each for each in known if each] or [ELSEWHERE] * bool(found))
    return [textwrap.fill(line, LINE, subsequent_indent="    ") for line in [*lines, *remedies]]


def _sentence(finding: Finding) -> str:
    if finding.what == SCORES:
        return (
            f"the scores are distributed otherwise, with a mean of {finding.after:.4f}, {finding.before:.4f} in the "
            f"reference (distance {finding.size:.3f}, {_chance(finding)})"
        )
    before, after = (100 * share for share in (finding.before, finding.after))
    return f"{after:.1f} % {SENTENCES[finding.what]}, {before:.1f} in the reference ({_chance(finding)})"


def _chance(finding: Finding) -> str:
    return f"p = {finding.p:.1g}" if finding.p > SUREST else f"p < {SUREST:g}"


def notes(
    periods: Sequence[Mapping[str, Any]],
    compared: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    minors: int,
    rate: float | None,
    level: float,
    least: float,
) -> list[str]:
    """What to know of the figures.

    Args:
        periods: all of them.
        compared: those that were compared with the reference.
        reference: what they were compared with.
        minors: queries that were refused.
        rate: of false alarms, at which a query counts as redirected; `None` where no score is told.
        level, least: as of `drift`.
    """
    said = ["Shares in percent, with 95 % intervals."]
    if rate is not None:
        said[0] += f" Of safe queries like those of the calibration, {100 * rate:g} % count as redirected."
    if minors:
        said.append(f"Left out of everything: {minors:,} queries that sexualise minors.")
    if few := sum(each["queries"] < FEWEST for each in periods):
        said.append(f"{few:,} of {len(periods):,} periods have fewer than {FEWEST} queries and are not compared.")
    tested = sum(each["queries"] >= FEWEST for each in compared)
    if not compared:
        said.append("Nothing is compared yet: name what this run writes as the --reference of the next log.")
    elif reference["queries"] < FEWEST:
        said.append(
            f"Nothing is compared: the reference has fewer than {FEWEST} queries. Name more --reference_periods."
        )
    elif not tested:
        said.append(f"Nothing is compared: no other period has {FEWEST} queries. Try --by week or --by month.")
    else:
        said.append(
            f"{tested:,} of {len(compared):,} periods were compared with the reference. Where queries do not differ, "
            f"at most {100 * level:g} % of such runs say that they do. Changes below {100 * least:.1f} points are "
            "passed over."
        )
    return said


def as_csv(periods: Sequence[Mapping[str, Any]], findings: Sequence[list[Finding]]) -> str:
    """A line a period: counts, shares in [0, 1] with their intervals, and what differs."""
    made = io.StringIO()
    rows = [_row(figures, found) for figures, found in zip(periods, findings, strict=True)]
    writer = csv.DictWriter(made, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return made.getvalue()


def _row(figures: Mapping[str, Any], found: list[Finding]) -> dict[str, Any]:
    row = {name: figures[name] for name in ("period", "queries", "different_texts", "mean_score")}
    for name, share in figures["shares"].items():
        row |= {name: share["value"], f"{name}_low": share["low"], f"{name}_high": share["high"]}
    return row | {"drift": " ".join(finding.what for finding in found)}


def calibration_table(modalities: Mapping[str, Mapping[str, Any]], split: str) -> str:
    """What a calibration finds in each split, in percent with 95 % intervals."""
    lines = [f"{'':34}{'safe':>7}{'unsafe':>8}{'AUC':>24}   found, and false alarms, at"]
    for modality, made in modalities.items():
        rates = [*made["thresholds"]]
        lines.append(
            f"{'captions' if modality == 'text' else 'images':73}   "
            + "".join(f"{f'{100 * float(rate):g} %':>16}" for rate in rates)
        )
        for name, each in made["splits"].items():
            area = _share(each["auc"]) if "auc" in each else ""
            label = f"  {name}" + (" (calibrated on)" if name == split else "")
            lines.append(f"{label:34}{each['safe']:7,}{each['unsafe']:8,}{area:>24}   " + "".join(_found(each, rates)))
    return "\n".join(lines)


def _found(figures: Mapping[str, Any], rates: Sequence[str]) -> Iterator[str]:
    for rate in rates:
        pair = (figures.get(name, {}).get(rate) for name in ("found", "false_alarms"))
        cells = ["-" if each is None else format(100 * each["value"], ".1f") for each in pair]
        yield f"{' / '.join(cells):>16}"


def draw(
    periods: Sequence[Mapping[str, Any]], reference: Mapping[str, Any], findings: Sequence[list[Finding]], path: Path
) -> None:
    """Draws each share over the periods with its interval, and the mean score; what differs is ringed."""
    from matplotlib.figure import Figure

    names = [[period["period"] for period in periods], range(len(periods))]
    shares = [*reference["shares"]]
    figure = Figure(
        figsize=(max(5.0, min(16.0, 2 + 0.35 * len(periods))), 2.6 * (len(shares) + 1)), layout="constrained"
    )
    panels = figure.subplots(len(shares) + 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes, share in zip(panels, shares, strict=False):
        values, low, high = ([100 * p["shares"][share][key] for p in periods] for key in ("value", "low", "high"))
        axes.fill_between(names[1], low, high, alpha=0.25, linewidth=0, label="95 % interval")
        axes.plot(names[1], values, marker="o", markersize=4)
        axes.axhline(100 * reference["shares"][share]["value"], color="grey", linestyle="--", label="reference")
        _ring(axes, values, findings, share)
        axes.set_ylabel(f"{LABELS[share]}, %")
        axes.set_ylim(bottom=0)
    means = [period["mean_score"] for period in periods]
    panels[-1].plot(names[1], means, marker="o", markersize=4)
    panels[-1].axhline(reference["mean_score"], color="grey", linestyle="--", label="reference")
    _ring(panels[-1], means, findings, SCORES)
    panels[-1].set_ylabel("mean score")
    every = max(1, len(periods) // 25)
    panels[-1].set_xticks([*names[1]][::every], names[0][::every], rotation=60, ha="right", fontsize=8)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _ring(axes: Any, values: Sequence[float], findings: Sequence[list[Finding]], what: str) -> None:
    places = [place for place, found in enumerate(findings) if any(each.what == what for each in found)]
    if places:
        rings = {"markersize": 13, "markerfacecolor": "none", "color": "tab:red", "label": "drift"}
        axes.plot(places, [values[place] for place in places], "o", **rings)
