"""What an index is made of: the images or captions of a folder, a table or a data set, and what is known of each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image

from ..errors import UserError
from ..store.fingerprints import digest
from ..store.folders import folder_of
from .cells import is_inline, storable
from .column_names import folded, modality
from .columns import numbered
from .confinement import confined_images, local_images
from .galleries import image_files
from .indexed_arguments import IndexedArguments
from .items import (
    ABOUT_COLUMNS,
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    ITEM_COLUMNS,
    LABEL_COLUMNS,
    ROW_COLUMN,
    UNKNOWN,
    UNSAFE,
    items_there,
    read_label,
)
from .minors import refuse_minors
from .places import find_place
from .plain import plain_rows
from .presets import known_columns
from .quadruplets import DEMO
from .sources import load_splits
from .splits import known_splits, named_splits, part_off, take_part

# What is known of an item, as far as the data say it: by its column in the index.
ABOUT = pa.schema(
    [
        ("path", pa.string()),
        ("split", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("caption", pa.string()),
        ("unsafe", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Part:
    """N items of one kind, in order.

    Attributes:
        rows: N rows.
        column: their column of images or of captions, without an empty cell.
        modality: `"image"` or `"text"`.
        about: N rows of the columns of `ABOUT`.
    """

    rows: Dataset
    column: str
    modality: str
    about: pa.Table

    def __len__(self) -> int:
        return len(self.rows)


def load_parts(args: IndexedArguments) -> list[Part]:
    """Loads what is indexed: images first if both are, and each split after the other.

    Raises:
        UserError: there is nothing by this name, no such item in it, or it is not clear which column holds the items.
    """
    files = [] if args.dataset == DEMO else _files_alone(args.dataset)
    if files:
        parts = [_of_files(Path(args.dataset).expanduser(), files)] if "images" in args.items else []
    else:
        splits, parts = _splits(args), []
        for kind in args.items:
            # An image with several captions is one image.
            once = kind == "images" and args.caption_lists == "spread"
            asked = replace(args, caption_lists="first") if once else args
            found = splits or asked.load(hold_out=False, choose=lambda there: _chosen(there, args))
            for split, rows in found.items():
                parts += [_of_table(rows, split, kind, asked)] if splits else _of_sides(rows, split, kind, _home(args))
    parts = [part for part in parts if len(part)]
    if not parts:
        raise UserError(f"--dataset {args.dataset} holds no {' or '.join(args.items)} to embed.")
    return parts


def data_digest(parts: list[Part]) -> str:
    """A digest of what is known of all items, whose pixels are known by the embeddings' own cache."""
    described = (repr([part.modality, *column.to_pylist()]) for part in parts for column in part.about.columns)
    return digest(text.encode(errors="surrogatepass") for text in described)


# ---- Folders of images ----


def _files_alone(name: str) -> list[Path]:
    """The images of a folder that holds no table beside them."""
    folder = Path(name).expanduser()
    files = image_files(folder)
    if not files:
        return []
    place = find_place(name)
    beside = any(file.name.startswith("metadata.") for file in folder.rglob("metadata.*"))
    return [] if place.files or place.saved or beside else files


def _of_files(folder: Path, files: list[Path]) -> Part:
    rows = Dataset.from_dict({"image": [storable(file) for file in files]})
    return Part(rows, "image", "image", _about(len(files), path=_paths(rows, "image", folder)))


# ---- Tables ----


def _splits(args: IndexedArguments) -> DatasetDict | None:
    """The splits of a table; `None` for quadruplets, which are loaded as such."""
    own = args.image_column or args.caption_column
    name, part = part_off(args.dataset)
    if name == DEMO or (not own and (args.column_mapping or args.safe_images or args.unsafe_images)):
        return None
    splits: Any = load_splits(name, args.dataset_config, skip_damaged=args.on_bad_row == "skip")
    columns = {column: feature for rows in splits.values() for column, feature in rows.features.items()}
    sides = {folded(column) for column in columns} & {folded(column) for column in ITEM_COLUMNS}
    if not own and (sides or known_columns(list(columns), columns)):
        return None
    splits = named_splits(splits, f"--dataset {name}")
    splits = take_part(splits, part, f"--dataset {name}") if part else splits
    return DatasetDict({split: splits[split] for split in _chosen(splits, args)})


def _chosen(splits: Any, args: IndexedArguments) -> list[str]:
    there = [str(split) for split in splits]
    chosen = known_splits(args.splits, there) or there
    for split in chosen:
        if split not in there:
            raise UserError(f"--dataset {args.dataset} has no split '{split}', only {', '.join(there)}.")
    return list(chosen)


def _of_table(rows: Dataset, split: str, kind: str, args: IndexedArguments) -> Part:
    """The images or the captions of rows that are no quadruplets."""
    where = f"split '{split}' of {args.dataset}"
    image = _named(rows, "image", args.image_column, where, kind == "images")
    caption = _named(rows, "caption", args.caption_column, where, kind == "captions")
    unsafe = _unsafe_column(rows, args, where)
    column = image if kind == "images" else caption
    assert column is not None  # `_named` has raised otherwise
    used = {column, caption, unsafe, ROW_COLUMN, *ABOUT_COLUMNS}
    rows = rows.select_columns([name for name in rows.column_names if name in used])
    if caption:  # known by the name under which captions are looked at
        rows = refuse_minors(rows.rename_column(caption, CAPTION_COLUMNS[0]), where)
        rows = plain_rows(rows, where, args.caption_lists).rename_column(CAPTION_COLUMNS[0], caption)
    rows = numbered(rows).select(np.flatnonzero(items_there(rows, column)))
    known: dict[str, Any] = {"row": rows[ROW_COLUMN]}
    if kind == "images":
        place = find_place(part_off(args.dataset)[0])
        known["path"] = _paths(rows, column, _home(args))
        rows = local_images(rows, column, place.home) if place.home else confined_images(rows, column, place.name)
    if caption:
        known["caption"] = _captions(rows, caption)
    if unsafe:
        known["unsafe"] = _verdicts(rows, unsafe)
    kept = rows.select_columns([column, ROW_COLUMN])
    about = _about(len(rows), split=[split] * len(rows), column=[column] * len(rows), **known)
    return Part(kept, column, "image" if kind == "images" else "text", about)


