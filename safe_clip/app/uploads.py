"""Images that people bring: how large they may be, and how they are kept by the browser alone."""

import base64
import io

from PIL import Image

from ..data.images import decoded
from ..errors import UserError

MOST_PIXELS = 50_000_000  # what the largest of telephones take; decoded, 150 MB
SEEN = 640  # pixels of the longer side, beyond which no CLIP sees more
IMAGE, REPORT = "image", "report"  # paths: where images are brought, and where the report of an evaluation is served
LONGEST_QUERY = 1000  # characters
PREFIX = "data:image/png;base64,"


def too_large(most_bytes: int) -> str:
    """What to say of a file that is too large."""
    return f"the file is larger than {most_bytes // 2**20} MB. Choose a smaller one."


def small(content: bytes) -> Image.Image:
    """The image in some bytes.

    Returns:
        RGB, of at most `SEEN` pixels on its longer side.

    Raises:
        UserError: it is no image that can be read, or has too many pixels.
    """
    try:
        image = decoded(content, _check_pixels)
    except UserError as error:
        raise UserError(f"this image cannot be read: {error}.") from error
    image.thumbnail((SEEN, SEEN), Image.Resampling.LANCZOS)
    return image


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise UserError(
            f"it has {image.width:,} x {image.height:,} pixels, more than {MOST_PIXELS // 10**6} million; take a "
            "smaller copy"
        )


def to_url(image: Image.Image) -> str:
    """An image as the browser keeps it, every pixel as it is."""
    image = image.copy()
    image.info = {}
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return PREFIX + base64.b64encode(buffer.getvalue()).decode()


def query_of(words: str | None, kept: str | None) -> str | Image.Image:
    """The query that a browser sends: an image as `to_url` made it, or else words.

    Raises:
        UserError: there is neither, or it is not as it must be.
    """
    if kept:
        try:
            content = base64.b64decode(kept.removeprefix(PREFIX), validate=True)
        except ValueError:
            raise UserError("the image did not arrive whole. Choose it again.") from None
        return small(content)
    words = (words or "").strip()
    if not words:
        raise UserError("type what to look for, or choose an image.")
    if len(words) > LONGEST_QUERY:
        raise UserError(f"these are {len(words):,} characters; at most {LONGEST_QUERY:,} are read.")
    return words
