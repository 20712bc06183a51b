"""Images as the world has them, and what is none."""

import gzip
import io
import os
import resource
import struct
import zipfile
import zlib

import numpy as np
import PIL
import pytest
from PIL import EpsImagePlugin, Image, features
from transformers import CLIPImageProcessor

from safe_clip import UserError, load_processor
from safe_clip.data.images import MOST_TIMES_AS_LONG, open_image

SIZE = (32, 24)
RED = Image.new("RGB", SIZE, (200, 30, 30))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# What a colour of each mode is in RGB, where a format keeps it; and the formats that Pillow writes in that mode.
GREY, BRIGHT, WHITE = (77, 77, 77), (200, 30, 30), (255, 255, 255)
MODES = {
    "RGB": (
        Image.new("RGB", SIZE, BRIGHT),
        BRIGHT,
        "AVIF BMP DDS DIB GIF ICO JPEG JPEG2000 MPO PCX PNG PPM QOI SGI TGA TIFF WEBP",
    ),
    "L": (
        Image.new("L", SIZE, 77),
        GREY,
        "AVIF BMP DDS DIB GIF ICO JPEG JPEG2000 MPO PCX PNG PPM SGI SPIDER TGA TIFF WEBP",
    ),
    "LA": (Image.new("LA", SIZE, (77, 255)), GREY, "AVIF DDS GIF ICO JPEG2000 PNG TGA TIFF WEBP"),
    "P": (Image.new("RGB", SIZE, BRIGHT).quantize(16), BRIGHT, "AVIF BLP BMP DIB GIF ICO PCX PNG TGA TIFF WEBP"),
    "RGBA": (
        Image.new("RGBA", SIZE, (*BRIGHT, 255)),
        BRIGHT,
        "AVIF BMP DDS DIB GIF ICNS ICO JPEG2000 PNG PPM QOI SGI TGA TIFF WEBP",
    ),
    "CMYK": (Image.new("CMYK", SIZE, (0, 255, 255, 0)), (255, 0, 0), "JPEG JPEG2000 MPO TIFF"),
    "I;16": (Image.new("I;16", SIZE, 77 * 257), GREY, "ICO JPEG2000 PNG PPM TIFF"),
    "I": (Image.new("I", SIZE, 77), GREY, "TIFF"),
    "F": (Image.new("F", SIZE, 76.6), GREY, "PPM SPIDER TIFF"),
    "F up to 1": (Image.new("F", SIZE, 77 / 255), GREY, "PPM SPIDER TIFF"),
    "1": (Image.new("1", SIZE, 1), WHITE, "BMP DIB GIF ICO JPEG MSP PCX PNG PPM TGA TIFF WEBP XBM"),
    "YCbCr": (Image.new("YCbCr", SIZE, (76, 85, 255)), (254, 0, 0), "JPEG JPEG2000 TIFF"),
}


