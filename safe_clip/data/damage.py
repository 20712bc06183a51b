"""Files that were cut off, or that unpack to more than anybody meant."""

import bz2
import contextlib
import gzip
import logging
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from ..store.writing import whole_file
from .images import CONVERT, LOOKS_LIKE

logger = logging.getLogger(__name__)

MOST_TIMES = 200  # as large as what it was packed into that a file may be
ALWAYS_FINE = 2**30  # bytes that it may be at any rate
END_OF_TAR = 1024  # zeros that close it
NO_END = "is cut off, since a tar ends in zeros, and rows may be missing"
PART = 2**20
OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
NOT_OPENED = (".zst", ".lz4")  # which a package of its own unpacks
CHECKED = (".tar", ".parquet", ".zip", *OPENERS)  # endings of files of which something is told


def opened(path: Path) -> BinaryIO:
    """A file for reading, unpacked where its name says that it is packed; of a zip, its first entry."""
    if path.suffix.lower() == ".zip":
        archive = zipfile.ZipFile(path)
        return archive.open(next(entry for entry in archive.infolist() if not entry.is_dir()))
    return OPENERS.get(path.suffix.lower(), lambda path: open(path, "rb"))(path)


def check_text(path: Path, option: str) -> None:
    """Raises `UserError` for a file that is called a text and begins as something else does."""
    with opened(path) as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, what, cure in LOOKS_LIKE:
        if start and what not in ("text", "JSON", "empty") and re.match(beginning, start, re.DOTALL):
            cure = "call it by its true ending" if cure == CONVERT else cure
            raise UserError(f"{option} {path} could not be loaded: it is {what}, not a table; {cure}.")
    if start.startswith((b"{", b"[{")) and ".json" not in path.name and path.suffix.lower() in (".csv", ".tsv"):
        raise UserError(f"{option} {path} could not be loaded: it is JSON; call it .json or .jsonl.")


def check_files(paths: Iterable[Path], option: str) -> None:
    """Looks at the ends of files, where it shows that a copy broke off; packed ones are unpacked once for it.

    Args:
        paths: files of rows.
        option: the flag that errors name.

    Raises:
        UserError: a file was cut off, is damaged, or unpacks to too much.
    """
    for path in paths:
        if fault := _fault(path):
            cure = "or take what there is with --on_bad_row skip" if is_shard(path) else "or name another file"
            raise UserError(f"{option} {path} could not be loaded: it {fault}. Fetch it anew, {cure}.")


def is_shard(path: Path) -> bool:
    return ".tar" in path.suffixes or path.suffix.lower() == ".tgz"


def whole_part(path: Path, folder: Path) -> Path:
    """A shard itself, or, where it was cut off, a shard of those of its files that are whole.

    Args:
        path: a tar, maybe packed.
        folder: gets the new shard.
    """
    if (fault := _fault(path)) is None:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{path.name.split('.')[0]}.tar"
    with whole_file(whole) as partial, open(partial, "w+b") as file:
        with contextlib.suppress(EOFError, OSError, lzma.LZMAError), opened(path) as packed:
            while part := packed.read1(PART):  # which gives what there is before the end is missed
                file.write(part)
        size, end, count = file.tell(), 0, 0
        file.seek(0)
        with contextlib.suppress(tarfile.TarError, EOFError), tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                stop = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if stop > size:
                    break
                end, count = stop, count + 1
        file.truncate(end)
        file.seek(end)
        file.write(bytes(END_OF_TAR))
    logger.warning("%s: it %s: the %d files that are whole are read.", path, fault, count)
    return whole


def _fault(path: Path) -> str | None:
    suffix = path.suffix.lower()
    size = path.stat().st_size
    if suffix == ".zip":
        return _fault_of_zip(path, size)
    if suffix in OPENERS:
        return _fault_of_packed(path, size)
    with open(path, "rb") as file:
        if suffix == ".tar":
            file.seek(max(0, size - END_OF_TAR))
            return None if size and not any(file.read()) else NO_END
        if suffix == ".parquet":
            file.seek(max(0, size - 4))
            return None if file.read() == b"PAR1" else "is cut off, or is no Parquet file: its end is missing"
    return None


def _fault_of_packed(path: Path, size: int) -> str | None:
    unpacked, end = 0, b""
    try:
        with opened(path) as file:
            while part := file.read(PART):
                unpacked += len(part)
                end = (end + part)[-END_OF_TAR:]
                if unpacked > max(ALWAYS_FINE, MOST_TIMES * size):
                    raise UserError(
                        f"{path} unpacks to more than {MOST_TIMES} times its {size:,} bytes, as what is meant to fill "
                        "a disk does. Unpack it and look, then name what it holds."
                    )
    except (EOFError, OSError, lzma.LZMAError) as error:
        return f"is cut off or damaged ({error})"
    if is_shard(path):
        return NO_END if any(end) or not end else None
    return None


def _fault_of_zip(path: Path, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        return f"is cut off or damaged ({error})"
    if unpacked > max(ALWAYS_FINE, MOST_TIMES * size):
        return f"would unpack to {unpacked:,} bytes, more than {MOST_TIMES} times its own {size:,}"
    return None
