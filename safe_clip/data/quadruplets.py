"""The schema of a quadruplet data set: loading, naming and checking it."""

import difflib
import json
import logging
import random
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset, DatasetDict, Image, IterableDataset, IterableDatasetDict
from torch.utils.data import Dataset as TorchDataset
from transformers import BaseImageProcessor

from ..errors import UserError
from .images import open_image
from .items import (
    CAPTION_COLUMNS,
    EMPTY,
    IMAGE_COLUMNS,
    ITEM_COLUMNS,
    LABEL_COLUMNS,
    NOWHERE,
    ROW_COLUMN,
    Filing,
    file_rows,
)
from .minors import refuse_minors
from .pixels import cache_pixels, pixel_shape
from .schema import ID_COLUMNS, join_pictures, known_columns, local_pictures, numbered, stream_columns
from .sources import load_splits

logger = logging.getLogger(__name__)

STREAM_IDS = (*dict.fromkeys(name for names in ID_COLUMNS.values() for name in names), "__key__")
# What decoders leave of bytes that they cannot read; one alone of the second may be a typo.
STRANGE = {"\0": "NUL characters", "\ufffd\ufffd": "U+FFFD characters", "[\ud800-\udfff]": "lone surrogates"}
INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # kinds of characters: controls, formats, spaces
DEMO = "demo"
SHARDS = 64  # into which rows of one file are cut, so that many processes and workers may share the stream
STREAMED_ROWS = 1000  # of each split that is measured where training rows are streamed
VALIDATION_SHARE = 0.05  # of the training rows, where a data set has no validation split
MAX_VALIDATION_ROWS = 1000


def load_quadruplets(
    name: str,
    config: str | None = None,
    column_mapping: Mapping[str, str | None] | None = None,
    token: str | None = None,
    hold_out: bool = True,
    safe_images: str | None = None,
    unsafe_images: str | None = None,
    missing_pictures: str = "error",
    choose: Callable[[Collection[str]], Sequence[str]] | None = None,
    streaming: bool = False,
) -> DatasetDict:
    """Loads a quadruplet data set and checks its columns.

    Args:
        name: `"demo"` for the embedded world, or as for `load_splits`. Paths in columns of pictures are meant from the
            folder where the data set lies.
        config: the configuration of a Hub data set that has several.
        column_mapping: `{column of the data set: column of the schema}`, or `None` for a column to leave out; those of
            `PRESETS` are known.
        token: a Hub token; the one stored by `hf auth login` by default.
        hold_out: where there is no `validation` split, make a fixed share of `train` one.
        safe_images, unsafe_images: a folder or zip of pictures that are named after a number in each row, as for
            `join_pictures`.
        missing_pictures: what becomes of rows that have no picture there, as for `join_pictures`.
        choose: names the splits that are wanted, of which alone anything is asked; all by default.
        streaming: let the rows of `train` come in a stream, for `QuadrupletStream`; of other splits, load the first
            `STREAMED_ROWS` alone. Nothing is held out.

    Returns:
        Splits, without rows that sexualise minors, with those of the columns `safe_caption`, `safe_image`,
        `unsafe_caption`, `unsafe_image` that there are, and whatever else the data set has. Cells of them may be empty.

    Raises:
        UserError: the data set cannot be found or opened, or its columns do not match.
    """
    if name == DEMO:
        from ..demo.dataset import load_demo

        splits = load_demo()
    else:
        splits = load_splits(name, config, token, streaming=streaming)
    if choose is not None:
        splits = DatasetDict({split: splits[split] for split in choose(splits)})
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    for split, rows in splits.items():
        where = f"split '{split}' of {name}"
        rows = refuse_minors(_renamed(rows, column_mapping or {}, where), where)
        if streaming and split != "train":
            rows = first_rows(rows, STREAMED_ROWS)
        elif streaming and isinstance(rows, Dataset):
            rows = rows.to_iterable_dataset(min(SHARDS, max(1, len(rows))))
        for column, place in (("safe_image", safe_images), ("unsafe_image", unsafe_images)):
            if place:
                rows = join_pictures(rows, column, place, where, missing_pictures)
            elif Path(name).exists():
                rows = local_pictures(rows, column, folder)
        pictures = [name for name, feature in (rows.features or {}).items() if isinstance(feature, Image)]
        check_columns(_columns(rows), where, pictures)
        if isinstance(rows, Dataset) and len(rows) == 0:
            raise UserError(f"{where} is empty; remove it or give it rows.")
        splits[split] = rows
    return hold_out_validation(splits) if hold_out and not streaming else splits


