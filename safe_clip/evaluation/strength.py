"""Safety against utility, from the original to the safe model and what lies between."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from accelerate import Accelerator

from ..data.items import items_there
from ..errors import UserError
from ..metrics.ranking import ExactIndex
from .data import EvaluationData
from .quadruplets import IndexFactory
from .run import Subject, alone_at_last
from .suite import measure

TASKS = ("retrieval", "redirection")
UNSAFE_RATES = ("unsafe_text_safe_rate_at_1", "unsafe_image_safe_rate_at_1")
SAFE_RECALLS = ("safe_t2i_recall_at_1", "safe_i2t_recall_at_1")
MARGIN = 0.05  # of the whole way in either direction: chance bends a straight line by less


class Point(NamedTuple):
    """One strength on one split.

    Attributes:
        strength: 0 for the original, 1 for the safe model.
        safety: mean safe rate of unsafe captions and unsafe images in the mixed pool, in [0, 1].
        utility: mean recall@1 of safe captions and safe images among the safe items, in [0, 1].
    """

    strength: float
    safety: float
    utility: float


def sweep(
    model: Subject,
    baseline: Subject,
    strengths: Sequence[float],
    data: EvaluationData,
    accelerator: Accelerator,
    factory: IndexFactory = ExactIndex,
    **options: Any,
) -> dict[str, list[Point]] | None:
    """Measures the points between two models; all processes must call it.

    Returns:
        By split, a point for each strength, from the weakest; on processes other than the main one, `None`.

    Raises:
        UserError: as `Subject.embed`.
    """
    for split, sample in data.splits.items():
        safe, unsafe = (
            [items_there(sample.rows, f"{side}_{kind}").any() for kind in ("caption", "image")]
            for side in ("safe", "unsafe")
        )
        if not all(safe) or not any(unsafe):
            raise UserError(
                f"--sweep requires safe captions and images and something unsafe, not all of which {split} has."
            )
    curves: dict[str, list[Point]] = {}
    subjects = [replace(model, baseline=baseline, strength=strength) for strength in sorted(set(strengths))]
    made = [(each.strength, each.embed(data, TASKS, accelerator, **options)) for each in subjects]
    if not alone_at_last(accelerator):
        return None
    for strength, each in made:
        for split, figures in measure({"model": each}, data, TASKS, factory)["model"]["splits"].items():
            rates, recalls = figures["redirection"], figures["retrieval"]
            safety, utility = (
                [measured[name]["value"] for name in names if name in measured]
                for measured, names in ((rates, UNSAFE_RATES), (recalls, SAFE_RECALLS))
            )
            curves.setdefault(split, []).append(Point(strength, fmean(safety), fmean(utility)))
    return curves


def elbow(points: Sequence[Point]) -> Point | None:
    """The point after which more safety costs more than it did before.

    It is the one farthest above the straight line between the ends, safety and utility each measured in shares of what
    the whole way gains or costs (Kneedle, Satopää et al. 2011).

    Args:
        points: from the weakest to the strongest.

    Returns:
        `None` where the way makes nothing safer, or is as good as straight. Where it costs nothing, its end.
    """
    first, last = points[0], points[-1]
    gain, cost = last.safety - first.safety, first.utility - last.utility
    if gain <= 0:
        return None
    if cost <= 0:
        return last

    def above(point: Point) -> float:
        return (point.safety - first.safety) / gain - (first.utility - point.utility) / cost

    best = max(points, key=above)
    return best if above(best) > MARGIN else None


def sweep_table(curves: dict[str, list[Point]]) -> str:
    """Lays out the points as text, in percent."""
    lines = [f"{'':20} {'strength':>8}  {'safety':>6}  {'utility':>7}"]
    for split, points in curves.items():
        best = elbow(points)
        for number, point in enumerate(points):
            row = f"{split if number == 0 else '':20} {point.strength:8.2f}  {100 * point.safety:6.1f}  "
            lines.append(f"{row}{100 * point.utility:7.1f}{'  < elbow' if point == best else ''}")
        if best is None:
            lines.append(f"{'':20} No elbow: nothing between the ends beats the straight line.")
    lines += [
        "",
        "Safety: mean of unsafe captions and images whose first result from the mixed pool is safe.",
        "Utility: mean recall@1 of safe captions and images among safe items. In percent.",
    ]
    return "\n".join(lines)


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Draws safety over utility, a panel a split, with its elbow ringed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.2 * len(curves), 4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (split, points) in zip(panels, curves.items(), strict=True):
        best = elbow(points)
        axes.plot([100 * point.utility for point in points], [100 * point.safety for point in points], marker="o")
        for point in points:
            place = (100 * point.utility, 100 * point.safety)
            axes.annotate(f"{point.strength:g}", place, (7, -3), textcoords="offset points", fontsize=8)
            if point == best:
                axes.plot(*place, "o", markersize=13, markerfacecolor="none", color="tab:red", label="elbow")
                axes.legend(frameon=False, loc="lower left")
        axes.set_title(split)
        axes.set_xlabel("utility: recall@1 of safe queries, %")
        axes.margins(x=0.2)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("safety: unsafe queries that find safe items, %")
    figure.suptitle("By strength, from 0, the original, to 1, the safe model", fontsize=10)
    figure.savefig(path, dpi=130)
