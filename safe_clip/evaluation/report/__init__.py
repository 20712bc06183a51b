"""One self-contained page with images."""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..data import EvaluationData
from ..quadruplets import QuadrupletItems
from ..report import figures
from ..suite import ModelEmbeddings
from ..table import (
    QUERY_LABELS,
    SUMMARY,
    Line,
    Section,
    cell,
    change,
    change_of,
    is_known,
    sample_size,
    split_sections,
    zero_shot_section,
)
from ..verdict import SplitFigures, main_split, result_figures, verdict
from .strips import strips

UNSAFE = ("redirection_unsafe_text", "redirection_unsafe_image")
SAFE = ("redirection_safe_text", "redirection_safe_image", "retrieval_t2i", "retrieval_i2t")


class Tile(NamedTuple):
    """A figure at the top of the page: what it says, its shares in [0, 1], and what became of it."""

    label: str
    before: float | None
    after: float
    interval: tuple[float, float] | None = None  # of the change

    @property
    def change(self) -> str | None:
        """The difference in percent points, with its sign."""
        return None if self.before is None else change(self.before, self.after, True)

    @property
    def kind(self) -> str:
        """`"gain"`, `"loss"` or, where chance could be all of it, `"same"`."""
        if self.interval and self.interval[0] <= 0 <= self.interval[1]:
            return "same"
        return {"+": "gain", "-": "loss"}.get((self.change or "=")[0], "same")


def write_report(
    path: Path,
    results: dict,
    made: dict[str, ModelEmbeddings],
    data: EvaluationData,
    show_unsafe: bool = False,
) -> None:
    """Writes the page.

    Args:
        path: the HTML file; everything that it shows is inside.
        results: what `results.json` holds.
        made: the embeddings of each role.
        data: the rows.
        show_unsafe: show unsafe images and captions, which are otherwise blurred and left out.
    """
    names = results["names"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shared = {"cell": cell, "change_of": change_of, "is_known": is_known, "sample_size": partial(sample_size, results)}
    splits = result_figures(results)
    page = environment.get_template("report.html", globals=shared).render(
        results=results,
        names=names,
        verdict=verdict(splits) if splits else None,
        main=main_split(splits).split if splits else None,
        tiles=_tiles(splits),
        splits=[_split(results, made, data, split, show_unsafe) for split in results["models"]["model"]["splits"]],
        zero_shot=_charted(zero_shot_section(results), names, "zero-shot"),
        show_unsafe=show_unsafe,
    )
    path.write_text(page, encoding="utf-8")


def _tiles(splits: list[SplitFigures]) -> list[Tile]:
    """The main figures: of unsafe queries, also where training never saw the like, and of what safe search cost."""
    if not splits:
        return []
    main = main_split(splits)
    others = [each for each in splits if each.unseen and each is not main]
    index = main._replace(after=main.index, changes=main.index_changes)
    labels = {name: label.replace(" that", "") for name, label in SUMMARY.items()}
    parts = [(main, UNSAFE, "")]
    parts += [(each, UNSAFE, f", unseen {each.unseen}") for each in others]
    parts += [(index, UNSAFE, ", in an index that the original embedded"), (main, SAFE, "")]
    return [
        Tile(f"{labels[name]}{where}", each.before.get(name), each.after[name], each.changes.get(name))
        for each, names, where in parts
        for name in names
        if name in each.after
    ]


def _split(
    results: dict, made: dict[str, ModelEmbeddings], data: EvaluationData, split: str, show_unsafe: bool
) -> dict:
    names = results["names"]
    return {
        "name": split,
        "sections": [
            _charted(section, names, f"{split}-{number}")
            for number, section in enumerate(split_sections(results, split))
        ],
        "heat_map": _heat_map(results, split),
        "changes": _changes(results, split),
        "projection": _projection({role: each.splits[split] for role, each in made.items()}, names, split),
        "strips": strips(made, data, split, show_unsafe, results.get("frozen_gallery", False)),
    }


def _projection(items: dict[str, QuadrupletItems], names: dict[str, str], split: str) -> Markup | None:
    """Where captions and images lie, if there are both, safe and unsafe."""
    first = next(iter(items.values()))
    if not all(len(first.of(side, modality)) for side in figures.SIDES for modality in figures.MARKS):
        return None
    return Markup(figures.projection(items, names, f"{split}-projection"))


def _charted(section: Section | None, names: dict[str, str], name: str) -> dict | None:
    """A section with its chart, where its figures are shares."""
    if section is None:
        return None
    # Robustness has charts of its own, change by change; most of geometry is no share.
    charted = section.task not in ("geometry", "robustness")
    chart = figures.bars(section.lines, names, name, section.title) if charted else None
    return {"section": section, "chart": Markup(chart) if chart else None}


def _heat_map(results: dict, split: str) -> Markup | None:
    tables = {}
    for role, each in results["models"].items():
        measured = each["splits"][split].get("redirection", {})
        rates = {
            label: measured.get(f"{key}_safe_rate_at_1", {}).get("by_category") for key, label in QUERY_LABELS.items()
        }
        if not all(rates.values()):
            return None
        tables[role] = {
            category: {label: rate.get(category, {}).get("value", math.nan) for label, rate in rates.items()}
            for category in dict.fromkeys(category for rate in rates.values() for category in rate)
        }
    return Markup(figures.heat_map(tables, results["names"], list(QUERY_LABELS.values()), f"{split}-categories"))


def _changes(results: dict, split: str) -> list[dict]:
    """Robustness, change by change, for captions and for images."""
    charts = []
    for modality, label in (("text", "Unsafe captions"), ("image", "Unsafe images")):
        prefix = f"unsafe_{modality}_"
        measured = {role: each["splits"][split].get("robustness", {}) for role, each in results["models"].items()}
        lines = [
            Line(key.removeprefix(prefix).replace("_", " "), True, {role: each[key] for role, each in measured.items()})
            for key in measured["model"]
            if key.startswith(prefix)
        ]
        if lines:
            title = f"{label}, changed: first result is safe"
            charts.append(
                {
                    "title": title,
                    "chart": Markup(figures.bars(lines, results["names"], f"{split}-{modality}-changes", title)),
                }
            )
    return charts
