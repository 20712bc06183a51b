"""Data as the world has them: each fault is named by row and column with its cure, or that row alone is left out."""

import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from safe_clip import QuadrupletRows, UserError, load_quadruplets
from safe_clip.data import rows as reading
from safe_clip.data.bad_rows import LIST_FILE, leave_out_bad_rows
from safe_clip.data.captions import check_captions
from safe_clip.data.items import ROW_COLUMN
from safe_clip.errors import explained

from ..helpers import COLOURS
from .test_images import BROKEN

ROWS, FAULTY = 8, 5  # rows, and which of them has the fault
CURES = ("Replace the file or remove the row.", "Fill the cell or remove the row.", "Mend the cell or remove the row.")

CAPTIONS = {
    "nothing": "",
    "a space": " ",
    "tabs and lines": "\t\r\n\v\f",
    "ideographic space": "\u3000",
    "wide spaces": "\u2003\u2009\u00a0\u202f",
    "separators": "\u2028\u2029\x85\x1c",
    "NUL": "a dog\0",
    "NUL alone": "\0",
    "bytes that were no text": "caf\ufffd\ufffd",
    "a number": 7,
    "a fraction": 0.5,
    "a truth value": True,
    "a number in a list": [7],
}
PATHS = {
    "no such file": "nowhere.png",
    "a folder": "pictures",
    "no such folder": "nowhere/0.png",
    "a name too long": "x" * 300 + ".png",
    "a name with NUL": "a\0b.png",
    "an address": "https://example.com/0.png",
    "a zip that is none": "zip://0.png::rows.jsonl",
    "no such zip": "zip://0.png::nowhere.zip",
    "an empty path": "",
}


def write_rows(folder: Path, faults: dict[str, object]) -> str:
    """A file of rows beside a folder of their images, with other cells in the row `FAULTY`."""
    (folder / "pictures").mkdir()
    rows = []
    for number, colour in enumerate(COLOURS):
        row = {"safe_caption": f"a {colour} square", "unsafe_caption": f"a {colour} square with a mark"}
        for column in ("safe_image", "unsafe_image"):
            row[column] = f"pictures/{column}_{number}.png"
            Image.new("RGB", (16, 16), colour).save(folder / row[column])
        rows.append(row)
    rows[FAULTY] |= faults
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def read_all(rows: Dataset) -> list[dict]:
    quadruplets = QuadrupletRows(rows)
    return [quadruplets[index] for index in range(len(quadruplets))]


def check_fault(file: str, column: str, out: Path) -> None:
    """That a row is named with its column and a cure, and that it alone is left out where that is asked for."""
    rows = load_quadruplets(file, hold_out=False)["train"]
    with pytest.raises(UserError) as error:
        read_all(rows)
    message = str(error.value)
    assert message.startswith(f"row {FAULTY}, column '{column}'") and message.endswith(CURES), message
    assert "\n" not in message

    kept = leave_out_bad_rows(rows, "split 'train'", out, max_bad_fraction=1 / ROWS)
    others = [number for number in range(ROWS) if number != FAULTY]
    assert list(kept[ROW_COLUMN]) == others
    assert (out / LIST_FILE).read_text() == f"split 'train', {message}\n"
    for number, item in zip(others, read_all(kept), strict=True):
        assert item["safe_caption"] == f"a {COLOURS[number]} square"
        assert item["unsafe_caption"] == f"a {COLOURS[number]} square with a mark"
        for image in ("safe_image", "unsafe_image"):
            assert item[image].tobytes() == Image.new("RGB", (16, 16), COLOURS[number]).tobytes()


@pytest.mark.parametrize("name", CAPTIONS)
@pytest.mark.parametrize("column", ["safe_caption", "unsafe_caption"])
def test_a_faulty_caption(name, column, tmp_path, processor):
    file = write_rows(tmp_path, {column: CAPTIONS[name]})
    check_fault(file, column, tmp_path / "out")
    with pytest.raises(UserError, match=f"^row {FAULTY}, column '{column}': .* or remove the row.$"):
        check_captions(load_quadruplets(file, hold_out=False).values(), processor.tokenizer, 77)


@pytest.mark.parametrize("name", BROKEN)
def test_a_faulty_image(name, tmp_path):
    file = write_rows(tmp_path, {})
    (tmp_path / "pictures" / f"unsafe_image_{FAULTY}.png").write_bytes(BROKEN[name][0])
    check_fault(file, "unsafe_image", tmp_path / "out")


