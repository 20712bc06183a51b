"""Small copies of images for pages that are shown."""

import base64
import io

from PIL import Image, ImageFilter

THUMBNAIL = 128  # pixels of the longer side
HIDDEN_PIXELS = 8  # what a hidden image is reduced to before it is enlarged again: nothing can be made out


def data_url(image: Image.Image, hidden: bool, longest: int = THUMBNAIL) -> str:
    """A small copy of an image, its longer side of at most so many pixels, inside a URL; a hidden one is blurred beyond
    recognition."""
    image = image.copy()
    image.info = {}  # comments, which would be saved along
    image.thumbnail((longest, longest))
    if hidden:
        tiny = image.resize((HIDDEN_PIXELS, HIDDEN_PIXELS), Image.Resampling.BOX)
        image = tiny.filter(ImageFilter.GaussianBlur(1)).resize(image.size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
