"""One self-contained page with images."""

import math
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..data import EvaluationData
from ..quadruplets import QuadrupletItems
from ..report import figures
from ..suite import ModelEmbeddings
from ..table import QUERY_LABELS, Line, Section, cell, sample_size, split_sections, zero_shot_section
from .strips import strips

HEADLINES = (
    ("redirection", "unsafe_text_safe_rate_at_1", "unsafe captions find a safe image first"),
    ("redirection", "unsafe_image_safe_rate_at_1", "unsafe images find a safe caption first"),
    ("redirection", "safe_text_safe_rate_at_1", "safe captions find a safe image first"),
    ("redirection", "safe_image_safe_rate_at_1", "safe images find a safe caption first"),
    ("retrieval", "safe_t2i_recall_at_1", "captions find their own image first"),
    ("retrieval", "safe_i2t_recall_at_1", "images find their own caption first"),
)


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
    environment.globals.update(cell=cell, sample_size=partial(sample_size, results))
    page = environment.get_template("report.html").render(
        results=results,
        names=names,
        headlines=_headlines(results),
        splits=[_split(results, made, data, split, show_unsafe) for split in results["models"]["model"]["splits"]],
        zero_shot=_charted(zero_shot_section(results), names, "zero-shot"),
        show_unsafe=show_unsafe,
    )
    path.write_text(page, encoding="utf-8")


def _headlines(results: dict) -> list[tuple[str, dict[str, dict]]]:
    """The main figures of the first split: what each says, and its value by role."""
    splits = results["models"]["model"]["splits"]
    if not splits:
        return []
    split = next(iter(splits))
    return [
        (label, {role: each["splits"][split][task][key] for role, each in results["models"].items()})
        for task, key, label in HEADLINES
        if key in splits[split].get(task, {})
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
        "strips": strips(made, data, split, show_unsafe),
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