@pytest.mark.parametrize("name", PATHS)
def test_a_faulty_path(name, tmp_path):
    check_fault(write_rows(tmp_path, {"safe_image": PATHS[name]}), "safe_image", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "safe_caption,unsafe_caption\na café,b\n".encode("latin-1"), "'utf-8' codec can't decode byte"),
        ("rows.csv", "safe_caption,unsafe_caption\na,b\n".encode("utf-16"), "'utf-8' codec can't decode byte"),
        ("rows.csv", b"safe_caption,unsafe_caption\na,b\na,b,c\n", "line 3: it has 3 cells, and the line of names 2"),
        ("rows.csv", b'safe_caption,unsafe_caption\na,"b\n', "line 2: a quotation mark is opened and never closed"),
        ("rows.csv", b"", "it is empty, without a line of names"),
        ("rows.csv", b"safe_caption,unsafe_caption\n", "could not be loaded"),
        ("rows.jsonl", b'{"safe_caption": "a \\ud800 dog", "unsafe_caption": "b"}', "surrogate pair"),
        ("rows.jsonl", b'{"safe_caption": "a dog", "unsafe_ca', "JSON parse error"),
        ("rows.jsonl", '{"safe_caption": "a", "unsafe_caption": "b"}'.encode("utf-16"), "Save its texts as UTF-8"),
        ("rows.parquet", b"PAR1 and no more", "could not be loaded"),
        ("rows.tar", b"no archive", "could not be loaded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_read_as_a_whole_is_named(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_quadruplets(str(tmp_path / name))
    message = str(error.value)
    assert message.startswith(f"--dataset {tmp_path / name} ") and said in message and "\n" not in message


SAMPLE = {"safe.png": "safe_image", "safe.txt": "safe_caption", "unsafe.txt": "unsafe_caption"}


def write_shard(path: Path, members: list[str]) -> str:
    image = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(image, "PNG")
    with tarfile.open(path, "w") as archive:
        for name in members:
            content = image.getvalue() if name.endswith("png") else f"what {name} says".encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([f"{key}.{end}" for key in "aa" for end in SAMPLE], "Duplicate field 'safe.png' for sample 'a'"),
        ([f"{key}.{end}" for end in SAMPLE for key in "ab"], "don't share the same prefix or the same types"),
        (["a.safe.png", "a.safe.txt", *(f"b.{end}" for end in SAMPLE)], "don't share the same prefix"),
        ([], "could not be loaded"),
    ],
    ids=["a key twice", "members out of order", "a member is missing", "nothing"],
)
def test_a_faulty_shard_is_named(members, said, tmp_path):
    shard = write_shard(tmp_path / "shard.tar", members)
    with pytest.raises(UserError) as error:
        load_quadruplets(shard, column_mapping=SAMPLE)
    assert str(error.value).startswith(f"--dataset {shard} could not be loaded (") and said in str(error.value)


def test_a_key_or_an_image_may_occur_in_several_rows(tmp_path):
    """As COCO has five captions for an image."""
    shard = write_shard(tmp_path / "shard.tar", [f"{key}.{end}" for key in "aba" for end in SAMPLE])
    rows = load_quadruplets(shard, column_mapping=SAMPLE, hold_out=False)["train"]
    assert [item["safe_caption"] for item in read_all(rows)] == [f"what {key}.safe.txt says" for key in "aba"]
    file = write_rows(tmp_path, {"safe_image": "pictures/safe_image_0.png"})
    items = read_all(load_quadruplets(file, hold_out=False)["train"])
    assert items[FAULTY]["safe_image"].tobytes() == items[0]["safe_image"].tobytes()


def test_a_worker_that_is_killed_while_it_checks_rows_loses_none_silently(tmp_path, monkeypatch):
    rows = load_quadruplets(write_rows(tmp_path, {"safe_caption": ""}), hold_out=False)["train"]

    here = os.getpid()

    def killed(value, number, column, shape=None):
        if number == FAULTY and os.getpid() != here:
            os.kill(os.getpid(), 9)
        return value

    monkeypatch.setattr(reading, "read_item", killed)
    with pytest.raises((RuntimeError, OSError, EOFError)) as error:
        try:
            leave_out_bad_rows(rows, "split 'train'", tmp_path / "out", 1.0, workers=1)
        finally:
            time.sleep(0.3)  # the signal that a process ended, on which torch raises, may come a moment later
    assert explained(error.value).startswith("a process that reads rows was ended from outside")
    assert not (tmp_path / "out").exists()
