"""What a cell of an image column holds: bytes, a file, an entry of a zip, the image itself as text, or numbers."""

import base64
import binascii
import os
import re
import stat
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from ..errors import UserError

IN_ZIP = "zip://"  # before "name in the archive::path of the archive", as `datasets` writes it
IN_FILE = "file://"
INLINE = "data:"
OUTSIDE = "outside://"  # before what a data set from elsewhere named that does not lie in it
MOST_BYTES = 256 * 2**20  # of one encoded image, also when it is unpacked from an archive
SHOWN = 80  # characters of a cell that a message shows
# How images begin, in base64: JPEG, PNG, GIF, WebP, BMP, TIFF.
BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-9a-zA-Z]|SUkqA|TU0AK)[A-Za-z0-9+/_=\s-]{24,}\Z")


def short(text: Any) -> str:
    """A text that a message shows: of a long one its end, where a path tells most."""
    text = str(text)
    text = text if len(text) <= SHOWN else f"{text[:8]}…{text[9 - SHOWN :]}"
    return text.encode("utf-8", "backslashreplace").decode()  # a name in bytes that are not UTF-8


def stored(value: Any) -> Any:
    """What a cell holds, of a `{"bytes", "path"}` the bytes where there are any."""
    if isinstance(value, dict):
        return value.get("bytes") if value.get("bytes") is not None else value.get("path")
    return value


def is_inline(text: str) -> bool:
    """Whether a text is an image itself: a `data:` address, or base64."""
    return text.startswith(INLINE) or bool(BASE64.match(text))


def content(value: Any) -> bytes | Image.Image | None:
    """The encoded image behind a cell, or the decoded one where it holds that.

    Args:
        value: a `PIL.Image`, encoded bytes of any kind, a path, a `file://` address, `zip://name::archive`, base64, a
            `data:` address, numbers as for `from_array`, or the `{"bytes", "path"}` of an undecoded `datasets.Image`
            cell; `None` for an empty one.

    Raises:
        UserError: it names what is not opened, or holds what is no image.
        OSError, KeyError, zipfile.BadZipFile: a file or an entry of a zip that cannot be read.
    """
    value = stored(value)
    if value is None or isinstance(value, bytes | Image.Image):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return _of_text(os.fspath(value))
    return from_array(value)


def _of_text(text: str) -> bytes:
    if text.startswith(OUTSIDE):
        raise UserError(
            "a data set from elsewhere names a file that does not lie in it, which is not opened; download the data "
            "set and name its folder, or name a folder of the images with --safe_images and --unsafe_images"
        )
    if text.startswith(INLINE) or (BASE64.match(text) and not os.path.exists(text)):
        return _inline(text)
    if text.startswith(IN_ZIP):
        name, _, archive = text.removeprefix(IN_ZIP).partition("::")
        if "://" in archive or "::" in archive:
            raise UserError("it is an entry of an archive that lies elsewhere; download the archive first")
        return read_entry(archive, name)
    if text.startswith(IN_FILE):
        return read_file(file_path(text))
    if "://" in text:
        raise UserError("it is an address; safe-clip fetch fetches the images first")
    return read_file(text)


def file_path(address: str) -> str:
    """The path of a `file://` address, whatever bytes it has."""
    path = os.fsdecode(unquote_to_bytes(address.removeprefix(IN_FILE)))
    host, slash, rest = path.partition("/")
    return f"{slash}{rest}" if host in ("", "localhost") else path


def storable(path: Path) -> str:
    """A path as a text that a table can hold: an address where its bytes are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.absolute().as_uri()
    return str(path)


def source_file(cell: str | None) -> str:
    """The file, or the archive, that a cell of text names; nothing where it names none."""
    if not cell or is_inline(cell):
        return ""
    if cell.startswith(IN_ZIP):
        return cell.rpartition("::")[2]
    return file_path(cell) if cell.startswith(IN_FILE) else "" if "://" in cell else cell


def read_file(path: str | Path) -> bytes:
    """A file's bytes; raises `UserError` for what is no file, such as a device or a pipe, or is too large."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise UserError(f"it is {kind}, not a file")
    with open(path, "rb") as file:
        return _bounded(file.read(MOST_BYTES + 1), found.st_size)


def read_entry(archive: str, name: str) -> bytes:
    """An entry of a zip; raises `UserError` where it unpacks to too much, before it is unpacked."""
    opened = open_archive(archive, os.getpid())
    entry = opened.getinfo(name)
    if entry.file_size > MOST_BYTES:
        _bounded(b"", entry.file_size)
    with opened.open(entry) as file:
        return _bounded(file.read(MOST_BYTES + 1), entry.file_size)


def _bounded(content: bytes, size: int) -> bytes:
    if max(len(content), size) > MOST_BYTES:
        raise UserError(f"its {max(len(content), size):,} bytes are more than an image may have, {MOST_BYTES:,}")
    return content


@lru_cache(maxsize=8)
def open_archive(path: str, process: int) -> zipfile.ZipFile:
    """An archive that stays open; each process has its own, since one that is shared would be read from in turns."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError("the archive is a folder, a device, a pipe or a socket, not a file")
    return zipfile.ZipFile(path)


def _inline(text: str) -> bytes:
    head, _, body = text.rpartition(",") if text.startswith(INLINE) else ("", "", text)
    if head and not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        body = re.sub(r"\s", "", body).rstrip("=").translate(str.maketrans("-_", "+/"))
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"its base64 is broken ({error}); write it anew") from error


def from_array(value: Any) -> Image.Image:
    """An image of numbers.

    Args:
        value: an array, tensor or nested lists: height x width, or with 1, 3 or 4 channels, last or first. Whole
            numbers are levels of 0 to 255 (to 65,535 in 16 bits), others of 0 to 1, or to 255 where some are above 1.

    Raises:
        UserError: it has another shape, or other values.
    """
    if hasattr(value, "detach"):  # a tensor, in a type that numpy may lack
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    try:
        levels = np.asarray(value)
    except Exception as error:  # lists of unequal lengths, and whatever an object's own conversion raises
        raise UserError(f"it is neither an image, a file nor an array ({type(value).__name__})") from error
    if levels.dtype.kind not in "buif" or levels.ndim not in (2, 3) or not levels.size:
        shape = f" of shape {levels.shape} and type {levels.dtype}" if levels.ndim else ""
        raise UserError(
            f"a {type(value).__name__}{shape} is no image; give a file, encoded bytes, or an array of height x width "
            "x 3 levels of 0 to 255"
        )
    if levels.ndim == 3 and levels.shape[2] not in (1, 3, 4) and levels.shape[0] in (1, 3, 4):
        levels = np.moveaxis(levels, 0, 2)
    if levels.ndim == 3 and levels.shape[2] not in (1, 3, 4):
        raise UserError(f"an array of shape {levels.shape} has neither 1, 3 nor 4 channels, last or first")
    levels = levels[:, :, 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels
    if not np.isfinite(levels).all() or levels.min() < 0:
        raise UserError("its values are below 0 or no numbers; give levels of 0 to 255, or of 0 to 1")
    most = levels.max()
    top = 1 if levels.dtype.kind == "b" or (levels.dtype.kind == "f" and most <= 1) else 255
    top = 65535 if most > top and levels.dtype.kind in "ui" else top
    if most > top:
        raise UserError(f"its values go up to {most:g}; give levels of 0 to 255, or of 0 to 1")
    return Image.fromarray((levels.astype(np.float64) * (255 / top)).round().astype(np.uint8))
