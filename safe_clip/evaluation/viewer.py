"""The items of a split as people see them."""

from dataclasses import dataclass
from typing import cast

from datasets import Dataset

from ..data.images import open_image
from ..data.items import ITEM_COLUMNS, NOWHERE, ROW_COLUMN
from ..data.rows import undecoded
from ..data.thumbnails import data_url
from .data import EvaluationData
from .quadruplets import row_categories
from .suite import ModelEmbeddings

PLACES = (("safe", "text"), ("unsafe", "text"), ("safe", "image"), ("unsafe", "image"))  # in the order of ITEM_COLUMNS


@dataclass(frozen=True)
class Shown:
    """A caption or an image as the page shows it.

    Attributes:
        side: `"safe"` or `"unsafe"`.
        text: the caption, or what stands in its place.
        image: a data URL, for an image.
        counterpart: whether it is the query's own safe counterpart.
    """

    side: str
    text: str
    image: str | None = None
    counterpart: bool = False


class Viewer:
    """Shows the items of a split, hiding the unsafe ones unless asked.

    Args:
        data: the rows.
        split: which.
        made: any model's embeddings of it, which say which rows can be read.
        show_unsafe: show everything.
    """

    def __init__(self, data: EvaluationData, split: str, made: ModelEmbeddings, show_unsafe: bool):
        self.items = made.splits[split]
        row = self.items.made_from.row.tolist()
        rows = data.splits[split].rows
        chosen = cast(Dataset, rows.select(row))
        self.rows = undecoded(chosen, rows.column_names)  # a row may have an unreadable image beside
        self.numbers = self.rows[ROW_COLUMN] if ROW_COLUMN in self.rows.column_names else row
        self.show_unsafe = show_unsafe
        self.categories = row_categories(self.rows) or [""] * len(row)
        # What is marked unsafe anywhere is hidden everywhere.
        self.hidden = {modality: set(self.items.of("unsafe", modality).ids.tolist()) for modality in ("text", "image")}

    def show(self, side: str, modality: str, index: int, counterpart: bool = False) -> Shown:
        """One item of a kind."""
        items = self.items.of(side, modality)
        row = int(items.row[index])
        hidden = not self.show_unsafe and int(items.ids[index]) in self.hidden[modality]
        cells, kind = self.rows[row], "caption" if modality == "text" else "image"
        source = self.items.made_from.source[row]
        columns = {
            place: cells[ITEM_COLUMNS[number]]
            for place, number in zip(PLACES, source, strict=True)
            if number != NOWHERE
        }
        text = columns.get((side, "text"), "")
        if hidden:
            category = f", {self.categories[row]}" if self.categories[row] else ""
            text = f"{side} {kind} hidden, row {self.numbers[row]}{category}"
        if modality == "text":
            return Shown(side, text, None, counterpart)
        image = open_image(columns[side, "image"], self.numbers[row], f"{side}_image")
        return Shown(side, text, data_url(image, hidden), counterpart)