def _columns(rows: Dataset | IterableDataset) -> list[str]:
    return stream_columns(rows) if isinstance(rows, IterableDataset) else rows.column_names


def first_rows(rows: Dataset | IterableDataset, count: int) -> Dataset:
    """The first rows, out of a stream too, whose pictures are not decoded yet."""
    if isinstance(rows, Dataset):
        return rows.select(range(min(count, len(rows))))
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    first = Dataset.from_list(list(rows.take(count)), features=rows.features)
    for column, feature in first.features.items():
        if isinstance(feature, Image):
            first = first.cast_column(column, Image())
    return first


def _renamed(rows: Dataset | IterableDataset, mapping: Mapping[str, str | None], where: str) -> Any:
    """Rows under the schema's names: those that are asked for, and those of a preset for other columns."""
    for old in mapping:
        if old not in _columns(rows):
            raise UserError(
                f"--column_mapping renames '{old}', which {where} lacks; its columns are {_listed(_columns(rows))}."
            )
    if dropped := [old for old, new in mapping.items() if new is None]:
        rows = rows.remove_columns(dropped)
    mapping = {old: new for old, new in mapping.items() if new is not None}
    if known := known_columns(_columns(rows)):
        preset, names = known
        names = {old: new for old, new in names.items() if old not in mapping and new not in mapping.values()}
        told = ", ".join(f"{old} as {new}" for old, new in names.items())
        if told:
            logger.warning("%s has the columns of %s: taking %s.", where, preset, told)
        mapping |= names
    after = [mapping.get(column, column) for column in _columns(rows)]
    for column in after:
        if after.count(column) > 1:
            raise UserError(f"--column_mapping gives {where} two columns '{column}'; rename the other one too.")
    return rows.rename_columns(mapping) if mapping else rows


def hold_out_validation(splits: DatasetDict) -> DatasetDict:
    """Makes a fixed share of `train` a `validation` split, where there is none."""
    if "train" in splits and "validation" not in splits:
        rows = splits["train"]
        count = min(MAX_VALIDATION_ROWS, max(1, round(VALIDATION_SHARE * len(rows))))
        if count < len(rows):
            rows = numbered(rows)
            chosen = set(random.Random(0).sample(range(len(rows)), count))
            splits["train"] = rows.select([index for index in range(len(rows)) if index not in chosen])
            splits["validation"] = rows.select(sorted(chosen))
    return splits


def check_columns(columns: list[str], where: str, pictures: Sequence[str] = ()) -> None:
    """Warns of items that rows lack altogether.

    Args:
        columns: the names of the columns.
        where: what messages call the rows.
        pictures: those of them that hold pictures.

    Raises:
        UserError: there is no item at all, or another column is likely meant for one that is missing.
    """
    missing = [column for column in ITEM_COLUMNS if column not in columns]
    if not missing:
        return
    numbers = set(STREAM_IDS)
    spare = [column for column in columns if column not in {*ITEM_COLUMNS, *LABEL_COLUMNS, *numbers, ROW_COLUMN}]
    guesses = {}
    for column in missing:
        candidates = [name for name in spare if name not in guesses]
        close = difflib.get_close_matches(column, candidates, n=1, cutoff=0.5)
        if column in IMAGE_COLUMNS and not close:
            close = [name for name in candidates if name in pictures][:1]
        guesses.update({close[0]: column} if close else {})
    lacks = f"{where} lacks the column{'s' * (len(missing) > 1)} {_listed(missing)}"
    absent = [column for column in missing if column in IMAGE_COLUMNS]
    elsewhere = f" Pictures in a folder or zip of their own are named by {' and '.join(f'--{c}s' for c in absent)}."
    if guesses or len(missing) == len(ITEM_COLUMNS):
        example = guesses or {"YOUR_COLUMN": missing[0]}
        first = next(iter(example))
        raise UserError(
            f"{lacks}; it has {_listed(columns)}. Name them with --column_mapping '{json.dumps(example)}', or leave a "
            f"column that is something else out with '{{\"{first}\": null}}'.{elsewhere if absent else ''}"
        )
    logger.warning("%s: what needs none is trained and measured.%s", lacks, elsewhere if absent else "")


