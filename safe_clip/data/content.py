"""Data known by what they hold, whatever the times of their files say."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher

from ..store.fingerprints import WHOLE_FILE, digest, file_digest
from ..store.folders import folder_of
from .cells import IN_ZIP, source_file
from .image_join import IMAGE_SUFFIXES


def column_digest(rows: Dataset, column: str) -> str:
    """A digest of a column of images: of what their cells hold, or what the files hold that these name."""
    archives: dict[str, dict[str, str]] = {}
    return digest(part for cell in _cells(rows, column) for part in (*_known_by(cell, archives), b"\0"))


def _cells(rows: Dataset, column: str) -> Iterator[Any]:
    """What is stored: buffers that are not copied, texts, `None`, or whatever else."""
    for table in rows.select_columns([column]).with_format("arrow").iter(1000):
        for chunk in table.column(0).chunks:
            if pa.types.is_struct(chunk.type) and {"bytes", "path"} == {field.name for field in chunk.type}:
                held, paths = (pc.struct_field(chunk, name) for name in ("bytes", "path"))
                for content, path in zip(held, paths, strict=True):
                    yield content.as_buffer() if content.is_valid else path.as_py()
            elif pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
                yield from (cell.as_buffer() if cell.is_valid else None for cell in chunk)
            else:
                yield from (cell.as_py() for cell in chunk)


def _known_by(cell: Any, archives: dict[str, dict[str, str]]) -> Iterator[bytes]:
    if isinstance(cell, pa.Buffer):
        view = memoryview(cell)
        yield str(len(view)).encode()
        yield view
    elif isinstance(cell, str) and cell.startswith(IN_ZIP):
        yield _in_zip(cell, archives).encode()
    elif isinstance(cell, str) and os.path.isfile(file := source_file(cell)):  # a pipe would never end
        yield _file_known_by(file).encode()
    else:
        yield repr(cell).encode(errors="surrogatepass")


def _file_known_by(file: str | Path) -> str:
    """What a file holds; of what is too large to be read, samples and its time, since these may miss a change."""
    status = Path(file).stat()
    return file_digest(file) + (f" {status.st_mtime_ns}" if status.st_size > WHOLE_FILE else "")


def _in_zip(cell: str, archives: dict[str, dict[str, str]]) -> str:
    """The checksum that an archive has of a file in it."""
    name, _, archive = cell.removeprefix(IN_ZIP).partition("::")
    try:
        if archive not in archives:
            with zipfile.ZipFile(archive) as opened:
                archives[archive] = {entry.filename: f"{entry.file_size} {entry.CRC}" for entry in opened.infolist()}
        return archives[archive][name]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # told where the image is opened
        return cell


# ---- Caches ----


def cache_of(files: Sequence[Path]) -> Path | None:
    """Where `datasets` shall keep what it makes of local files: a folder for each content, since of the files
    themselves it knows no more than their times. `None` where there are none."""
    if not files:
        return None
    # Of images, `datasets` keeps no more than where they are.
    known = [
        (str(path), path.stat().st_size if path.suffix.lower() in IMAGE_SUFFIXES else _file_known_by(path))
        for path in files
    ]
    return folder_of("rows") / Hasher.hash(known)


def known_by_content(splits: DatasetDict | Dataset) -> DatasetDict | Dataset:
    """Rows whose fingerprint changes with their files; what `save_to_disk` wrote has it in a file of its own."""
    for rows in splits.values() if isinstance(splits, DatasetDict) else [splits]:
        if isinstance(rows, Dataset) and rows.cache_files:
            files = [_file_known_by(file["filename"]) for file in rows.cache_files]
            rows._fingerprint = Hasher.hash([rows._fingerprint, files])
    return splits
