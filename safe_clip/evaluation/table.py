"""Figures as text."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..names import TITLES
from ..terminal import coloured
from .unseen import unseen_by_name
from .verdict import SplitFigures, Verdict

# The figures of `summary_figures`, in the order in which they are shown.
SUMMARY = {
    "redirection_unsafe_text": "unsafe captions that find a safe image first",
    "redirection_unsafe_image": "unsafe images that find a safe caption first",
    "redirection_safe_text": "safe captions that find a safe image first",
    "redirection_safe_image": "safe images that find a safe caption first",
    "retrieval_t2i": "safe captions that find their own image first",
    "retrieval_i2t": "safe images that find their own caption first",
    # Of data of one modality, in place of all of these.
    "counterpart_text": "unsafe captions that find their safe counterpart first",
    "counterpart_image": "unsafe images that find their safe counterpart first",
}
WIDEST_NAME = 26  # characters of a model's name at the head of a column
WIDTH = 110  # characters of a line of text

QUERY_LABELS = {
    "safe_text": "safe captions",
    "safe_image": "safe images",
    "unsafe_text": "unsafe captions",
    "unsafe_image": "unsafe images",
}

FIGURE = ("value", "low", "high")
CHANGE = 23  # characters of a change with its interval
NOTES = "Shares in percent, higher is better; in brackets, 95 % bootstrap intervals over the queries."
OF_CHANGES = "A change's interval is of the difference query by query; where it has 0 in it, chance could be all of it."
OF_POOLS = "All that is searched was embedded by the original (--frozen_gallery)."
NO_WIDTH = (
    "Where all N queries agree, an interval has no width; of 30 or more, the share may be 300 / N points off still."
)
AMONG_IMAGES = {"unsafe_image_among_images_safe_rate_at_1": ("unsafe images among other images", True)}

# For each task, the figures that tables show: title, and for each figure its label and whether it is a share.
SECTIONS: dict[str, tuple[str, dict[str, tuple[str, bool]]]] = {
    "retrieval": (
        TITLES["retrieval"],
        {
            "safe_t2i_recall_at_1": ("safe captions among safe images", True),
            "safe_i2t_recall_at_1": ("safe images among safe captions", True),
            "safe_union_t2i_recall_at_1": ("safe captions among all images", True),
            "safe_union_i2t_recall_at_1": ("safe images among all captions", True),
            "unsafe_union_t2i_recall_at_1": ("unsafe captions, the safe image among all", True),
            "unsafe_union_i2t_recall_at_1": ("unsafe images, the safe caption among all", True),
        },
    ),
    "retrieval_original_gallery": (
        TITLES["retrieval_original_gallery"],
        {
            "safe_t2i_recall_at_1": ("safe captions among safe images", True),
            "safe_i2t_recall_at_1": ("safe images among safe captions", True),
        },
    ),
    "redirection": (
        TITLES["redirection"],
        {f"{key}_safe_rate_at_1": (label, True) for key, label in QUERY_LABELS.items()} | AMONG_IMAGES,
    ),
    "redirection_original_gallery": (
        TITLES["redirection_original_gallery"],
        {f"{key}_safe_rate_at_1": (label, True) for key, label in QUERY_LABELS.items()} | AMONG_IMAGES,
    ),
    "counterparts": (
        TITLES["counterparts"],
        {
            "text_recall_at_1": ("unsafe captions among safe captions", True),
            "image_recall_at_1": ("unsafe images among safe images", True),
        },
    ),
    "unsafe_gallery": (
        TITLES["unsafe_gallery"],
        {f"{key}_safe_rate_at_1": (label, True) for key, label in QUERY_LABELS.items() if key != "safe_image"},
    ),
    "geometry": (
        TITLES["geometry"],
        {
            "text_cosine_to_original": ("captions, cosine to the original", False),
            "image_cosine_to_original": ("images, cosine to the original", False),
            "text_neighbour_overlap": ("captions, overlap of 10 neighbours", True),
            "image_neighbour_overlap": ("images, overlap of 10 neighbours", True),
            "text_spread_ratio": ("captions, spread to the original's", False),
            "image_spread_ratio": ("images, spread to the original's", False),
            "text_effective_rank": ("captions, effective rank", False),
            "image_effective_rank": ("images, effective rank", False),
            "modality_gap": ("gap between captions and images", False),
            "pair_probability": ("safe pairs, probability", False),  # of models with a bias, such as SigLIP
            "pair_probability_change": ("safe pairs, probability moved by", False),
        },
    ),
    "robustness": (
        TITLES["robustness"],
        {
            "unsafe_text_mean": ("captions, mean over changes", True),
            "unsafe_text_worst_case": ("captions, under every change", True),
            "unsafe_image_mean": ("images, mean over changes", True),
            "unsafe_image_worst_case": ("images, under every change", True),
        },
    ),
}
ZERO_SHOT = (TITLES["zero_shot"], {"top_1": ("top-1", True), "top_5": ("top-5", True)})


class Line(NamedTuple):
    """One line of a table: a figure of each role, `None` where it has none."""

    label: str
    share: bool
    figures: dict[str, dict | None]


class Section(NamedTuple):
    """The figures of one task."""

    task: str
    title: str
    lines: list[Line]


def split_sections(results: dict, split: str) -> Iterator[Section]:
    """The sections of a split, in the order of `SECTIONS`, those that were measured."""
    for task, (title, figures) in SECTIONS.items():
        measured = {role: each["splits"].get(split, {}).get(task, {}) for role, each in results["models"].items()}
        if task == "unsafe_gallery":
            for name in measured["model"]:
                named = {role: galleries.get(name, {}) for role, galleries in measured.items()}
                size = sample_size(results, "unsafe_gallery", name)
                yield Section(task, f"{title} ({name}, {size})", _lines(named, figures))
        elif measured["model"]:
            yield Section(task, title, _lines(measured, figures))


def zero_shot_section(results: dict) -> Section | None:
    """The figures of all classification sets."""
    title, figures = ZERO_SHOT
    lines = [
        line._replace(label=f"{name}, {line.label}")
        for name in results["models"]["model"]["zero_shot"]
        for line in _lines({role: each["zero_shot"].get(name, {}) for role, each in results["models"].items()}, figures)
    ]
    return Section("zero_shot", title, lines) if lines else None


def _lines(measured: dict[str, dict], figures: dict[str, tuple[str, bool]]) -> list[Line]:
    return [
        Line(label, share, {role: each.get(key) for role, each in measured.items()})
        for key, (label, share) in figures.items()
        if measured["model"].get(key) is not None
    ]


def cell(figure: dict | None, share: bool) -> str:
    """A figure with its interval: shares in percent."""
    if figure is None:
        return "-"
    scale, digits = (100, 1) if share else (1, 2)
    # Of what rounds to 0 from below, no sign is left.
    texts = {name: f"{round(scale * figure[name], digits) + 0.0:.{digits}f}" for name in FIGURE if name in figure}
    return texts["value"] + (f" [{texts['low']}, {texts['high']}]" if "low" in texts else "")


def sample_size(results: dict, kind: str, name: str) -> str:
    """How much was measured of a split or set, and of how much it was drawn."""
    sample = results["samples"][kind][name]
    what = "quadruplets" if kind == "splits" else "images"
    drawn = "" if sample["used"] == sample["of"] else f" of {sample['of']:,}"
    return f"{sample['used']:,}{drawn} {what}"


def change(before: float, after: float, share: bool, colour: bool = False) -> str:
    """The difference of two figures as they are shown, with its sign; that of a share in colours, if so asked."""
    scale, digits = (100, 1) if share else (1, 2)
    difference = round(round(scale * after, digits) - round(scale * before, digits), digits)
    if not difference:
        return f"{0:.{digits}f}"
    kind = ("gain" if difference > 0 else "loss") if share else None
    return coloured(f"{difference:+.{digits}f}", kind, colour)


def _right(text: str, width: int) -> str:
    """Text at the right of a column, whatever its colours."""
    return " " * (width - len(re.sub(r"\x1b\[\d+m", "", text))) + text


def _unseen_mark(kind: str | None) -> str:
    return f", {kind} that training never saw" if kind else ""


def results_table(results: dict, colour: bool = False) -> str:
    """Lays out the main figures of `results.json` as text, with changes in colours if so asked."""
    roles = list(results["models"])
    unseen = unseen_by_name(results["models"]["model"]["splits"])
    blocks = [
        (
            f"{split} ({sample_size(results, 'splits', split)}{_unseen_mark(unseen.get(split))})",
            list(split_sections(results, split)),
        )
        for split in results["models"]["model"]["splits"]
    ]
    classified = zero_shot_section(results)
    if classified:
        sets = results["models"]["model"]["zero_shot"]
        sizes = "; ".join(f"{name}: {sample_size(results, 'zero_shot', name)}" for name in sets)
        blocks.append((f"zero-shot ({sizes})", [classified]))
    left = 2 + max(len(line.label) for _, sections in blocks for section in sections for line in section.lines)
    names = {
        role: name if len(name) <= WIDEST_NAME else f"…{name[1 - WIDEST_NAME :]}"
        for role, name in results["names"].items()
    }
    width = max(20, *map(len, names.values()))
    compared = "baseline" in roles
    lines = []
    for title, sections in blocks:
        lines += ["", coloured(title, "strong", colour), ""]
        for section in sections:
            lines.append(section.title)
            for line in section.lines:
                cells = "  ".join(cell(line.figures[role], line.share).rjust(width) for role in roles)
                by = change_of(line, colour) if compared else ""
                lines.append(f"  {line.label:{left - 2}}  {cells}{_right(by, CHANGE) if compared else ''}")
    header = " " * (left + 2) + "  ".join(names[role].rjust(width) for role in roles)
    notes = [NOTES, *([OF_CHANGES] if compared else []), NO_WIDTH]
    notes += [OF_POOLS] if results.get("frozen_gallery") else []
    return "\n".join([header + ("change".rjust(CHANGE) if compared else ""), *lines[1:], "", *notes])


def change_of(line: Line, colour: bool = False) -> str:
    """The change of a line from the original to the model, with its interval where it has one.

    It is in colours, if so asked, where chance alone would hardly make it.
    """
    before, after = line.figures.get("baseline"), line.figures["model"]
    if before is None or after is None:
        return "-"
    text = change(before["value"], after["value"], line.share, colour and is_known(line))
    by = after.get("change")
    return f"{text} {cell(by, line.share).partition(' ')[2]}" if by else text


def is_known(line: Line) -> bool:
    """Whether the interval of a line's change, if it has one, leaves 0 out."""
    by = (line.figures["model"] or {}).get("change")
    return by is None or not by["low"] <= 0 <= by["high"]


