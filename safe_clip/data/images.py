"""Opening a picture that may be wrong."""

import io
import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError

IN_ZIP = "zip://"  # before "name in the archive::path of the archive", as `datasets` writes it
LOOKS_LIKE = ((b"<!doctype html", "a web page"), (b"<html", "a web page"), (b"<svg", "an SVG drawing"), (b"{", "JSON"))


def open_image(value: Any, row: int, column: str) -> Image.Image:
    """Decodes one cell of an image column.

    Args:
        value: a `PIL.Image`, a path, `zip://name::archive`, encoded bytes, or the `{"bytes", "path"}` of an undecoded
            `datasets.Image` cell.
        row, column: where the cell stands, for the error message.

    Returns:
        The fully decoded picture in RGB mode: the first of an animation, turned upright as its EXIF data say, laid
        onto white where it is transparent, and with 16 bits a channel brought to 8.

    Raises:
        UserError: the cell is empty, or its picture cannot be decoded or is too large.
    """
    where = f"row {row}, column '{column}'"
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise UserError(f"{where}: there is no picture. Fill the cell or remove the row.")
    content = None
    try:
        if isinstance(value, str) and value.startswith(IN_ZIP):
            content = _from_zip(value)
        content = value if isinstance(value, bytes) else content
        source = value if content is None else io.BytesIO(content)
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        return _rgb(ImageOps.exif_transpose(picture))
    # Pillow raises many types for broken files: OSError, SyntaxError, ValueError, its own.
    except Exception as error:
        name = f" ({value})" if isinstance(value, str | Path) else ""
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):  # which would name an address in memory
            reason = f"{type(error).__name__}: it is {_looks_like(_beginning(value) if content is None else content)}"
        elif isinstance(value, str) and "://" in value and not value.startswith(IN_ZIP):
            reason = "it is an address; python -m safe_clip.data.fetch fetches the pictures first"
        raise UserError(
            f"{where}{name}: the picture cannot be read ({reason}). Replace the file or remove the row."
        ) from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # What is left to Pillow is cut at 255, so that nearly all of it is white.
        levels = np.asarray(picture, dtype=np.float64)
        top = 65535 if picture.mode.startswith("I;16") or levels.max(initial=0) > 255 else 255
        return Image.fromarray((levels.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _from_zip(value: str) -> bytes:
    name, _, archive = value.removeprefix(IN_ZIP).partition("::")
    return open_archive(archive, os.getpid()).read(name)


@lru_cache(maxsize=8)
def open_archive(path: str, process: int) -> zipfile.ZipFile:
    """An archive that stays open; each process has its own, since one that is shared would be read from in turns."""
    return zipfile.ZipFile(path)


def _beginning(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _looks_like(content: bytes) -> str:
    if not content:
        return "empty"
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, name in LOOKS_LIKE:
        if start.startswith(beginning) or (beginning == b"<svg" and beginning in start):
            return f"{name}, not a picture that can be read"
    return "no picture, or a broken one"
