"""Images that lie elsewhere, under a name or number that each row gives."""

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
from .columns import numbered, stream_columns, with_column

logger = logging.getLogger(__name__)
# The columns by which each side's images are found, the first that a data set has.
ID_COLUMNS = {
    "safe_image": ("coco_id", "image_id", "image_coco_url"),
    "unsafe_image": ("prompt_id", "incremental_id", "coco_id", "image_id", "image_coco_url"),
}
STREAM_IDS = (*dict.fromkeys(name for names in ID_COLUMNS.values() for name in names), "__key__")
# A number in an image's name: COCO_val2014_000000000042.jpg, and 17_1234.png for a seed.
NUMBERS = {"safe_image": r"(?:^|_)(\d+)$", "unsafe_image": r"^(\d+)(?:[_-]|$)"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LISTED = 5
LONGEST_NAME = 200  # bytes, of the 255 that file systems take
CURE = (
    "Add them, or leave these rows out with --missing_images skip, or keep their captions with --missing_images keep."
)


def _id_column(columns: Sequence[str], candidates: Sequence[str], where: str, option: str) -> str:
    found = next((name for name in candidates if name in columns), None)
    if found is None:
        raise UserError(
            f"{option} requires the column {' or '.join(candidates)}, of which {where} has none; it has "
            f"{', '.join(columns)}."
        )
    return found


def image_names(rows: Dataset, column: str, where: str, option: str, id_column: str | None = None) -> list[str | None]:
    """The name of each row's image, without the zeros before a number.

    Args:
        rows: a data set with one of the `ID_COLUMNS` of the column; of an address, its last part counts.
        column: `"safe_image"` or `"unsafe_image"`.
        where, option: what errors call the rows, and the flag.
        id_column: in place of those.

    Raises:
        UserError: there is no such column.
    """
    candidates = [id_column] if id_column else ID_COLUMNS[column]
    return [image_name(cell) for cell in rows[_id_column(rows.column_names, candidates, where, option)]]


def join_images(
    rows: Dataset | IterableDataset, column: str, place: str, where: str, missing_images: str = "error"
) -> Dataset | IterableDataset:
    """Adds a column of images that are named after a number, or a name, in each row.

    An image is found by all of its name or by the number in it: at the end for `safe_image`, as COCO has it
    (`000000000139.jpg`, `COCO_val2014_000000000042.jpg`), at the beginning for `unsafe_image` (`17.png`, `17_1234.png`
    for a seed), of which the first in the order of names is taken.

    Args:
        rows: a data set with one of the `ID_COLUMNS` of the column.
        column: `"safe_image"` or `"unsafe_image"`.
        place: a folder, searched at any depth, or a zip, read in place.
        where: what errors call the rows.
        missing_images: of rows without an image there, `"error"` stops, `"skip"` leaves them out and `"keep"` keeps
            what else they have.

    Raises:
        UserError: there is no such folder or column, rows have no image, or a safe one could be either of two.
    """
    if isinstance(rows, IterableDataset):
        found = _id_column(stream_columns(rows), ID_COLUMNS[column], where, f"--{column}s")
        return _join_stream(rows, column, _by_name(place, column), found, place, missing_images)
    names = image_names(rows, column, where, f"--{column}s")
    files = _by_name(place, column, {each for name in names if name for each in (name, stored_name(name))})
    paths = [_found(files, name) for name in names]
    missing = [str(name) for name, path in zip(names, paths, strict=True) if path is None]
    if missing and (missing_images == "error" or len(missing) == len(paths)):
        raise UserError(
            f"{where}: {len(missing):,} of {len(paths):,} rows have no image in --{column}s {place}, such as "
            f"{', '.join(missing[:LISTED])}. {CURE}"
        )
    rows = with_column(rows, column, paths)
    if not missing:
        return rows
    counts = (where, len(missing), len(paths), place)
    if missing_images == "keep":
        logger.warning("%s: %d of %d rows have no image in %s, but are kept.", *counts)
        return rows
    logger.warning("%s: left out %d of %d rows, which have no image in %s.", *counts)
    return numbered(rows).select([index for index, path in enumerate(paths) if path is not None])


def _join_stream(
    rows: IterableDataset, column: str, files: dict[str, str], found: str, place: str, missing_images: str
) -> IterableDataset:
    """The same for rows that nobody has seen yet: one without an image is only met on the way."""

    def joined(row: dict[str, Any]) -> dict[str, str | None]:
        path = _found(files, image_name(row[found]))
        if path is None and missing_images == "error":
            raise UserError(f"a row has no image in --{column}s {place}: {row[found]}. {CURE}")
        return {column: path}

    features = rows.features and Features({**rows.features, column: Value("string")})
    rows = rows.map(joined, features=features)
    return rows.filter(lambda row: row[column] is not None) if missing_images == "skip" else rows


def _found(files: Mapping[str, str], name: str | None) -> str | None:
    """The image of a name, or of what it is called where it was fetched."""
    return None if name is None else files.get(name) or files.get(stored_name(name))


def _by_name(place: str, column: str, wanted: set[str | None] | None = None) -> dict[str, str]:
    """Those images of a folder or zip that are wanted, all by default, by name or number."""
    found: dict[str, str] = {}
    sizes: dict[str, int] = {}
    any_there = False
    for stem, path, size in _listed(place, column):
        any_there = True
        number = re.search(NUMBERS[column], stem)
        for name in dict.fromkeys([image_name(stem), *([image_name(number[1])] if number else [])]):
            if wanted is not None and name not in wanted:
                continue
            # COCO's years hold the same images; masks and thumbnails beside them are others.
            if column == "safe_image" and sizes.setdefault(name, size) != size:
                raise UserError(
                    f"--{column}s {place} holds two images for {name}: {found[name]} and {path}. Name the folder "
                    "that has the right ones alone."
                )
            found.setdefault(name, path)
            if wanted is not None:
                break
    if not any_there:
        raise UserError(f"--{column}s {place} holds no image.")
    return found


def _listed(place: str, column: str) -> Iterator[tuple[str, str, int]]:
    """Names without their endings, paths and sizes of the images, in the order of names."""
    if Path(place).is_dir():
        seen = set()
        for folder, inside, files in os.walk(place, followlinks=True):
            there = {each: os.path.realpath(Path(folder, each)) for each in inside if each != REPLACED}
            inside[:] = sorted(each for each, real in there.items() if real not in seen)
            seen.update(os.path.realpath(Path(folder, each)) for each in inside)  # a link may lead back
            for path in (Path(folder, file) for file in sorted(files) if _is_image(file)):
                yield path.stem, storable(path), path.stat().st_size
        return
    try:
        entries = open_archive(place, os.getpid()).infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"--{column}s {place} is neither a folder nor a zip ({error}).") from error
    for entry in sorted(entries, key=lambda entry: entry.filename):
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if _is_image(path.name) and "__MACOSX" not in path.parts:
            yield path.stem, f"{IN_ZIP}{entry.filename}::{Path(place).absolute()}", entry.file_size


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")  # nor what a Mac keeps beside one


def stored_name(name: str) -> str:
    """A name as a file may have it: no way out of a folder, nor longer than it may be. What is changed for this, or
    cut off, is replaced by a digest, so that each name has its own."""
    plain = re.sub(r"[^\w-]", "_", name)
    if plain == name and len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{plain.encode(errors='replace')[:LONGEST_NAME].decode(errors='ignore')}-{short_digest(name)}"


def image_name(cell: Any) -> str | None:
    """What a cell, or an image's name, is compared by."""
    if cell is None or (isinstance(cell, float) and not cell.is_integer()):  # with one empty cell, numbers are floats
        return None
    text = str(int(cell) if isinstance(cell, float) else cell).strip()
    text = PurePosixPath(text.partition("?")[0]).stem if "/" in text else text
    return (text.lstrip("0") or "0") if text.isdigit() else text or None