def _named(rows: Dataset, what: str, asked: str | None, where: str, required: bool) -> str | None:
    """The column of images or of captions: the one that was named, or the only one that there is."""
    listed = ", ".join(rows.column_names)
    if asked:
        if asked not in rows.column_names:
            raise UserError(f"--{what}_column {asked}: {where} has no such column, only {listed}.")
        return asked
    kind = "image" if what == "image" else "text"
    found = [name for name, feature in rows.features.items() if kind == "image" and isinstance(feature, Image)]
    found = found or [name for name, feature in rows.features.items() if modality(name, feature) == kind]
    if len(found) == 1:
        return found[0]
    if required:
        raise UserError(
            f"{where}: which column holds the {what}s is not clear ({', '.join(found) or 'none looks like one'}, of "
            f"{listed}): name it with --{what}_column."
        )
    return None


def _unsafe_column(rows: Dataset, args: IndexedArguments, where: str) -> str | None:
    if args.unsafe_column and args.unsafe_column not in rows.column_names:
        raise UserError(
            f"--unsafe_column {args.unsafe_column}: {where} has no such column, only {', '.join(rows.column_names)}."
        )
    return args.unsafe_column or ("unsafe" if "unsafe" in rows.column_names else None)


def _verdicts(rows: Dataset, column: str) -> list[bool | None]:
    """Whether each row is unsafe, of a column that says so; `None` where its cell is empty."""
    feature, found = rows.features[column], []
    for row, cell in zip(rows[ROW_COLUMN], rows[column], strict=True):
        word = feature.int2str(cell) if hasattr(feature, "int2str") and cell is not None else cell
        label = read_label(cell, row, column, feature)
        said = isinstance(word, str) and word.strip().casefold() in ("safe", "unsafe")  # which means what it says
        found.append(None if label == UNKNOWN else (label == UNSAFE) == said)
    return found


# ---- Quadruplets ----


def _of_sides(rows: Dataset, split: str, kind: str, home: Path | None) -> Iterator[Part]:
    """The images, or the captions, of the safe side and then of the unsafe one."""
    columns = IMAGE_COLUMNS if kind == "images" else CAPTION_COLUMNS
    for column, caption in zip(columns, CAPTION_COLUMNS, strict=True):
        if column not in rows.column_names:
            continue
        some = numbered(rows).select(np.flatnonzero(items_there(rows, column)))
        known: dict[str, Any] = {"split": [split] * len(some), "row": some[ROW_COLUMN], "column": [column] * len(some)}
        if kind == "images":
            known["path"] = _paths(some, column, home)
        if caption in rows.column_names:
            known["caption"] = _captions(some, caption)
        side, label = column == columns[1], LABEL_COLUMNS[ITEM_COLUMNS.index(column)]
        known["unsafe"] = [side] * len(some)
        if label in rows.column_names:
            cells = zip(some[ROW_COLUMN], some[label], strict=True)
            labels = [read_label(cell, row, label, rows.features[label]) for row, cell in cells]
            known["unsafe"] = [side if each == UNKNOWN else each == UNSAFE for each in labels]
        kept = some.select_columns([column, ROW_COLUMN])
        yield Part(kept, column, "image" if kind == "images" else "text", _about(len(some), **known))


# ---- What is known ----


def _about(count: int, **known: Any) -> pa.Table:
    columns = {name: known.get(name, [None] * count) for name in ABOUT.names}
    return pa.table(columns, schema=ABOUT)


def _captions(rows: Dataset, column: str) -> list[str | None]:
    return [cell if isinstance(cell, str) else None for cell in rows[column]]


def _home(args: IndexedArguments) -> Path | None:
    """The folder from which paths are meant; `None` for data from elsewhere."""
    name, _ = part_off(args.dataset)
    return None if name == DEMO else find_place(name).home


def _paths(rows: Dataset, column: str, home: Path | None) -> list[str | None]:
    """How each image is called where it is stored: below `home` from there; `None` where it has no name."""
    found: list[str | None] = []
    for table in rows.select_columns([column]).with_format("arrow").iter(1000):
        cells = table.column(0)
        if pa.types.is_struct(cells.type) and "path" in {field.name for field in cells.type}:
            cells = pc.struct_field(cells, "path")
        texts = pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)
        found += cells.to_pylist() if texts else [None] * len(cells)
    links = folder_of("links")
    return [None if path is None or is_inline(path) else _below(PurePath(path), home, links) for path in found]


def _below(path: PurePath, home: Path | None, links: Path) -> str:
    if path.is_relative_to(links):  # under which `datasets` read it: a key, the folder's name, and what is in it
        return PurePath(*path.relative_to(links).parts[2:]).as_posix()
    return path.relative_to(home).as_posix() if home is not None and path.is_relative_to(home) else str(path)
