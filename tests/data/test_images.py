"""Pictures as the world has them, and what is none."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from safe_clip import UserError
from safe_clip.data.images import open_image

SIZE = (8, 6)
RED = Image.new("RGB", SIZE, (200, 30, 30))


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "TGA", "ICO", "JPEG2000", "DDS", "PCX"])
def test_formats_give_their_colours(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = open_image(encoded(RED, kind, **options), 0, "safe_image")
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture).astype(int)[0, 0] - (200, 30, 30)).max() <= 2


def test_transparency_is_laid_onto_white():
    half = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 4, 6))
    grey = Image.new("LA", SIZE, (0, 0))
    palette = Image.new("P", SIZE, 0)
    palette.putpalette([10, 20, 30] * 256)
    for content in (
        encoded(half, "PNG"),
        encoded(grey, "PNG"),
        encoded(palette, "PNG", transparency=0),
        encoded(palette, "GIF", transparency=0),
        encoded(half, "WEBP", lossless=True),
    ):
        assert open_image(content, 0, "safe_image").getpixel((7, 5)) == (255, 255, 255)
    assert open_image(encoded(half, "PNG"), 0, "safe_image").getpixel((0, 0)) == (0, 0, 255)


def test_sixteen_bits_are_brought_to_eight():
    levels = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    picture = open_image(encoded(Image.fromarray(levels), "PNG"), 0, "safe_image")
    assert np.array_equal(np.asarray(picture)[..., 1], (levels / 257.0).round().astype(np.uint8))
    dark = Image.fromarray(np.full((6, 8), 200, dtype=np.uint16))
    assert open_image(encoded(dark, "PNG"), 0, "safe_image").getpixel((3, 3)) == (1, 1, 1)
    floats = Image.fromarray(np.full((6, 8), 99.6, dtype=np.float32))
    assert open_image(encoded(floats, "TIFF"), 0, "safe_image").getpixel((3, 3)) == (100, 100, 100)


def test_grey_black_and_white_cmyk_and_tiny_pictures():
    for picture, expected in (
        (Image.new("L", SIZE, 77), (77, 77, 77)),
        (Image.new("1", SIZE, 1), (255, 255, 255)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
    ):
        assert open_image(encoded(picture, "PNG"), 0, "safe_image").getpixel((0, 0)) == expected
    cmyk = encoded(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.asarray(open_image(cmyk, 0, "safe_image"))[0, 0] - np.array([254, 0, 0])).max() < 12


def test_pictures_are_turned_upright_and_animations_stop_at_the_first():
    sideways = Image.new("RGB", (8, 4), "white")
    sideways.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright = open_image(encoded(sideways, "PNG", exif=exif), 0, "safe_image")
    assert upright.size == (4, 8) and upright.getpixel((3, 0)) == (0, 0, 0)
    animation = encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", SIZE, "blue")])
    assert open_image(animation, 0, "safe_image").getpixel((0, 0))[0] > 150


def test_a_picture_may_lie_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "coco.zip", "w") as archive:
        archive.writestr("train2017/000000000001.png", encoded(RED, "PNG"))
    value = f"zip://train2017/000000000001.png::{tmp_path}/coco.zip"
    assert open_image(value, 0, "safe_image").getpixel((0, 0)) == (200, 30, 30)
    assert open_image({"bytes": None, "path": value}, 0, "safe_image").size == SIZE
    with pytest.raises(UserError, match="There is no item named 'train2017/2.png' in the archive"):
        open_image(f"zip://train2017/2.png::{tmp_path}/coco.zip", 3, "safe_image")


def bomb() -> bytes:
    """A PNG of a few bytes that says to have 30,000 x 30,000 pixels."""
    content = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    import struct
    import zlib

    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


BROKEN = {
    "empty": (b"", "UnidentifiedImageError: it is empty"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "it is a web page, not a picture that can be read"),
    "web page after a mark": (b"\xef\xbb\xbf\n <HTML>", "it is a web page"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "it is an SVG drawing"),
    "json": (b'{"error": "not found"}', "it is JSON"),
    "text": (b"hello", "it is no picture, or a broken one"),
    "noise": (bytes(range(256)), "it is no picture, or a broken one"),
    "truncated png": (encoded(RED, "PNG")[:45], ""),
    "truncated jpeg": (encoded(RED.resize((300, 300)), "JPEG")[:800], "truncated"),
    "png with a broken header": (encoded(RED, "PNG")[:20] + b"xxxx" + encoded(RED, "PNG")[24:], ""),
    "gif header alone": (b"GIF89a broken", "UnidentifiedImageError"),
    "bomb": (bomb(), "DecompressionBombError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_says_where_and_what_it_is(name, tmp_path):
    content, said = BROKEN[name]
    (tmp_path / "picture.jpg").write_bytes(content)  # whose name says otherwise
    for value in (content, {"bytes": content, "path": "picture.jpg"}, str(tmp_path / "picture.jpg")):
        with pytest.raises(UserError) as error:
            open_image(value, 7, "unsafe_image")
        message = str(error.value)
        assert message.startswith("row 7, column 'unsafe_image'") and said in message, message
        assert message.endswith("Replace the file or remove the row.") and "0x" not in message
        assert ("picture.jpg" in message) == isinstance(value, str)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "there is no picture. Fill the cell"),
        ({"bytes": None, "path": None}, "there is no picture. Fill the cell"),
        ("nowhere/at/all.png", "(nowhere/at/all.png): the picture cannot be read (FileNotFoundError"),
        ("https://example.com/a.jpg", "it is an address; python -m safe_clip.data.fetch"),
        ("zip://a.png::nowhere.zip", "FileNotFoundError"),
        (3.5, "the picture cannot be read"),
    ],
)
def test_cells_without_a_picture(value, said):
    with pytest.raises(UserError) as error:
        open_image(value, 7, "unsafe_image")
    assert said in str(error.value) and "row 7, column 'unsafe_image'" in str(error.value)
