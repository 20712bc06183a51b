"""The findings as a table for the terminal, and as one self-contained page with images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..images import open_image
from ..items import ITEM_COLUMNS, UNSAFE
from ..thumbnails import data_url
from .findings import SIDES, Judged, row_numbers
from .reading import KINDS

SHOWN = 8  # items of each column and split whose side seems wrong, and pairs of images that two splits share
LISTED = 50  # numbers of rows; audit.json has them all
NAMES = dict(zip(ITEM_COLUMNS, ("safe captions", "unsafe captions", "safe images", "unsafe images"), strict=True))
LOOKS = {"safe": "unsafe", "unsafe": "safe"}


@dataclass(frozen=True)
class Shown:
    """An item as the page shows it.

    Attributes:
        title: where it stands.
        text: a caption, or what stands in its place.
        image: a data URL, for an image.
    """

    title: str
    text: str = ""
    image: str | None = None


def table(audit: dict[str, Any]) -> str:
    """The findings as lines of text, a column for each split."""
    splits = audit["splits"]
    lines = [
        ("", list(splits)),
        *((label, [cells.get(split, "-") for split in splits]) for label, cells in _lines(audit)),
    ]
    first = max(len(label) for label, _ in lines)
    widths = [max(len(cells[number]) for _, cells in lines) for number in range(len(splits))]
    return "\n".join(
        f"{label:{first}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for label, cells in lines
    )


def _lines(audit: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line's name, and its cells by split."""
    splits = audit["splits"]
    yield "rows", {split: f"{each['rows']:,}" for split, each in splits.items()}
    if audit["left_out"]:
        yield "left out: a minor, and nudity", {split: f"{n:,}" for split, n in audit["left_out"].items()}
    for column, name in NAMES.items():
        look = f"{name} that look {LOOKS[column.partition('_')[0]]}"
        items = {split: each["items"][column] for split, each in splits.items() if column in each["items"]}
        if any(item["scored"] for item in items.values()):
            yield look, {split: _share(len(item["wrong"]), item["scored"]) for split, item in items.items()}
    for side in SIDES:
        sides = {split: each["sides"][side] for split, each in splits.items() if each["sides"][side]}
        for key in ("unsafe in both", "unsafe caption alone", "unsafe picture alone", "safe in both") if sides else ():
            yield f"{side} side: {key}", {split: _share(each[key], each["scored"]) for split, each in sides.items()}
    for label, count in (
        ("items that cannot be used", lambda each: sum(len(item["faults"]) for item in each["items"].values())),
        ("rows that repeat another", lambda each: len(each["repeated"])),
        ("captions that are too long", lambda each: sum(len(c["too long"]) for c in each["captions"].values())),
        (
            "captions in another language",
            lambda each: sum(len(c["in another language"]) for c in each["captions"].values()),
        ),
        *((f"images: {kind}", lambda each, kind=kind: _of_kind(each, kind)) for kind in KINDS),
    ):
        counts = {split: count(each) for split, each in splits.items()}
        if any(counts.values()) or not label.startswith("images:"):  # of which most data have none
            yield label, {split: f"{n:,}" for split, n in counts.items()}
    for kind, leaks in audit["leaks"].items():
        if len(splits) > 1:
            counts = {split: sum(leak["split"] == split for leak in leaks) for split in splits}
            yield f"{kind} of an earlier split too", {split: f"{n:,}" for split, n in counts.items()}


def _of_kind(split: dict[str, Any], kind: str) -> int:
    return sum(len(rows[kind]) for rows in split["pictures"].values())


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({100 * count / whole:.1f} %)" if whole else "-"


def write_report(
    path: Path, audit: dict[str, Any], splits: DatasetDict, judged: Sequence[Judged], show_unsafe: bool = False
) -> None:
    """Writes the page.

    Args:
        path: the HTML file; everything that it shows is inside.
        audit: what `audit.json` holds.
        splits: the rows that it tells of.
        judged: all their columns of items.
        show_unsafe: show items of the unsafe side, and those that look unsafe, which are otherwise blurred or left
            out.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    viewer = _Viewer(splits, judged, show_unsafe)
    page = environment.get_template("report.html").render(
        audit=audit,
        lines=list(_lines(audit)),
        names=NAMES,
        looks=LOOKS,
        wrong=list(viewer.wrong()),
        leaks=[(viewer.at(leak["of"]), viewer.at(leak)) for leak in audit["leaks"]["pictures"][:SHOWN]],
        show_unsafe=show_unsafe,
        listed=lambda rows: ", ".join(map(str, rows[:LISTED])) + (" …" if len(rows) > LISTED else ""),
        most=LISTED,
    )
    path.write_text(page, encoding="utf-8")


class _Viewer:
    """Shows items, hiding those that are unsafe or stand among such."""

    def __init__(self, splits: DatasetDict, judged: Sequence[Judged], show_unsafe: bool):
        self.judged = {(each.items.split, each.items.column): each for each in judged}
        self.numbers = {split: row_numbers(rows) for split, rows in splits.items()}
        self.show_unsafe = show_unsafe

    def _hidden(self, digest: int) -> bool:
        """Whether an item stands on the unsafe side, or looks unsafe, anywhere."""
        return not self.show_unsafe and any(
            ((each.items.digest == digest) & (each.items.column.startswith("unsafe") | (each.verdict == UNSAFE))).any()
            for each in self.judged.values()
        )

    def wrong(self) -> Iterator[tuple[str, list[Shown]]]:
        """A few items of each column that seem to stand on the wrong side, the surest first."""
        for (split, column), each in self.judged.items():
            rows = np.flatnonzero(each.wrong)
            scores = each.scores[rows, 0]
            rows = rows[np.argsort(scores if column.startswith("unsafe") else -scores, kind="stable")][:SHOWN]
            if len(rows):
                title = f"{split}: {NAMES[column]} that look {LOOKS[column.partition('_')[0]]}"
                yield title, [self._show(each, int(row), f"score {each.scores[row, 0]:.2f}") for row in rows]

    def at(self, place: dict[str, Any]) -> Shown:
        """The item at a split, column and number of a row."""
        row = int(np.flatnonzero(self.numbers[place["split"]] == place["row"])[0])
        return self._show(self.judged[place["split"], place["column"]], row, f"{place['split']}, {place['column']}")

    def _show(self, judged: Judged, row: int, more: str) -> Shown:
        items = judged.items
        number = int(self.numbers[items.split][row])
        title = f"row {number}, {more}"
        hidden = self._hidden(items.digest[row])
        cell = items.rows[row][items.column]
        if items.is_caption:
            return Shown(title, "caption hidden" if hidden else cell)
        return Shown(title, image=data_url(open_image(cell, number, items.column), hidden))
