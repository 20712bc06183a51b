"""Opening a picture that may be wrong."""

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..errors import UserError


def open_image(value: Any, row: int, column: str) -> Image.Image:
    """Decodes one cell of an image column.

    Args:
        value: a `PIL.Image`, a path, encoded bytes, or the `{"bytes", "path"}` of an undecoded
            `datasets.Image` cell.
        row, column: where the cell stands, for the error message.

    Returns:
        The fully decoded picture in RGB mode, turned upright as its EXIF data say.

    Raises:
        UserError: the cell is empty or its picture cannot be decoded.
    """
    where = f"row {row}, column '{column}'"
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise UserError(f"{where}: there is no picture. Fill the cell or remove the row.")
    try:
        if isinstance(value, bytes):
            value = io.BytesIO(value)
        picture = value if isinstance(value, Image.Image) else Image.open(value)
        return ImageOps.exif_transpose(picture).convert("RGB")
    # Pillow raises many types for broken files: OSError, SyntaxError, ValueError, its own.
    except Exception as error:
        name = f" ({value})" if isinstance(value, str | Path) else ""
        reason = str(error).replace(repr(value), "its bytes")  # whose address in memory tells nobody anything
        raise UserError(
            f"{where}{name}: the picture cannot be read ({type(error).__name__}: {reason}). "
            "Replace the file or remove the row."
        ) from error
