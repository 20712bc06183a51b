"""Columns of known data sets, and pictures that lie elsewhere under a row's number."""

import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, Value

from ..errors import UserError
from .images import IN_ZIP, open_archive

logger = logging.getLogger(__name__)

# Of data sets as they were published: their columns, and what the schema calls them.
PRESETS = {
    "ViSU-Text": {"safe": "safe_caption", "nsfw": "unsafe_caption", "tag": "category"},
    "NSFWCaps": {"caption": "safe_caption", "nsfw_caption": "unsafe_caption", "chosen_category": "category"},
}
# The columns by which each side's pictures are found, the first that a data set has.
ID_COLUMNS = {"safe_image": ("coco_id", "image_id"), "unsafe_image": ("prompt_id", "incremental_id", "coco_id")}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LISTED = 5


def known_columns(columns: list[str]) -> tuple[str, dict[str, str]] | None:
    """The preset whose captions a data set has, and how it renames the columns that are there.

    Nothing where the data set has captions of the schema already.
    """
    for name, mapping in PRESETS.items():
        captions = [old for old, new in mapping.items() if new.endswith("caption")]
        if set(captions) <= set(columns) and not {"safe_caption", "unsafe_caption"} & set(columns):
            return name, {old: new for old, new in mapping.items() if old in columns and new not in columns}
    return None


def local_pictures(rows: Dataset, column: str, folder: Path) -> Dataset:
    """Paths of a column of text, which are meant from the folder where the data set lies."""
    if not isinstance(rows.features.get(column), Value) or rows.features[column].dtype not in (
        "string",
        "large_string",
    ):
        return rows

    def placed(cells: list[str | None]) -> dict[str, list[str | None]]:
        return {column: [str(folder / cell) if cell and "://" not in cell else cell for cell in cells]}

    return rows.map(placed, batched=True, input_columns=column, desc=f"Finding {column}")


def join_pictures(rows: Dataset, column: str, place: str, where: str, skip_missing: bool = False) -> Dataset:
    """Adds a column of pictures that are named after a number in each row.

    The number is the last one in a picture's name for `safe_image`, as COCO has it (`000000000139.jpg`,
    `COCO_val2014_000000000042.jpg`), and the first one for `unsafe_image` (`17.png`, `17_1234.png` for a seed). Of
    several pictures the first in the order of names is taken.

    Args:
        rows: a data set with one of the `ID_COLUMNS` of the column.
        column: `"safe_image"` or `"unsafe_image"`.
        place: a folder, searched at any depth, or a zip, read in place.
        where: what errors call the rows.
        skip_missing: leave out rows without a picture in place of raising.

    Raises:
        UserError: there is no such folder or number, or rows have no picture.
    """
    number = next((name for name in ID_COLUMNS[column] if name in rows.column_names), None)
    if number is None:
        raise UserError(
            f"--{column}s finds pictures by the column {' or '.join(ID_COLUMNS[column])}, of which {where} has none; "
            f"its columns are {', '.join(rows.column_names)}. Name it with --column_mapping."
        )
    files = _numbered(place, column)
    paths = [files.get(_digits(value)) for value in rows[number]]
    missing = [str(value) for value, path in zip(rows[number], paths, strict=True) if path is None]
    if missing and (not skip_missing or len(missing) == len(paths)):
        raise UserError(
            f"{where}: {len(missing):,} of {len(paths):,} rows have no picture in --{column}s {place}, such as "
            f"{number} {', '.join(missing[:LISTED])}. Add them, or leave these rows out with --skip_missing."
        )
    if missing:
        logger.warning("%s: left out %d rows without a picture in %s.", where, len(missing), place)
    rows = rows.remove_columns([column]) if column in rows.column_names else rows
    rows = rows.add_column(column, paths)
    return rows.select([index for index, path in enumerate(paths) if path is not None]) if missing else rows


def _numbered(place: str, column: str) -> dict[str, str]:
    """Pictures of a folder or zip by the number in their names."""
    found: dict[str, str] = {}
    which = -1 if column == "safe_image" else 0
    for name, path in _listed(place, column):
        numbers = re.findall(r"\d+", Path(name).stem)
        if numbers:
            found.setdefault(_digits(numbers[which]), path)
    if not found:
        raise UserError(f"--{column}s {place} holds no picture with a number in its name.")
    return found


def _listed(place: str, column: str) -> Iterator[tuple[str, str]]:
    """Names and paths of the pictures, in the order of names."""
    if Path(place).is_dir():
        for path in sorted(Path(place).rglob("*")):
            if path.suffix.lower() in PICTURES:
                yield path.name, str(path)
    elif zipfile.is_zipfile(place):
        for name in sorted(open_archive(place, 0).namelist()):
            if name.lower().endswith(PICTURES):
                yield name, f"{IN_ZIP}{name}::{Path(place).absolute()}"
    else:
        raise UserError(f"--{column}s {place} is neither a folder nor a zip.")


def _digits(value: object) -> str:
    """A number without the zeros before it; another name as it is."""
    return str(value).strip().lstrip("0") or "0"
