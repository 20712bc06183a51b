"""Figures as text."""

from collections.abc import Iterator
from typing import NamedTuple

from ..names import TITLES

SUMMARY = {
    "retrieval_t2i": "caption>image",
    "retrieval_i2t": "image>caption",
    "redirection_safe_text": "safe caption",
    "redirection_safe_image": "safe image",
    "redirection_unsafe_text": "unsafe caption",
    "redirection_unsafe_image": "unsafe image",
    # Of data of one modality, in place of all of these.
    "counterpart_text": "safe caption",
    "counterpart_image": "safe image",
}
GROUPS = {
    "retrieval": "recall@1 of safe items",
    "redirection": "first result is safe, by query",
    "counterpart": "unsafe item finds its own",
}

QUERY_LABELS = {
    "safe_text": "safe captions",
    "safe_image": "safe images",
    "unsafe_text": "unsafe captions",
    "unsafe_image": "unsafe images",
}

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
    "redirection": (
        TITLES["redirection"],
        {f"{key}_safe_rate_at_1": (label, True) for key, label in QUERY_LABELS.items()},
    ),
    "redirection_original_gallery": (
        TITLES["redirection_original_gallery"],
        {f"{key}_safe_rate_at_1": (label, True) for key, label in QUERY_LABELS.items()},
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
    text = f"{scale * figure['value']:.{digits}f}"
    if "low" in figure:
        text += f" [{scale * figure['low']:.{digits}f}, {scale * figure['high']:.{digits}f}]"
    return text


def sample_size(results: dict, kind: str, name: str) -> str:
    """How much was measured of a split or set, and of how much it was drawn."""
    sample = results["samples"][kind][name]
    what = "quadruplets" if kind == "splits" else "images"
    drawn = "" if sample["used"] == sample["of"] else f" of {sample['of']:,}"
    return f"{sample['used']:,}{drawn} {what}"


def results_table(results: dict) -> str:
    """Lays out the main figures of `results.json` as text."""
    roles = list(results["models"])
    blocks = [
        (f"{split} ({sample_size(results, 'splits', split)})", list(split_sections(results, split)))
        for split in results["models"]["model"]["splits"]
    ]
    classified = zero_shot_section(results)
    if classified:
        sets = results["models"]["model"]["zero_shot"]
        sizes = "; ".join(f"{name}: {sample_size(results, 'zero_shot', name)}" for name in sets)
        blocks.append((f"zero-shot ({sizes})", [classified]))
    left = 2 + max(len(line.label) for _, sections in blocks for section in sections for line in section.lines)
    width = max(20, *(len(name) for name in results["names"].values()))
    lines = []
    for title, sections in blocks:
        lines += ["", title, ""]
        for section in sections:
            lines.append(section.title)
            for line in section.lines:
                cells = "  ".join(cell(line.figures[role], line.share).rjust(width) for role in roles)
                lines.append(f"  {line.label:{left - 2}}  {cells}")
    header = " " * (left + 2) + "  ".join(results["names"][role].rjust(width) for role in roles)
    notes = "Shares in percent; in brackets, 95 % bootstrap intervals over the queries."
    return "\n".join([header, *lines[1:], "", notes])


def before_after_table(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> str:
    """Lays out the figures of `summary_figures`, by split, before and after training, in percent."""
    shown = [name for name in SUMMARY if any(name in figures for figures in before.values())]
    left = max(len(split) for split in before) + 8
    columns: dict[str, str] = {}  # those of each group, side by side
    widths = {name: max(len(SUMMARY[name]), 6) for name in shown}
    for name in shown:
        group = GROUPS[name.partition("_")[0]]
        title = SUMMARY[name].rjust(widths[name])
        columns[group] = f"{columns[group]}  {title}" if group in columns else title
    lines = [
        " " * left + "  ".join(group.ljust(len(titles)) for group, titles in columns.items()).rstrip(),
        " " * left + "  ".join(titles.ljust(len(group)) for group, titles in columns.items()).rstrip(),
    ]
    for split in before:
        for when, figures in (("before", before[split]), ("after", after[split])):
            label = f"{split if when == 'before' else '':{left - 8}} {when:6} "
            cells = (
                f"{100 * figures[name]:{widths[name]}.1f}" if name in figures else "-".rjust(widths[name])
                for name in shown
            )
            lines.append(label + "  ".join(cells))
    return "\n".join(lines)
