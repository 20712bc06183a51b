"""What a few queries find, before and after."""

from dataclasses import dataclass
from typing import cast

import torch
from datasets import Dataset

from ...data.images import open_image
from ...data.items import ITEM_COLUMNS, NOWHERE, ROW_COLUMN
from ...data.rows import undecoded
from ...data.thumbnails import data_url
from ..data import EvaluationData
from ..quadruplets import QuadrupletItems, other, row_categories
from ..suite import ModelEmbeddings

PLACES = (("safe", "text"), ("unsafe", "text"), ("safe", "image"), ("unsafe", "image"))  # in the order of ITEM_COLUMNS
TOP = 5
UNSAFE_QUERIES, SAFE_QUERIES = 6, 2  # at most, of captions; half as many of images


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


@dataclass(frozen=True)
class Strip:
    """A query and its first results, by role."""

    title: str
    query: Shown
    results: dict[str, list[Shown]]


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


def choose_rows(categories: list[str], most: int) -> list[int]:
    """Which of some rows, whose categories are given, are shown: the first of each category in turn, then the next of
    each; at most so many."""
    seen: dict[str, int] = {}
    order = []
    for row, category in enumerate(categories):
        seen[category] = seen.get(category, 0) + 1
        order.append((seen[category], row))
    return sorted(row for _, row in sorted(order)[:most])


def strips(
    made: dict[str, ModelEmbeddings], data: EvaluationData, split: str, show_unsafe: bool, frozen_gallery: bool = False
) -> list[Strip]:
    """First results from the mixed pool, which may be the original's, for a few captions and images, by every model."""
    pools = {role: made["baseline" if frozen_gallery else role].splits[split] for role in made}
    viewer = Viewer(data, split, next(iter(made.values())), show_unsafe)
    shown = []
    for modality, share in (("text", 1), ("image", 2)):
        for side, most in (("unsafe", UNSAFE_QUERIES), ("safe", SAFE_QUERIES)):
            if not all(len(viewer.items.of(kind, other(modality))) for kind in ("safe", "unsafe")):
                continue
            categories = [viewer.categories[row] for row in viewer.items.of(side, modality).row.tolist()]
            for query in choose_rows(categories, most // share):
                results = {
                    role: [
                        viewer.show(found_side, other(modality), found, own)
                        for found_side, found, own in first_results(
                            each.splits[split], side, modality, query, pools[role]
                        )
                    ]
                    for role, each in made.items()
                }
                category = categories[query]
                kind = "caption" if modality == "text" else "image"
                title = f"{side} {kind}" + (f" · {category}" if category and side == "unsafe" else "")
                shown.append(Strip(title, viewer.show(side, modality, query), results))
    return shown


def first_results(
    items: QuadrupletItems, side: str, modality: str, query: int, pool: QuadrupletItems | None = None
) -> list[tuple[str, int, bool]]:
    """Side and index of the first results from the mixed pool, identical items once, and whether each is the query's
    safe counterpart."""
    queries = items.of(side, modality)
    safe, unsafe = ((pool or items).of(each, other(modality)) for each in ("safe", "unsafe"))
    scores = torch.cat([safe.different, unsafe.different]) @ queries.embeds[query]
    places = scores.topk(min(TOP, len(scores))).indices.tolist()
    own = safe.inverse[safe.row == queries.row[query]].tolist()
    return [
        ("safe", int(safe.first[place]), place in own)
        if place < len(safe.first)
        else ("unsafe", int(unsafe.first[place - len(safe.first)]), False)
        for place in places
    ]
