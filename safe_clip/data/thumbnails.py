"""Small copies of pictures for pages that are shown."""

import base64
import io

from PIL import Image, ImageFilter

THUMBNAIL = 128  # pixels of the longer side
HIDDEN_PIXELS = 8  # what a hidden picture is reduced to before it is enlarged again: nothing can be made out


def data_url(picture: Image.Image, hidden: bool) -> str:
    """A small copy of a picture inside a URL; a hidden one is blurred beyond recognition."""
    picture = picture.copy()
    picture.info = {}  # comments, which would be saved along
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    if hidden:
        tiny = picture.resize((HIDDEN_PIXELS, HIDDEN_PIXELS), Image.Resampling.BOX)
        picture = tiny.filter(ImageFilter.GaussianBlur(1)).resize(picture.size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