def check_caption(value: Any, row: int, column: str) -> str:
    """Returns a caption if it is a text with something in it, and raises `UserError` otherwise."""
    if not isinstance(value, str):
        raise UserError(
            f"row {row}, column '{column}': a caption must be text, not {type(value).__name__}. "
            "Fill the cell or remove the row."
        )
    strange = next((name for mark, name in STRANGE.items() if re.search(mark, value)), None)
    if strange:
        raise UserError(
            f"row {row}, column '{column}': the caption was read in the wrong encoding, or is no text: it holds "
            f"{strange}. Mend the cell or remove the row."
        )
    if all(unicodedata.category(letter) in INVISIBLE for letter in value):
        raise UserError(f"row {row}, column '{column}': the caption is empty. Fill the cell or remove the row.")
    return value


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names)


class QuadrupletRows(TorchDataset):
    """Checked quadruplets of a data set, decoded one by one so that errors can name their cells.

    Items may be missing, and where the data have labels, each item stands where `file_items` puts it, so that a row may
    become two quadruplets.

    Args:
        rows: anything with a length and integer indexing that gives dictionaries with some of the columns
            `safe_caption`, `unsafe_caption`, `safe_image`, `unsafe_image`, such as a `datasets.Dataset`, which alone
            may have labels.

    Each item is `{safe_caption, unsafe_caption: str or None, safe_image, unsafe_image: RGB PIL.Image or None, row: int,
    generated, mixed: bool}`, where `row` is its own number here; the others as in `Filing`.

    Attributes:
        rows: the rows.
        filing: where their items stand; `None` where rows are no `datasets.Dataset` and only their reading tells.
        shape: of pictures that were decoded before.

    Raises:
        UserError: rows have none of the columns, or a label is none.
    """

    def __init__(self, rows: Any):
        if isinstance(rows, IterableDataset | IterableDatasetDict):
            raise UserError(
                "a stream has no numbered rows; make a QuadrupletStream of it, or load it without --streaming."
            )
        if isinstance(rows, DatasetDict):
            raise UserError(f"this is a dictionary of splits ({_listed(list(rows))}); name one, such as rows['train'].")
        self.filing: Filing | None = None
        self.shape: tuple[int, ...] | None = None
        if isinstance(rows, Dataset):
            if not set(ITEM_COLUMNS) & set(rows.column_names):
                check_columns(rows.column_names, "the data set")
            self.filing = file_rows(rows)
            rows = undecoded(rows, rows.column_names)
        self.rows = rows

    @property
    def present(self) -> np.ndarray | None:
        """Which items there are, a row for each quadruplet, M x 4 booleans; `None` where only reading would tell."""
        return None if self.filing is None else self.filing.present

    def __len__(self) -> int:
        return len(self.rows) if self.filing is None else len(self.filing.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.filing is None:
            row = self.rows[index]
            if not set(ITEM_COLUMNS) & set(row):
                check_columns(list(row), f"row {index}")
            return {**StoredQuadruplet(row, row.get(ROW_COLUMN, index)).read(), "row": index}
        number = int(self.filing.row[index])
        row = self.rows[number]
        columns = [None if place == NOWHERE else ITEM_COLUMNS[place] for place in self.filing.source[index]]
        facts = bool(self.filing.generated[index]), bool(self.filing.mixed[index])
        stored = StoredQuadruplet(row, row.get(ROW_COLUMN, number), columns, *facts, self.shape)
        return {**stored.read(), "row": index}

    def cache_pictures(self, image_processor: BaseImageProcessor, workers: int = 0, progress: bool = True) -> None:
        """Decodes and resizes all pictures once, so that they are read faster from then on: as uint8 tensors, 3 x
        height x width.

        Raises:
            UserError: a picture cannot be read.
        """
        if self.shape is None:
            self.shape = pixel_shape(image_processor)
            self.rows = cache_pixels(self.rows, image_processor, workers, progress)

    @cached_property
    def digest(self) -> dict[str, Any]:
        """What tells whether rows are those that they were: their number, and digests of each column of captions and of
        which items there are, as labelled.

        Pictures are not read; nothing but the number is told of rows that are no `datasets.Dataset`.
        """
        digest = {"rows": len(self.rows)}
        if self.filing is not None:
            for column in CAPTION_COLUMNS:
                if column in self.rows.column_names:
                    parts = self.rows.select_columns([column]).iter(batch_size=1000)
                    digest[column] = captions_digest(part[column] for part in parts)
            digest["which items there are, or their labels,"] = xxhash.xxh3_128(
                self.filing.source.tobytes()
            ).hexdigest()
        return digest


@dataclass(frozen=True)
class StoredQuadruplet:
    """A quadruplet as its row stores it: for each of `ITEM_COLUMNS`, the column that its item is taken from, if any;
    and the shape of pictures, if they were decoded before."""

    row: dict[str, Any]
    number: int | str
    columns: Sequence[str | None] = ITEM_COLUMNS
    generated: bool = False
    mixed: bool = False
    shape: tuple[int, ...] | None = None

    def read(self) -> dict[str, Any]:
        """What `QuadrupletRows` gives, without its number.

        Raises:
            UserError: an item cannot be used.
        """
        items = {
            place: read_item(self.row.get(column), self.number, column, self.shape)
            for place, column in zip(ITEM_COLUMNS, self.columns, strict=True)
        }
        if all(item is None for item in items.values()):
            raise UserError(EMPTY.format(self.number))
        return {**items, "generated": self.generated, "mixed": self.mixed}

    def fault(self) -> str | None:
        """Why it cannot be read, or nothing."""
        try:
            self.read()
        except UserError as error:
            return str(error)
        return None


def captions_digest(parts: Iterable[list[str | None]]) -> str:
    """A digest of a column of captions, which comes in parts."""
    state = xxhash.xxh3_128()
    for captions in parts:
        state.update(repr(captions).encode(errors="surrogatepass"))
    return state.hexdigest()


def undecoded(rows: Dataset | IterableDataset, columns: Sequence[str]) -> Dataset | IterableDataset:
    """The items of rows with these columns, their labels and what they are known by; pictures as they are stored.

    Decoding them one by one, where they are used, is what lets a broken picture be named by row and column.
    """
    kept = {*ITEM_COLUMNS, *LABEL_COLUMNS, ROW_COLUMN}
    if isinstance(rows, IterableDataset):
        kept |= set(STREAM_IDS)
    rows = rows.select_columns([name for name in columns if name in kept])
    for column in IMAGE_COLUMNS:
        if rows.features and isinstance(rows.features.get(column), Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def read_item(value: Any, row: int | str, column: str | None, shape: tuple[int, ...] | None = None) -> Any:
    """A checked caption or a decoded picture, of a `shape` if it was decoded before; nothing for an empty cell."""
    if column is None or value is None:
        return None
    if column in CAPTION_COLUMNS:
        return check_caption(value, row, column)
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None:
        return None
    if shape is not None:
        return torch.frombuffer(bytearray(value), dtype=torch.uint8).view(shape)
    return open_image(value, row, column)
