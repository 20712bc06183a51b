"""Rows checked and read one by one."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.fingerprint import Hasher
from torch.utils.data import Dataset as TorchDataset
from transformers import BaseImageProcessor

from ..errors import UserError
from ..store.fingerprints import captions_digest, digest
from .content import column_digest
from .features import Rows, stored_images
from .image_join import STREAM_IDS
from .images import open_image
from .items import (
    ABOUT_COLUMNS,
    CAPTION_COLUMNS,
    EMPTY,
    IMAGE_COLUMNS,
    ITEM_COLUMNS,
    LABEL_COLUMNS,
    NOWHERE,
    ROW_COLUMN,
    RowLayout,
    layout_of,
)
from .pixels import cache_pixels, pixel_shape
from .plain import plain_rows
from .quadruplets import check_columns

# What decoders leave of bytes that they cannot read; one alone of the second may be a typo.
STRANGE = {"\0": "NUL characters", "\ufffd\ufffd": "U+FFFD characters", "[\ud800-\udfff]": "lone surrogates"}
INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # kinds of characters: controls, formats, spaces


def check_caption(value: Any, row: int | str, column: str) -> str:
    """Returns a caption if it is a text with something in it, and raises `UserError` otherwise."""
    if not isinstance(value, str):
        kind = type(value).__name__
        cure = "Fill the cell or remove the row."
        if isinstance(value, list | tuple):
            kind += "; in a datasets.Dataset, lists of texts may stand"
        elif isinstance(value, bool | int | float | np.generic):
            kind += f" ({value})"
            cure = (
                "Write it as text (in quotes in JSON, astype(str) in pandas), or name another column with "
                "--column_mapping. Mend the cell or remove the row."
            )
        raise UserError(f"row {row}, column '{column}': a caption must be text, not {kind}. {cure}")
    strange = next((name for mark, name in STRANGE.items() if re.search(mark, value)), None)
    if strange:
        raise UserError(
            f"row {row}, column '{column}': the caption was read in the wrong encoding, or is no text: it holds "
            f"{strange}. Mend the cell or remove the row."
        )
    if all(unicodedata.category(letter) in INVISIBLE for letter in value):
        raise UserError(f"row {row}, column '{column}': the caption is empty. Fill the cell or remove the row.")
    return value


class QuadrupletRows(TorchDataset):
    """Checked quadruplets of a data set, decoded one by one so that errors can name their cells.

    Items may be missing, and where the data have labels, each item stands where `layout_by_labels` puts it, so that a
    row may become two quadruplets.

    Args:
        rows: anything with a length and integer indexing that gives dictionaries with some of the columns
            `safe_caption`, `unsafe_caption`, `safe_image`, `unsafe_image`, such as a `datasets.Dataset`, which alone
            may have labels.

    Each item is `{safe_caption, unsafe_caption: str or None, safe_image, unsafe_image: RGB PIL.Image or None, row: int,
    relabelled, half_unsafe: bool}`, where `row` is its own number here; the others as in `Layout`.

    Attributes:
        rows: the rows.
        layout: where their items stand; `None` where rows are no `datasets.Dataset` and only their reading tells.
        shape: of images that were decoded before.
        augment: what makes another quadruplet of each that is read, such as `RandomCrop`; none by default.

    Raises:
        UserError: rows have none of the columns, or a label is none.
    """

    def __init__(self, rows: Any):
        if isinstance(rows, IterableDataset | IterableDatasetDict):
            raise UserError(
                "a stream has no numbered rows; make a QuadrupletStream of it, or load it without --streaming."
            )
        if isinstance(rows, DatasetDict):
            splits = ", ".join(map(repr, rows))
            raise UserError(f"this is a dictionary of splits ({splits}); name one, such as rows['train'].")
        if isinstance(rows, str | PathLike):
            raise UserError(
                f"rows are required here, not {str(rows)!r}: load them with load_quadruplets({str(rows)!r})."
            )
        self.layout: RowLayout | None = None
        self.shape: tuple[int, ...] | None = None
        self.augment: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        rows = plain_rows(rows)
        if isinstance(rows, dict):
            raise UserError(
                f"this is a dictionary ({', '.join(map(repr, rows))}); make its columns rows with "
                "datasets.Dataset.from_dict, or name one of its splits."
            )
        if isinstance(rows, type) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise UserError(
                f"rows come as {type(rows).__name__}, not as rows with a length; pass a datasets.Dataset, such as by "
                "datasets.Dataset.from_list(list(rows)), or a list of dictionaries."
            )
        if isinstance(rows, Dataset):
            if not set(ITEM_COLUMNS) & set(rows.column_names):
                check_columns(rows.column_names, "the data set", rows.features)
            self.layout = layout_of(rows)
            rows = undecoded(rows, rows.column_names)
        self.rows = self.stored = rows

    def __len__(self) -> int:
        return len(self.rows) if self.layout is None else len(self.layout.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        quadruplet = self._read(index)
        return quadruplet if self.augment is None else self.augment(quadruplet)

    def stored_row(self, index: int) -> dict[str, Any]:
        """The row that a quadruplet is made of, as it is stored."""
        return self.rows[index if self.layout is None else int(self.layout.row[index])]

    def _read(self, index: int) -> dict[str, Any]:
        row = self.stored_row(index)
        if self.layout is None:
            if not set(ITEM_COLUMNS) & set(row):
                check_columns(list(row), f"row {index}")
            return {**StoredQuadruplet(row, row.get(ROW_COLUMN, index)).read(), "row": index}
        number = int(self.layout.row[index])
        columns = [None if place == NOWHERE else ITEM_COLUMNS[place] for place in self.layout.source[index]]
        facts = bool(self.layout.relabelled[index]), bool(self.layout.half_unsafe[index])
        stored = StoredQuadruplet(row, row.get(ROW_COLUMN, number), columns, *facts, self.shape)
        return {**stored.read(), "row": index}

    def cache_images(
        self,
        image_processor: BaseImageProcessor,
        workers: int = 0,
        progress: bool = True,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Decodes and resizes all images once, so that they are read faster from then on: as uint8 tensors, 3 x
        height x width. Arguments as of `cache_pixels`.

        Raises:
            UserError: an image cannot be read.
        """
        if self.shape is None:
            self.shape = pixel_shape(image_processor)
            self.rows = cache_pixels(self.rows, image_processor, workers, progress, accelerator)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with what is read here, and not with whether it was decoded before."""
        layout = cast(RowLayout, self.layout)
        return Hasher.hash([self.digest, layout.row, layout.source])

    @cached_property
    def digest(self) -> dict[str, Any]:
        """What tells whether rows are those that they were: their number, and digests of each column and of which items
        there are, as labelled.

        Of large images samples are read; nothing but the number is told of rows that are no `datasets.Dataset`.
        """
        known: dict[str, Any] = {"rows": len(self.rows)}
        if self.layout is not None:
            for column in CAPTION_COLUMNS:
                if column in self.rows.column_names:
                    parts = self.rows.select_columns([column]).iter(batch_size=1000)
                    known[column] = captions_digest(part[column] for part in parts)
            for column in IMAGE_COLUMNS:
                if column in self.stored.column_names:
                    known[column] = column_digest(self.stored, column)
            known["which items there are, or their labels,"] = digest([self.layout.source.tobytes()])
        return known


@dataclass(frozen=True)
class StoredQuadruplet:
    """A quadruplet as its row stores it: for each of `ITEM_COLUMNS`, the column that its item is taken from, if any;
    and the shape of images, if they were decoded before."""

    row: dict[str, Any]
    number: int | str
    columns: Sequence[str | None] = ITEM_COLUMNS
    relabelled: bool = False
    half_unsafe: bool = False
    shape: tuple[int, ...] | None = None

    def read(self) -> dict[str, Any]:
        """What `QuadrupletRows` gives, without its number.

        Raises:
            UserError: an item cannot be used.
        """
        items = {
            # pyrefly: ignore [bad-argument-type]: of no column, a row has nothing
            place: read_item(self.row.get(column), self.number, column, self.shape)
            for place, column in zip(ITEM_COLUMNS, self.columns, strict=True)
        }
        if all(item is None for item in items.values()):
            raise UserError(EMPTY.format(self.number))
        return {**items, "relabelled": self.relabelled, "half_unsafe": self.half_unsafe}

    def fault(self) -> str | None:
        """Why it cannot be read, or nothing."""
        try:
            self.read()
        except UserError as error:
            return str(error)
        return None


def undecoded(rows: Rows, columns: Sequence[str]) -> Rows:
    """The items of rows with these columns, their labels, what is unsafe in them and what they are known by; images as
    they are stored.

    Decoding them one by one, where they are used, is what lets a broken image be named by row and column.
    """
    kept = {*ITEM_COLUMNS, *LABEL_COLUMNS, *ABOUT_COLUMNS, ROW_COLUMN}
    if isinstance(rows, IterableDataset):
        kept |= set(STREAM_IDS)
    return stored_images(cast(Rows, rows.select_columns([name for name in columns if name in kept])))


def read_item(value: Any, row: int | str, column: str | None, shape: tuple[int, ...] | None = None) -> Any:
    """A checked caption or a decoded image, of a `shape` if it was decoded before; nothing for an empty cell."""
    if column is None or value is None:
        return None
    if column in CAPTION_COLUMNS:
        return check_caption(value, row, column)
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None:
        return None
    if shape is not None:
        return torch.frombuffer(bytearray(value), dtype=torch.uint8).view(shape)
    return open_image(value, row, column)
