"""Columns of known data sets, and pictures that lie elsewhere under a name that each row tells."""

import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value

from ..errors import UserError
from ..outputs import REPLACED
from ..store.fingerprints import short_digest
from .cells import IN_ZIP, open_archive, storable
from .column_names import ABOUT, modality, pair_of_captions, senses, words
from .features import inner_feature, is_text
from .items import ITEM_COLUMNS, ROW_COLUMN

logger = logging.getLogger(__name__)

# Of data sets as they were published: their columns, and what the schema calls them.
PRESETS = {
    "ViSU-Text": {"safe": "safe_caption", "nsfw": "unsafe_caption", "tag": "category"},
    "NSFWCaps": {"caption": "safe_caption", "nsfw_caption": "unsafe_caption", "chosen_category": "category"},
}
LISTS = {"a list of prompts, such as I2P": {"prompt": "unsafe_caption", "categories": "category"}}
# One of these beside prompts tells that they are such a list.
LIST_MARKS = {"categories", "inappropriate_percentage", "nudity_percentage", "q16_percentage", "lexica_url"}
REPLIES = {"response", "responses", "answer", "answers", "completion", "output", "reply", "chosen", "rejected"}
# The columns by which each side's pictures are found, the first that a data set has.
ID_COLUMNS = {
    "safe_image": ("coco_id", "image_id", "image_coco_url"),
    "unsafe_image": ("prompt_id", "incremental_id", "coco_id", "image_id", "image_coco_url"),
}
STREAM_IDS = (*dict.fromkeys(name for names in ID_COLUMNS.values() for name in names), "__key__")
# A number in a picture's name: COCO_val2014_000000000042.jpg, and 17_1234.png for a seed.
NUMBERS = {"safe_image": r"(?:^|_)(\d+)$", "unsafe_image": r"^(\d+)(?:[_-]|$)"}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LISTED = 5
LONGEST_NAME = 200  # bytes, of the 255 that file systems take
NEW_COLUMN = "safe_clip_new"  # a name that nobody has
CURE = (
    "Add them, or leave these rows out with --missing_pictures skip, or keep their captions with "
    "--missing_pictures keep."
)


def known_columns(
    columns: list[str], features: Mapping[str, Any] | None = None, sure: bool = True
) -> tuple[str, dict[str, str]] | None:
    """The preset whose captions a data set has, and how it renames the columns that are there.

    Nothing where the data set has captions of the schema already, or where another column makes it doubtful that the
    preset's are captions, or of which side.

    Args:
        columns: the names of all columns.
        features: of them, where they are known.
        sure: give nothing in doubt; otherwise the first preset whose columns there are.
    """
    if {"safe_caption", "unsafe_caption"} & set(columns):
        return None
    pair = pair_of_captions(columns, features)
    for name, mapping in {**PRESETS, **({"pairs of captions": pair} if pair else {}), **LISTS}.items():
        captions = [old for old, new in mapping.items() if new.endswith("caption")]
        if not set(captions) <= set(columns) or not all(_may_hold_text(each, features) for each in captions):
            continue
        if sure and (_undecided_list if name in LISTS else _undecided_pair)(captions, columns, features):
            continue
        return name, {old: new for old, new in mapping.items() if old in columns and new not in columns}
    return None


def _undecided_pair(captions: list[str], columns: list[str], features: Mapping[str, Any] | None) -> bool:
    """Whether another column of captions says its side, or is called one where the preset's own are not, so that
    theirs may be flags."""
    others = [name for name in columns if name not in captions]
    texts = [name for name in others if modality(name, (features or {}).get(name)) == "text"]
    flags = any(modality(name) != "text" for name in captions)
    return any(flags or senses(name) for name in texts)


def _undecided_list(captions: list[str], columns: list[str], features: Mapping[str, Any] | None) -> bool:
    """Whether prompts may be of either side: nothing marks them as unsafe, or there are other items, or verdicts."""
    if not LIST_MARKS & set(columns):
        return True
    others = [name for name in columns if name not in {*captions, *LIST_MARKS}]
    return any(
        name in ITEM_COLUMNS
        or modality(name, (features or {}).get(name)) is not None
        or REPLIES & set(words(name))
        or (senses(name) and not ABOUT & set(words(name)))
        for name in others
    )


