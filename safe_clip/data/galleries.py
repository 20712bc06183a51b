"""Images without captions: a folder, a data set, or a list of URLs or files."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import datasets
from datasets import Dataset, Image, Value, concatenate_datasets
from PIL import Image as PILImage

from ..errors import UserError
from ..store.folders import folder_of
from .cells import short, storable
from .fetch_settings import FetchSettings
from .fetching import fetched, without_secrets
from .items import ROW_COLUMN
from .places import SAVED
from .sources import load_splits

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".urls")
SETTINGS = FetchSettings(tries=3)
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
ELSEWHERE = ("--allow_private fetches", "safe-clip fetch --allow_private fetches")


def load_images(name: str, option: str = "--unsafe_gallery") -> tuple[Dataset, list[str]]:
    """Loads images from wherever they lie.

    Args:
        name: a folder of images, at any depth; a data set as for `load_splits`, of which all splits are taken;
            or a text file with one URL or path a line (in .csv and .tsv, in the first column), where empty lines
            and those that begin with # are left out. What is fetched is cached and not fetched again.
        option: the flag that errors name.

    Returns:
        A data set with one column `image`, and a line for every image that could not be had.

    Raises:
        UserError: there is nothing by this name, or no image in it.
    """
    path = Path(name)
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        rows, missing = _listed(path, option)
    else:
        if path.is_file():
            raise UserError(f"{option} {name} is neither a folder nor a list, whose name ends in {LIST_SUFFIXES}.")
        missing = []
        files = image_files(path)
        if files:
            rows = Dataset.from_dict({"image": [storable(file) for file in files]}).cast_column("image", Image())
        else:
            splits = load_splits(name, option=option, whole=True)
            rows = concatenate_datasets([_images(rows, f"{option} {name}") for rows in splits.values()])
    if not len(rows):
        detail = f" {missing[0]}" if missing else ""
        raise UserError(f"{option} {name} holds no image that could be had.{detail}")
    return rows, missing


def image_files(folder: Path) -> list[Path]:
    """The images in a folder at any depth, whatever else lies there; none in a saved data set."""
    if not folder.is_dir() or any((folder / name).exists() for name in SAVED):
        return []
    suffixes = PILImage.registered_extensions()
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())


def _images(rows: Dataset, where: str) -> Dataset:
    """The one column of images, as `image`."""
    columns = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if len(columns) != 1:
        raise UserError(
            f"{where}: there should be one column of images, but there are {len(columns)} among "
            f"{', '.join(rows.column_names)}."
        )
    rows = rows.select_columns(columns)
    return rows if columns == ["image"] else rows.rename_column(columns[0], "image")


def _listed(path: Path, option: str) -> tuple[Dataset, list[str]]:
    """Images of a list, by path, each with the number of its line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} cannot be read: {error}.") from error
    entries = [(number, entry) for number, entry in enumerate(_entries(text, path.suffix.lower()), 1) if entry]
    addresses = [entry for _, entry in entries if ADDRESS.match(entry)]
    kept = _fetched(addresses)
    found = [kept[entry] if entry in kept else _local(entry, path.parent) for _, entry in entries]
    have = [(number, file) for (number, _), (file, _) in zip(entries, found, strict=True) if file]
    missing = [
        f"{path.name}, line {number} ({without_secrets(short(entry))}): {reason}"
        for (number, entry), (_, reason) in zip(entries, found, strict=True)
        if reason
    ]
    rows = Dataset.from_dict({"image": [file for _, file in have], ROW_COLUMN: [number for number, _ in have]})
    return rows.cast_column("image", Value("string")), missing


def _entries(text: str, suffix: str) -> list[str]:
    """What each line asks for: all of it, or the first cell of a table; nothing for headings and comments."""
    lines = text.splitlines()
    if suffix in (".csv", ".tsv"):
        cells = [next(csv.reader([line], delimiter="\t" if suffix == ".tsv" else ","), [""])[0:1] for line in lines]
        lines = [cell[0] if cell else "" for cell in cells]
        if lines and not re.search(r"[./\\]", lines[0]):
            lines[0] = ""  # a heading
    return ["" if line.lstrip().startswith("#") else line.strip() for line in lines]


def _local(entry: str, folder: Path) -> tuple[str | None, str | None]:
    """A local path, or why there is none."""
    if "://" in entry:
        return None, "only http and https are fetched"
    file = folder / entry
    try:
        return (storable(file), None) if file.is_file() else (None, "there is no such file")
    except (OSError, ValueError) as error:  # a name too long, or with NUL characters
        return None, f"{type(error).__name__}: {getattr(error, 'strerror', error)}"


def _fetched(addresses: list[str]) -> dict[str, tuple[str | None, str | None]]:
    """By address, the file where its image is kept, or why there is none."""
    if not addresses:
        return {}
    settings = replace(SETTINGS, tries=0) if datasets.config.HF_HUB_OFFLINE else SETTINGS
    folder = folder_of("fetched")
    found = fetched(list(dict.fromkeys(addresses)), folder, settings)
    return {
        address: (str(what), None) if isinstance(what, Path) else (None, what.replace(*ELSEWHERE))
        for address, what in found.items()
    }