def split_changes(splits: Sequence[SplitFigures], colour: bool = False) -> Iterator[tuple[str, list[list[str]]]]:
    """For each split what it is called, and for each of its figures what it says, before, after, and the change."""
    for each in splits:
        rows = []
        for name in SUMMARY:
            before, after = each.before.get(name), each.after.get(name)
            if after is not None:
                by = "-" if before is None else change(before, after, True, colour)
                rows.append([SUMMARY[name], "-" if before is None else f"{100 * before:.1f}", f"{100 * after:.1f}", by])
        yield f"{each.split} ({each.rows:,} rows{_unseen_mark(each.unseen)})", rows


def before_after_table(splits: Sequence[SplitFigures], colour: bool = False) -> str:
    """Lays out the figures of training, by split, in percent, with changes in colours if so asked."""
    shown = list(split_changes(splits, colour))
    left = 2 + max(len(label) for _, rows in shown for label, *_ in rows)
    lines = [f"{'In percent; higher is better':{left}}  before   after  change"]
    for title, rows in shown:
        lines += ["", coloured(title, "strong", colour)]
        lines += [f"  {label:{left - 2}}{before:>8}{after:>8}{_right(by, 8)}" for label, before, after, by in rows]
    return "\n".join(lines)


def verdict_text(verdict: Verdict, colour: bool = False) -> str:
    """A verdict as lines for a terminal, in colours if so asked: the sentence, and a line for each note."""
    kind = {True: "gain", False: "loss", None: "strong"}[verdict.is_gain]
    wrapped = textwrap.wrap(verdict.sentence, WIDTH)
    lines = [coloured(line, kind, colour) for line in wrapped]
    for note in verdict.notes:
        lines += textwrap.wrap(note, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)
