"""What people put into a cell of images."""

import base64
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safe_clip import UserError
from safe_clip.data import cells
from safe_clip.data.audit.reading import image_bytes
from safe_clip.data.cells import OUTSIDE, short, source_file, storable
from safe_clip.data.images import open_image

COLOUR = (200, 30, 30)
SIZE = (12, 9)


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, COLOUR).save(buffer, kind)
    return buffer.getvalue()


LEVELS = np.full((9, 12, 3), COLOUR, dtype=np.uint8)
GREY = np.full((9, 12), 77, dtype=np.uint8)
HELD = {
    "bytes": encoded(),
    "bytearray": bytearray(encoded()),
    "memoryview": memoryview(encoded()),
    "bytes beside a path": {"bytes": encoded(), "path": "/etc/passwd"},
    "bytearray in a cell": {"bytes": bytearray(encoded()), "path": None},
    "array": LEVELS,
    "array, channels first": LEVELS.transpose(2, 0, 1),
    "array up to 1": (LEVELS / 255).astype(np.float32),
    "array of floats up to 255": LEVELS.astype(np.float64),
    "array of 64 bits": LEVELS.astype(np.int64),
    "with opacity": np.dstack([LEVELS, np.full((9, 12), 255, dtype=np.uint8)]),
    "tensor": torch.from_numpy(LEVELS),
    "tensor, channels first, up to 1": torch.from_numpy(LEVELS).permute(2, 0, 1) / 255,
    "lists": LEVELS.tolist(),
    "data address": "data:image/png;base64," + base64.b64encode(encoded()).decode(),
    **{kind: base64.b64encode(encoded(kind)).decode() for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")},
    "base64 in lines, without its end": base64.encodebytes(encoded()).decode().rstrip("=\n"),
    "base64 for addresses": base64.urlsafe_b64encode(encoded()).decode(),
}


@pytest.mark.parametrize("name", HELD)
def test_what_holds_an_image_is_one(name):
    image = open_image(HELD[name], 0, "safe_image")
    assert image.size == SIZE and np.abs(np.subtract(image.getpixel((4, 4)), COLOUR)).max() <= 6


@pytest.mark.parametrize(
    ("levels", "grey"),
    [
        (GREY, 77),
        (GREY[:, :, None], 77),
        (GREY[None], 77),
        (GREY.astype(np.uint16) * 257, 77),
        (GREY.astype(np.float32) / 255, 77),
        (torch.full((1, 9, 12), 0.5, dtype=torch.bfloat16), 128),
        (np.ones((9, 12), dtype=bool), 255),
        (np.ones((9, 12), dtype=np.uint8), 1),
        (np.zeros((9, 12), dtype=np.float32), 0),
    ],
)
def test_numbers_of_one_channel(levels, grey):
    image = open_image(levels, 0, "safe_image")
    assert image.size == SIZE and image.getpixel((4, 4)) == (grey,) * 3


LONG = "iVBORw0KGgo" + "A" * 5000
WRONG = {
    "negative": (LEVELS - 128.0, "its values are below 0 or no numbers; give levels of 0 to 255, or of 0 to 1"),
    "no numbers": (np.full((9, 12), np.nan), "its values are below 0 or no numbers"),
    "too high": (np.full((9, 12), 300.0), "its values go up to 300; give levels of 0 to 255"),
    "two channels": (np.zeros((9, 12, 2)), "an array of shape (9, 12, 2) has neither 1, 3 nor 4 channels"),
    "a batch": (np.zeros((2, 9, 12, 3)), "a ndarray of shape (2, 9, 12, 3) and type float64 is no image"),
    "nothing": ([], "is no image; give a file, encoded bytes, or an array"),
    "a number": (3.5, "a float is no image"),
    "an object": (object(), "a object is no image"),
    "uneven lists": ([[1, 2], [3]], "it is neither an image, a file nor an array (list)"),
    "broken base64": (f"data:image/png;base64,{'@' * 5000}", "its base64 is broken"),
    "base64 of no image": (LONG, "the beginning of an image"),
    "a long text": ("a dog on a sofa, " * 400, "OSError: File name too long"),
    "a page": ("https://example.com/a.jpg", "it is an address; safe-clip fetch"),
    "elsewhere": ("zip://a.png::http://example.com/a.zip", "an entry of an archive that lies elsewhere"),
    "chained": ("simplecache::http://example.com/a.png", "it is an address"),
    "outside": (f"{OUTSIDE}/etc/passwd", "names a file that does not lie in it, which is not opened"),
    "folder": ("/", "it is a folder, not a file"),
    "device": ("/dev/zero", "it is a device, pipe or socket, not a file"),
    "archive on a device": ("zip://a.png::/dev/zero", "the archive is a folder, a device, a pipe or a socket"),
    "NUL": ("a\0.png", "ValueError: embedded null byte"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_holds_none_is_told_in_one_short_line(name):
    value, said = WRONG[name]
    with pytest.raises(UserError) as error:
        open_image(value, 7, "unsafe_image")
    message = str(error.value)
    assert said in message and message.startswith("row 7, column 'unsafe_image'")
    assert len(message) < 450 and "\n" not in message
    with pytest.raises(UserError):
        if isinstance(image_bytes(value, 7, "unsafe_image"), bytes):  # which an audit opens after
            open_image(value, 7, "unsafe_image")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for value in (str(tmp_path / "pipe.png"), (tmp_path / "pipe.png").as_uri(), {"path": str(tmp_path / "pipe.png")}):
        with pytest.raises(UserError, match="it is a device, pipe or socket, not a file"):
            open_image(value, 0, "safe_image")


def test_files_whatever_their_names(tmp_path):
    for name in ("a b#1%20[x].png", os.fsdecode(b"\xff\xfe.png"), "日本.png"):
        path = tmp_path / name
        path.write_bytes(encoded())
        for value in (path, path.as_uri(), storable(path)):
            assert open_image(value, 0, "safe_image").size == SIZE
        assert Path(source_file(storable(path))).read_bytes() == encoded()
        storable(path).encode()  # a table can hold it
    with pytest.raises(UserError, match="FileNotFoundError") as error:
        open_image(os.fsdecode(b"\xff\xfd.png"), 0, "safe_image")
    str(error.value).encode()


def test_a_file_whose_name_could_be_base64_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "iVBORw0KGgoAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    Path(name).write_bytes(encoded())
    assert open_image(name, 0, "safe_image").size == SIZE


def test_what_an_entry_of_a_zip_or_a_file_may_unpack_to_is_bounded(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", encoded())
        archive.writestr("bomb.png", encoded() + bytes(5_000_000))
    (tmp_path / "large.png").write_bytes(encoded() + bytes(2_000_000))
    monkeypatch.setattr(cells, "MOST_BYTES", 1_000_000)
    assert open_image(f"zip://good.png::{tmp_path}/z.zip", 0, "safe_image").size == SIZE
    unpacked = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: unpacked.append(1))
    with pytest.raises(UserError, match="bytes are more than an image may have, 1,000,000"):
        open_image(f"zip://bomb.png::{tmp_path}/z.zip", 0, "safe_image")
    assert not unpacked
    with pytest.raises(UserError, match="bytes are more than an image may have"):
        open_image(str(tmp_path / "large.png"), 0, "safe_image")


def test_long_cells_are_shown_by_their_ends():
    assert short("a.png") == "a.png"
    assert len(short("x" * 500 + "/17.png")) == 80 and short("x" * 500 + "/17.png").endswith("x/17.png")
