"""Opening an image that may be wrong."""

import io
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from .cells import content, short, stored

# A CLIP sees the square in the middle, less than a hundredth of an image longer than this. It widens the whole until
# the short side fits, which makes 1 x 20,000 pixels 3 GB at the 224 of a ViT-L/14.
MOST_TIMES_AS_LONG = 100
# What Pillow hands to Ghostscript or to Windows to draw, and what may carry such an image inside.
DRAWN_ELSEWHERE = ("EPS", "WMF", "IPTC")
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # chunks of texts, and of a colour profile, which is not applied
ORIENTING = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # texts that may say how an image is turned
MOST_EXIF = 2**16  # bytes
ORIENTATION = 0x0112  # the EXIF tag that says how an image is turned, and how it is turned back
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CONVERT = "convert it to JPEG or PNG"
AGAIN = "fetch it anew"
# How a file begins that Pillow does not know, in small letters; what it is; what to do with it. The first that fits.
LOOKS_LIKE = (
    (rb"\Z", "empty", AGAIN),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch what it stands for with `git lfs pull`"),
    (rb"<(?:!doctype )?html|<head|<body", "a web page", AGAIN),
    (rb"(?:<.*)?<svg", "an SVG drawing", CONVERT),
    (rb"<\?xml", "XML, such as a server's error", AGAIN),
    (rb"[{\[]", "JSON", AGAIN),
    (rb"%pdf", "a PDF", CONVERT),
    (rb"....ftyp(?:hei|hev|mif1|msf1)", "HEIC", CONVERT),
    (rb"....ftypavi[fs]", "AVIF, which this Pillow was built without", CONVERT),
    (rb"\xff\n|\0\0\0\x0cjxl ", "JPEG XL", CONVERT),
    (rb"....ftypcrx|fujifilmccd-raw|ii(?:u\0|r[os])|mm\0r", "a camera's raw data", CONVERT),
    (rb"8bps", "a Photoshop document", CONVERT),
    (rb"v/1\x01|#\?radiance", "light measured in high dynamic range", CONVERT),
    (rb"....(?:ftyp|moov|mdat)|riff....avi |\x1ae\xdf\xa3|flv\x01|\0\0\x01\xba", "a video", "take a frame out of it"),
    (rb"pk\x03\x04|rar!|7z\xbc\xaf|\x1f\x8b|bzh|\xfd7zxz|.{257}ustar", "an archive, or compressed", "unpack it"),
    (rb"\xff\xd8\xff|\x89png|gif8|riff....webp|ii\*\0|mm\0\*", "the beginning of an image", AGAIN),
    (rb"[\t\n\r -~]+\Z", "text", AGAIN),
)


def open_image(value: Any, row: int | str, column: str) -> Image.Image:
    """Decodes one cell of an image column.

    Args:
        value: as for `cells.content`.
        row, column: where the cell stands, for the error message.

    Returns:
        The fully decoded image in RGB mode: the first of an animation, turned upright as its EXIF data say, laid
        onto white where it is transparent, and with 16 bits a channel, or numbers up to 1, brought to 8 bits.

    Raises:
        UserError: the cell is empty, or its image cannot be decoded, is too large or long, or would be drawn by
            another program.
    """
    where = f"row {row}, column '{column}'"
    value = stored(value)
    if value is None:
        raise UserError(f"{where}: there is no image. Fill the cell or remove the row.")
    try:
        return decoded(value)
    except UserError as error:
        name = f" ({short(os.fspath(value))})" if isinstance(value, str | os.PathLike) else ""
        raise UserError(
            f"{where}{name}: the image cannot be read ({error}). Replace the file or remove the row."
        ) from error


def decoded(value: Any, check: Callable[[Image.Image], None] = lambda image: None) -> Image.Image:
    """An image as `open_image` gives it, of which nobody knows a place.

    Args:
        value: as for `cells.content`.
        check: raises `UserError` for what the header of an image says, before it is decoded.

    Raises:
        UserError: why it cannot be read.
    """
    found = None
    try:
        image = look_at(found := content(value))
        _check(image)
        check(image)
        return _rgb(_upright(image))
    # Pillow raises many types for broken files: OSError, SyntaxError, ValueError, its own.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):  # of what the image is, not yet where
            reason = str(error)
        elif isinstance(error, UnidentifiedImageError):  # which would name an address in memory
            reason = f"{type(error).__name__}: it is {_looks_like(found)}"
        elif isinstance(error, OSError) and error.filename:  # which may be a long text that is no name
            reason = f"{type(error).__name__}: {error.strerror}"
        raise UserError(reason) from error


def look_at(value: Any) -> Image.Image:
    """A stored image as its file has it, opened and not decoded yet; raises what Pillow and the system raise."""
    found = content(value)
    return found if isinstance(found, Image.Image) else Image.open(io.BytesIO(without_texts(found)))


def without_texts(encoded: bytes) -> bytes:
    """A PNG without the chunks that say nothing of its pixels, which generators fill with more than Pillow takes.

    What is no PNG, or has no such chunks, is given back as it is.
    """
    if not encoded.startswith(PNG):
        return encoded
    kept, place, start = [], len(PNG), 0
    while place + 8 <= len(encoded):
        end = place + 12 + int.from_bytes(encoded[place : place + 4], "big")
        kind = encoded[place + 4 : place + 8]
        orients = end - place <= MOST_EXIF and encoded.startswith(ORIENTING, place + 8)
        if (kind in TEXTS and not orients) or (kind == b"eXIf" and end - place > MOST_EXIF):
            kept.append(encoded[start:place])
            start = end
        place = end
    return b"".join([*kept, encoded[start:]]) if kept else encoded


def _upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF data say, where they can be read."""
    image.load()  # they may stand behind the pixels
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # Pillow raises many types for broken data, whose pixels are none the worse
        turn = None
    return image if turn is None else image.transpose(turn)


def _check(image: Image.Image) -> None:
    """Refuses an image before it is decoded, for what its header says."""
    if image.format in DRAWN_ELSEWHERE:
        raise UserError(f"{image.format} is drawn by other programs, which are not started here; {CONVERT}")
    short, long = sorted(image.size)
    if long > MOST_TIMES_AS_LONG * short:
        raise UserError(
            f"its {image.width:,} x {image.height:,} pixels are a strip, more than {MOST_TIMES_AS_LONG} times as "
            "long as wide; cut out what matters"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # What is left to Pillow is cut at 255, so that nearly all of it is white.
        levels = np.asarray(image, dtype=np.float32)
        if not np.isfinite(levels).all():
            raise UserError(f"it holds values that are no numbers; {CONVERT}")
        most = levels.max(initial=0)
        top = 65535 if image.mode.startswith("I;16") or most > 255 else 255
        top = 1 if image.mode == "F" and most <= 1 else top
        return Image.fromarray((levels.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _looks_like(content: bytes) -> str:
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, what, cure in LOOKS_LIKE:
        if re.match(beginning, start, re.DOTALL):
            return f"{what}, not an image that can be read; {cure}"
    return "no image, or a broken one"