def _may_hold_text(column: str, features: Mapping[str, Any] | None) -> bool:
    feature = inner_feature((features or {}).get(column))
    return not isinstance(feature, Value) or is_text(feature) or feature.dtype == "null"


def stream_columns(rows: IterableDataset) -> list[str]:
    """The names of a stream's columns, for which its first row may have to be read."""
    return list(next(iter(rows), {})) if rows.column_names is None else rows.column_names


def numbered(rows: Dataset) -> Dataset:
    """Rows that still know their numbers when some are picked out."""
    return rows if ROW_COLUMN in rows.column_names else rows.add_column(ROW_COLUMN, list(range(len(rows))))


def with_column(rows: Dataset, column: str, cells: Sequence[Any], feature: Any = None) -> Dataset:
    """Rows with a column of these cells, in place of the one of that name, if there is one."""
    if column not in rows.column_names:
        return rows.add_column(column, list(cells), feature=feature)
    # Without any column, rows would forget how many they are.
    made = rows.add_column(NEW_COLUMN, list(cells), feature=feature)
    return made.remove_columns([column]).rename_column(NEW_COLUMN, column)


def _id_column(columns: Sequence[str], candidates: Sequence[str], where: str, option: str) -> str:
    found = next((name for name in candidates if name in columns), None)
    if found is None:
        raise UserError(
            f"{option} wants the column {' or '.join(candidates)}, of which {where} has none; it has "
            f"{', '.join(columns)}."
        )
    return found


def picture_names(
    rows: Dataset, column: str, where: str, option: str, id_column: str | None = None
) -> list[str | None]:
    """The name of each row's picture, without the zeros before a number.

    Args:
        rows: a data set with one of the `ID_COLUMNS` of the column; of an address, its last part counts.
        column: `"safe_image"` or `"unsafe_image"`.
        where, option: what errors call the rows, and the flag.
        id_column: in place of those.

    Raises:
        UserError: there is no such column.
    """
    candidates = [id_column] if id_column else ID_COLUMNS[column]
    return [picture_name(cell) for cell in rows[_id_column(rows.column_names, candidates, where, option)]]


def join_pictures(
    rows: Dataset | IterableDataset, column: str, place: str, where: str, missing_pictures: str = "error"
) -> Dataset | IterableDataset:
    """Adds a column of pictures that are named after a number, or a name, in each row.

    A picture is found by all of its name or by the number in it: at the end for `safe_image`, as COCO has it
    (`000000000139.jpg`, `COCO_val2014_000000000042.jpg`), at the beginning for `unsafe_image` (`17.png`, `17_1234.png`
    for a seed), of which the first in the order of names is taken.

    Args:
        rows: a data set with one of the `ID_COLUMNS` of the column.
        column: `"safe_image"` or `"unsafe_image"`.
        place: a folder, searched at any depth, or a zip, read in place.
        where: what errors call the rows.
        missing_pictures: of rows without a picture there, `"error"` stops, `"skip"` leaves them out and `"keep"` keeps
            what else they have.

    Raises:
        UserError: there is no such folder or column, rows have no picture, or a safe one could be either of two.
    """
    if isinstance(rows, IterableDataset):
        found = _id_column(stream_columns(rows), ID_COLUMNS[column], where, f"--{column}s")
        return _join_stream(rows, column, _by_name(place, column), found, place, missing_pictures)
    names = picture_names(rows, column, where, f"--{column}s")
    files = _by_name(place, column, {each for name in names if name for each in (name, stored_name(name))})
    paths = [_found(files, name) for name in names]
    missing = [str(name) for name, path in zip(names, paths, strict=True) if path is None]
    if missing and (missing_pictures == "error" or len(missing) == len(paths)):
        raise UserError(
            f"{where}: {len(missing):,} of {len(paths):,} rows have no picture in --{column}s {place}, such as "
            f"{', '.join(missing[:LISTED])}. {CURE}"
        )
    rows = with_column(rows, column, paths)
    if not missing:
        return rows
    told = (where, len(missing), len(paths), place)
    if missing_pictures == "keep":
        logger.warning("%s: %d of %d rows have no picture in %s, but are kept.", *told)
        return rows
    logger.warning("%s: left out %d of %d rows, which have no picture in %s.", *told)
    return numbered(rows).select([index for index, path in enumerate(paths) if path is not None])