@pytest.mark.parametrize(
    ("mode", "kind"), [(mode, kind) for mode, (*_, kinds) in MODES.items() for kind in kinds.split()]
)
def test_formats_give_their_colours_in_every_mode(mode, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    if (mode, kind) == ("YCbCr", "TIFF") and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("this Pillow does not read what it writes itself")
    image, colour, _ = MODES[mode]
    opened = open_image(encoded(image, kind, **{"lossless": True} if kind == "WEBP" else {}), 0, "safe_image")
    assert opened.mode == "RGB" and (opened.size == SIZE or kind in ("ICNS", "ICO"))
    middle = opened.getpixel((opened.width // 2, opened.height // 2))
    assert np.abs(np.subtract(middle, colour)).max() <= 3, middle


def test_transparency_is_laid_onto_white():
    half = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 16, 24))
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
        assert open_image(content, 0, "safe_image").getpixel((31, 23)) == (255, 255, 255)
    assert open_image(encoded(half, "PNG"), 0, "safe_image").getpixel((0, 0)) == (0, 0, 255)


def test_sixteen_bits_are_brought_to_eight():
    levels = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    image = open_image(encoded(Image.fromarray(levels), "PNG"), 0, "safe_image")
    assert np.array_equal(np.asarray(image)[..., 1], (levels / 257.0).round().astype(np.uint8))
    dark = Image.fromarray(np.full((6, 8), 200, dtype=np.uint16))
    assert open_image(encoded(dark, "PNG"), 0, "safe_image").getpixel((3, 3)) == (1, 1, 1)
    floats = Image.fromarray(np.full((6, 8), 99.6, dtype=np.float32))
    assert open_image(encoded(floats, "TIFF"), 0, "safe_image").getpixel((3, 3)) == (100, 100, 100)


def test_grey_black_and_white_cmyk_and_tiny_images():
    for image, expected in (
        (Image.new("L", SIZE, 77), (77, 77, 77)),
        (Image.new("1", SIZE, 1), (255, 255, 255)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
    ):
        assert open_image(encoded(image, "PNG"), 0, "safe_image").getpixel((0, 0)) == expected
    cmyk = encoded(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.asarray(open_image(cmyk, 0, "safe_image"))[0, 0] - np.array([254, 0, 0])).max() < 12


def test_images_are_turned_upright_and_animations_stop_at_the_first():
    sideways = Image.new("RGB", (8, 4), "white")
    sideways.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright = open_image(encoded(sideways, "PNG", exif=exif), 0, "safe_image")
    assert upright.size == (4, 8) and upright.getpixel((3, 0)) == (0, 0, 0)
    animation = encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", SIZE, "blue")])
    assert open_image(animation, 0, "safe_image").getpixel((0, 0))[0] > 150


def test_an_image_may_lie_in_a_zip(tmp_path):
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
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def wrapped(content: bytes, size: tuple[int, int]) -> bytes:
    """An image in the fields of an IPTC file, which Pillow opens whatever its format."""

    def field(record: int, number: int, value: bytes) -> bytes:
        return bytes([0x1C, record, number]) + struct.pack(">H", len(value)) + value

    width, height = (struct.pack(">H", side) for side in size)
    header = field(3, 60, b"\x01\x00") + field(3, 20, width) + field(3, 30, height) + field(3, 120, b"\x05")
    return header + field(8, 10, content)


def archived(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.png", content)
    return buffer.getvalue()


EPS = encoded(RED, "EPS")
CONVERT = "not an image that can be read; convert it to JPEG or PNG)"
AGAIN = "not an image that can be read; fetch it anew)"
BROKEN = {
    "empty": (b"", f"UnidentifiedImageError: it is empty, {AGAIN}"),
    "web page": (b"<!DOCTYPE html><html><svg/>404</html>", f"it is a web page, {AGAIN}"),
    "web page after a mark": (b"\xef\xbb\xbf\n <HTML>", f"it is a web page, {AGAIN}"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', f"it is an SVG drawing, {CONVERT}"),
    "svg alone": (b"<svg/>", f"it is an SVG drawing, {CONVERT}"),
    "xml": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', f"it is XML, such as a server's error, {AGAIN}"),
    "json": (b'{"error": "not found"}', f"it is JSON, {AGAIN}"),
    "json list": (b"[1, 2]", f"it is JSON, {AGAIN}"),
    "text": (b"hello", f"it is text, {AGAIN}"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        "it is a pointer of Git LFS, not an image that can be read; fetch what it stands for with `git lfs pull`)",
    ),
    "pdf": (encoded(RED, "PDF"), f"it is a PDF, {CONVERT}"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", f"it is HEIC, {CONVERT}"),
    "heif": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix", f"it is HEIC, {CONVERT}"),
    "jpeg xl": (b"\xff\x0a\x00\x10", f"it is JPEG XL, {CONVERT}"),
    "jpeg xl in a box": (b"\0\0\0\x0cJXL \r\n\x87\n", f"it is JPEG XL, {CONVERT}"),
    "raw of canon": (b"\0\0\0\x18ftypcrx \0\0\0\x01", f"it is a camera's raw data, {CONVERT}"),
    "raw of fuji": (b"FUJIFILMCCD-RAW 0201", f"it is a camera's raw data, {CONVERT}"),
    "raw of olympus": (b"IIRO\x08\0\0\0", f"it is a camera's raw data, {CONVERT}"),
    "raw of panasonic": (b"IIU\0\x18\0\0\0", f"it is a camera's raw data, {CONVERT}"),
    "large photoshop": (b"8BPS\0\x02" + bytes(20), f"it is a Photoshop document, {CONVERT}"),
    "openexr": (b"v/1\x01\x02\0\0\0", f"it is light measured in high dynamic range, {CONVERT}"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\x02\0", "it is a video, not an image that can be read; take a frame"),
    "webm": (b"\x1aE\xdf\xa3\x01", "it is a video, "),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "it is a video, "),
    "zip": (archived(b""), "it is an archive, or compressed, not an image that can be read; unpack it)"),
    "gzip": (gzip.compress(encoded(RED, "PNG")), "it is an archive, or compressed, "),
    "tar": (b"image.png".ljust(257, b"\0") + b"ustar\0", "it is an archive, or compressed, "),
    "noise": (bytes(range(256)), "it is no image, or a broken one"),
    "zeros": (bytes(1000), "it is no image, or a broken one"),
    "truncated png": (encoded(RED, "PNG")[:45], ""),
    "truncated jpeg": (encoded(RED.resize((300, 300)), "JPEG")[:800], "truncated"),
    "truncated webp": (encoded(RED, "WEBP")[:20], "could not create decoder object"),
    "truncated tiff": (encoded(RED, "TIFF")[:100], ""),
    "jpeg header alone": (encoded(RED, "JPEG")[:20], f"it is the beginning of an image, {AGAIN}"),
    "png with a broken header": (encoded(RED, "PNG")[:20] + b"xxxx" + encoded(RED, "PNG")[24:], ""),
    "gif header alone": (b"GIF89a broken", f"UnidentifiedImageError: it is the beginning of an image, {AGAIN}"),
    "no numbers": (encoded(Image.new("F", SIZE, float("nan")), "TIFF"), "it holds values that are no numbers"),
    "bomb": (bomb(), "DecompressionBombError"),
    "bomb in a wrapper": (wrapped(bomb(), SIZE), "IPTC is drawn by other programs"),
    "postscript": (EPS, "EPS is drawn by other programs, which are not started here; convert it to JPEG or PNG)"),
    "postscript in a wrapper": (wrapped(EPS, SIZE), "IPTC is drawn by other programs"),
    "strip": (encoded(Image.new("RGB", (1, 20_000)), "PNG"), "its 1 x 20,000 pixels are a strip, more than 100 times"),
    "line": (encoded(Image.new("RGB", (303, 3)), "PNG"), "its 303 x 3 pixels are a strip"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_says_where_and_what_it_is(name, tmp_path):
    content, said = BROKEN[name]
    (tmp_path / "image.jpg").write_bytes(content)  # whose name says otherwise
    for value in (content, {"bytes": content, "path": "image.jpg"}, str(tmp_path / "image.jpg")):
        with pytest.raises(UserError) as error:
            open_image(value, 7, "unsafe_image")
        message = str(error.value)
        assert message.startswith("row 7, column 'unsafe_image'") and said in message, message
        assert message.endswith("Replace the file or remove the row.") and "0x" not in message
        assert ("image.jpg" in message) == isinstance(value, str)


@pytest.mark.parametrize("content", [EPS, wrapped(EPS, SIZE)], ids=["postscript", "in a wrapper"])
def test_no_program_is_started_for_an_image(content, tmp_path, monkeypatch):
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/started\n')
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what an earlier search found
    with pytest.raises(UserError, match="drawn by other programs"):
        open_image(content, 0, "safe_image")
    with pytest.raises(UserError, match="drawn by other programs"):
        open_image(Image.open(io.BytesIO(content)), 0, "safe_image")
    assert not (tmp_path / "started").exists()
    with pytest.raises(OSError):  # which Pillow alone would start
        Image.open(io.BytesIO(content)).load()
    assert (tmp_path / "started").exists()


def test_a_bomb_is_refused_before_it_takes_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (bomb(), wrapped(bomb(), SIZE), encoded(Image.new("1", (1, 200_000)), "PNG")):
        with pytest.raises(UserError):
            open_image(content, 0, "safe_image")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("size", [(1, 1), (1, MOST_TIMES_AS_LONG), (3 * MOST_TIMES_AS_LONG, 3), (2000, 20)])
def test_long_images_that_are_let_through_fit_the_processors(size):
    image = open_image(encoded(Image.new("RGB", size, BRIGHT), "PNG"), 0, "safe_image")
    for processor in (CLIPImageProcessor(), load_processor("demo").image_processor):
        pixels = processor(image, return_tensors="np")["pixel_values"]
        side = processor.crop_size["height"]
        assert pixels.shape == (1, 3, side, side) and np.allclose(pixels[0, 0], pixels[0, 0, 0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "there is no image. Fill the cell"),
        ({"bytes": None, "path": None}, "there is no image. Fill the cell"),
        ("nowhere/at/all.png", "(nowhere/at/all.png): the image cannot be read (FileNotFoundError"),
        ("https://example.com/a.jpg", "it is an address; safe-clip fetch"),
        ("zip://a.png::nowhere.zip", "FileNotFoundError"),
        (3.5, "the image cannot be read"),
    ],
)
def test_cells_without_an_image(value, said):
    with pytest.raises(UserError) as error:
        open_image(value, 7, "unsafe_image")
    assert said in str(error.value) and "row 7, column 'unsafe_image'" in str(error.value)


def inked(*chunks: tuple[bytes, bytes], image: Image.Image = RED, behind: bool = False) -> bytes:
    """A PNG with more chunks, before or behind its pixels."""
    plain = encoded(image, "PNG")
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    place = len(plain) - 12 if behind else 33
    return plain[:place] + more + plain[place:]


HUGE = {
    "text": (b"tEXt", b"parameters\0" + b"a dog, " * 300_000),
    "compressed text": (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(3_000_000))),
    "international text": (b"iTXt", b"workflow\0\0\0\0\0" + b"x" * 2_000_000),
    "profile": (b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000))),
    "exif": (b"eXIf", b"MM\0*\0\0\0\x08" + bytes(3_000_000)),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", HUGE)
def test_whatever_a_generator_notes_in_a_png_its_pixels_are_used(name, behind):
    content = inked(HUGE[name], behind=behind and name != "profile")
    assert open_image(content, 0, "safe_image").tobytes() == RED.tobytes()


def test_many_notes_together_cost_no_pixel_and_bombs_stay_refused():
    notes = [(b"zTXt", b"x%d\0\0" % n + zlib.compress(bytes(900_000))) for n in range(100)]
    assert open_image(inked(*notes), 0, "safe_image").size == SIZE
    with pytest.raises(UserError, match="DecompressionBombError"):
        open_image(bomb()[:33] + b"\0\0\0\1tEXtx0000" + bomb()[33:], 0, "safe_image")


def test_a_small_text_may_still_say_how_an_image_is_turned():
    sideways = Image.new("RGB", (8, 4), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes().hex()
    note = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(raw) // 2:8}\n{raw}\n".encode())
    assert open_image(inked((b"zTXt", note), image=sideways), 0, "safe_image").size == (4, 8)


def test_broken_exif_data_cost_no_pixel():
    assert open_image(encoded(RED, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"), 0, "safe_image").size == SIZE
