"""The items of a row: which are there, which are safe, and so where each stands."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from ..errors import UserError
from ..items import Layout

CAPTION_COLUMNS = ("safe_caption", "unsafe_caption")
IMAGE_COLUMNS = ("safe_image", "unsafe_image")
ITEM_COLUMNS = (*CAPTION_COLUMNS, *IMAGE_COLUMNS)
# Where a data set has them: what an item turned out to be, whichever side it stands on.
LABEL_COLUMNS = tuple(f"{column}_is_safe" for column in ITEM_COLUMNS)
CONCEPT = "concept"
ABOUT_COLUMNS = ("category", CONCEPT)  # what is unsafe in a row
NAMES = ("safe captions", "unsafe captions", "safe images", "unsafe images")
ROW_COLUMN = "safe_clip_row"  # kept by rows that were picked out, so that errors name the row the person knows
EMPTY = "row {} is empty: it has neither captions nor images. Fill it or remove it."
SAFE, UNSAFE, UNKNOWN = 1, 0, -1
NOWHERE = -1
# How a label may be written.
TRUTHS = dict.fromkeys(("true", "t", "yes", "y", "1", "1.0", "safe"), SAFE)
TRUTHS |= dict.fromkeys(("false", "f", "no", "n", "0", "0.0", "unsafe"), UNSAFE)
LONGEST_LABEL = 40  # characters of a cell that an error shows


@dataclass(frozen=True, eq=False)
class RowLayout(Layout):
    """The layout of M quadruplets that are made of the items of N rows.

    Attributes:
        row: the row that each is made of, in the order of rows; M int64.
        source: for each of `ITEM_COLUMNS`, the number of the column that its item is taken from, or `NOWHERE`; M x 4.
    """

    row: np.ndarray
    source: np.ndarray

    def select(self, keep: np.ndarray) -> "RowLayout":
        """That of the quadruplets whose numbers are given."""
        return RowLayout(*(getattr(self, field.name)[keep] for field in fields(self)))

    def summary(self, term_rows: Mapping[str, int]) -> str:
        """What is trained on, and how many quadruplets each term of a loss is computed over, in words."""
        counts = self.present.sum(axis=0).tolist()
        rows = f"{len(np.unique(self.row)):,} rows"
        if self.present.all():
            return f"Training on {rows}, each with both captions and both images."
        items = (f"{count:,} {name}" if count else f"no {name}" for count, name in zip(counts, NAMES, strict=True))
        lines = [f"Training on {rows}: {', '.join(items)}."]
        if freed := int(self.relabelled.sum()):
            lines.append(f"Of {freed:,} rows, items labelled harmless are preserved in place of redirected.")
        width = max(map(len, term_rows))
        lines += [f"  {name:{width}}  {count:10,} rows" for name, count in term_rows.items() if count]
        if unfed := [name for name, count in term_rows.items() if not count]:
            lines.append(f"No row has what these terms need: {', '.join(unfed)}.")
        return "\n".join(lines)


def layout_by_labels(there: np.ndarray, labels: np.ndarray) -> RowLayout:
    """Puts each item where its label says that it belongs.

    - An item of the unsafe side that is labelled safe is no unsafe item: it becomes a safe item of a quadruplet of its
      own, together with its partner of the other modality if that is harmless too, and so is preserved.
    - An item of the safe side that is labelled unsafe is no target. If its counterpart is labelled safe, the two change
      places; if there is no counterpart, it is an unsafe item; else it is left out.
    - Items without a label are what their side says.

    Args:
        there: which of `ITEM_COLUMNS` each of N rows has; N x 4 booleans.
        labels: `SAFE`, `UNSAFE` or `UNKNOWN`; N x 4.
    """
    count = len(there)
    source = np.full((count, 4), NOWHERE, dtype=np.int8)
    freed = np.full((count, 4), NOWHERE, dtype=np.int8)
    left, harmless = {}, {}
    for safe, unsafe in ((0, 1), (2, 3)):  # columns of captions, of images
        good = there[:, safe] & (labels[:, safe] != UNSAFE)
        fallen = there[:, safe] & (labels[:, safe] == UNSAFE)
        risen = there[:, unsafe] & (labels[:, unsafe] == SAFE)
        bad = there[:, unsafe] & (labels[:, unsafe] != SAFE)
        swapped = fallen & risen
        source[:, safe] = np.select([good, swapped], [safe, unsafe], NOWHERE)
        source[:, unsafe] = np.select([bad, fallen & ~bad], [unsafe, safe], NOWHERE)
        freed[:, safe] = np.where(risen & ~swapped, unsafe, NOWHERE)
        left[safe], harmless[safe] = source[:, unsafe] != NOWHERE, risen & ~swapped
    half_unsafe = (harmless[0] & left[2]) | (harmless[2] & left[0])
    extra = (freed != NOWHERE).any(axis=1).nonzero()[0]
    row = np.concatenate([np.arange(count), extra])
    source = np.concatenate([source, freed[extra]])
    relabelled = np.arange(len(row)) >= count
    half_unsafe = np.concatenate([half_unsafe, np.zeros(len(extra), dtype=bool)])
    keep = (source != NOWHERE).any(axis=1)
    order = np.argsort(row, kind="stable")
    order = order[keep[order]]
    return RowLayout(source[order] != NOWHERE, relabelled[order], half_unsafe[order], row[order], source[order])


def layout_of(rows: Dataset) -> RowLayout:
    """The layout of a data set, for which no image is read.

    Raises:
        UserError: a row has no items, or a label is neither true nor false nor empty.
    """
    there = np.stack([items_there(rows, column) for column in ITEM_COLUMNS], axis=1)
    if not there.any(axis=1).all():
        row = int((~there.any(axis=1)).argmax())
        raise UserError(EMPTY.format(rows[ROW_COLUMN][row] if ROW_COLUMN in rows.column_names else row))
    labels = np.full(there.shape, UNKNOWN, dtype=np.int8)
    numbers = rows[ROW_COLUMN] if ROW_COLUMN in rows.column_names else range(len(rows))
    for place, column in enumerate(LABEL_COLUMNS):
        if column in rows.column_names:
            feature = rows.features[column]
            labels[:, place] = [
                read_label(value, row, column, feature) for row, value in zip(numbers, rows[column], strict=True)
            ]
    return layout_by_labels(there, labels)


def items_there(rows: Dataset, column: str) -> np.ndarray:
    """Which rows have something in a column; N booleans."""
    if column not in rows.column_names:
        return np.zeros(len(rows), dtype=bool)
    cells = rows.data.column(column)
    there = pc.is_valid(cells)
    if pa.types.is_struct(cells.type) and {"bytes", "path"} <= {field.name for field in cells.type}:
        filled = pc.or_(*(pc.is_valid(pc.struct_field(cells, part)) for part in ("bytes", "path")))
        there = pc.and_(there, filled)
    there = there.to_numpy()
    # Rows that were picked out are numbers into the whole table, whose images need not be copied to be counted.
    return there if rows._indices is None else there[rows._indices.column(0).to_numpy()]


def read_label(value: Any, row: int | str, column: str, feature: Any = None) -> int:
    """`SAFE`, `UNSAFE`, or `UNKNOWN` for an empty cell; raises `UserError` for anything else.

    True and false may be numbers, words of `TRUTHS`, or classes (a `feature`) of such names, whatever their numbers.
    """
    if isinstance(feature, ClassLabel) and value is not None:
        value = feature.int2str(value)
    if value is None or value != value:  # not a number, as pandas has an empty cell
        return UNKNOWN
    if isinstance(value, str):
        word = value.strip().casefold()
        if not word:
            return UNKNOWN
        label = TRUTHS.get(word)
    else:
        label = {0: UNSAFE, 1: SAFE}.get(value) if isinstance(value, bool | int | float) else None
    if label is None:
        raise UserError(
            f"row {row}, column '{column}': a label must be true, false or empty, not {str(value)[:LONGEST_LABEL]!r}. "
            "Mend the cell or remove the column."
        )
    return label