def _join_stream(
    rows: IterableDataset, column: str, files: dict[str, str], found: str, place: str, missing_pictures: str
) -> IterableDataset:
    """The same for rows that nobody has seen yet: one without a picture is only met on the way."""

    def joined(row: dict[str, Any]) -> dict[str, str | None]:
        path = _found(files, picture_name(row[found]))
        if path is None and missing_pictures == "error":
            raise UserError(f"a row has no picture in --{column}s {place}: {row[found]}. {CURE}")
        return {column: path}

    features = rows.features and Features({**rows.features, column: Value("string")})
    rows = rows.map(joined, features=features)
    return rows.filter(lambda row: row[column] is not None) if missing_pictures == "skip" else rows


def _found(files: Mapping[str, str], name: str | None) -> str | None:
    """The image of a name, or of what it is called where it was fetched."""
    return None if name is None else files.get(name) or files.get(stored_name(name))


def _by_name(place: str, column: str, wanted: set[str | None] | None = None) -> dict[str, str]:
    """Those pictures of a folder or zip that are wanted, all by default, by name or number."""
    found: dict[str, str] = {}
    sizes: dict[str, int] = {}
    any_there = False
    for stem, path, size in _listed(place, column):
        any_there = True
        number = re.search(NUMBERS[column], stem)
        for name in dict.fromkeys([picture_name(stem), *([picture_name(number[1])] if number else [])]):
            if wanted is not None and name not in wanted:
                continue
            # COCO's years hold the same pictures; masks and thumbnails beside them are others.
            if column == "safe_image" and sizes.setdefault(name, size) != size:
                raise UserError(
                    f"--{column}s {place} holds two pictures for {name}: {found[name]} and {path}. Name the folder "
                    "that has the right ones alone."
                )
            found.setdefault(name, path)
            if wanted is not None:
                break
    if not any_there:
        raise UserError(f"--{column}s {place} holds no picture.")
    return found


def _listed(place: str, column: str) -> Iterator[tuple[str, str, int]]:
    """Names without their endings, paths and sizes of the pictures, in the order of names."""
    if Path(place).is_dir():
        seen = set()
        for folder, inside, files in os.walk(place, followlinks=True):
            there = {each: os.path.realpath(Path(folder, each)) for each in inside if each != REPLACED}
            inside[:] = sorted(each for each, real in there.items() if real not in seen)
            seen.update(os.path.realpath(Path(folder, each)) for each in inside)  # a link may lead back
            for path in (Path(folder, file) for file in sorted(files) if _is_picture(file)):
                yield path.stem, storable(path), path.stat().st_size
        return
    try:
        entries = open_archive(place, os.getpid()).infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"--{column}s {place} is neither a folder nor a zip ({error}).") from error
    for entry in sorted(entries, key=lambda entry: entry.filename):
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if _is_picture(path.name) and "__MACOSX" not in path.parts:
            yield path.stem, f"{IN_ZIP}{entry.filename}::{Path(place).absolute()}", entry.file_size


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES) and not name.startswith(".")  # nor what a Mac keeps beside one


def stored_name(name: str) -> str:
    """A name as a file may have it: no way out of a folder, nor longer than it may be. What is changed for this, or
    cut off, is replaced by a digest, so that each name has its own."""
    plain = re.sub(r"[^\w-]", "_", name)
    if plain == name and len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{plain.encode(errors='replace')[:LONGEST_NAME].decode(errors='ignore')}-{short_digest(name)}"


def picture_name(cell: Any) -> str | None:
    """What a cell, or a picture's name, is compared by."""
    if cell is None or (isinstance(cell, float) and not cell.is_integer()):  # with one empty cell, numbers are floats
        return None
    text = str(int(cell) if isinstance(cell, float) else cell).strip()
    text = PurePosixPath(text.partition("?")[0]).stem if "/" in text else text
    return (text.lstrip("0") or "0") if text.isdigit() else text or None
