"""Data known by what they hold, and caches that are made again."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value, load_from_disk
from PIL import Image as PILImage

from safe_clip import load_quadruplets
from safe_clip.data.content import cache_of, column_digest
from safe_clip.data.rows import QuadrupletRows
from safe_clip.store.fingerprints import WHOLE_FILE, file_digest
from safe_clip.store.tables import kept_table

from ..helpers import FEATURES, make_rows

NOW = 1_700_000_000


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def write(path: Path, content: bytes) -> Path:
    """A file of one and the same time, whatever it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (NOW, NOW))
    return path


def captions(word: str) -> bytes:
    return b"".join(
        json.dumps({"safe_caption": f"a dog {n}", "unsafe_caption": f"a {word} {n}"}).encode() + b"\n" for n in range(4)
    )


def as_csv(word: str) -> bytes:
    return b"safe_caption,unsafe_caption\n" + b"".join(f"a dog {n},a {word} {n}\n".encode() for n in range(4))


def as_parquet(word: str) -> bytes:
    Dataset.from_list([json.loads(line) for line in captions(word).splitlines()]).to_parquet("rows.parquet")
    return Path("rows.parquet").read_bytes()


@pytest.mark.parametrize("place", ["rows{}", "folder/train{}", "folder/*{}"])
@pytest.mark.parametrize(("suffix", "make"), [(".jsonl", captions), (".csv", as_csv), (".parquet", as_parquet)])
def test_a_file_with_new_content_and_its_old_time_is_read_anew(suffix, make, place, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "folder" if place == "folder/train{}" else place.format(suffix)
    path = Path(place.replace("*", "train").format(suffix))
    for word in ("gun", "axe", "gun"):
        write(path, make(word))
        if name.startswith("folder/*"):
            name = str(path)
        assert load_quadruplets(name, hold_out=False)["train"]["unsafe_caption"][0] == f"a {word} 0"


def test_rows_on_disk_are_known_by_their_files(cache, tmp_path):
    for name, word in (("a", "gun"), ("b", "axe")):
        Dataset.from_list([json.loads(line) for line in captions(word).splitlines()]).save_to_disk(tmp_path / name)
    before = load_quadruplets(str(tmp_path / "a"), hold_out=False)["train"]
    again = load_quadruplets(str(tmp_path / "a"), hold_out=False)["train"]
    arrow = tmp_path / "a" / "data-00000-of-00001.arrow"
    write(arrow, (tmp_path / "b" / arrow.name).read_bytes())
    after = load_quadruplets(str(tmp_path / "a"), hold_out=False)["train"]
    assert load_from_disk(str(tmp_path / "a"))._fingerprint == load_from_disk(str(tmp_path / "a"))._fingerprint
    assert before._fingerprint == again._fingerprint != after._fingerprint
    assert after.map(lambda row: {"x": row["unsafe_caption"]})["x"][0] == "a axe 0"


def stored(kind: str, colour: str, folder: Path) -> Dataset:
    """Two rows with an image of a colour, all of the same names and times."""
    PILImage.new("RGB", (16, 16), colour).save(folder / "new.bmp")
    content = (folder / "new.bmp").read_bytes()
    if kind == "bytes":
        cells, feature = [{"bytes": content, "path": "x.bmp"}] * 2, Image(decode=False)
    elif kind == "zip":
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo("x.bmp"), content)
        os.utime(folder / "images.zip", (NOW, NOW))
        cells, feature = [f"zip://x.bmp::{folder}/images.zip"] * 2, Value("string")
    else:
        cells = [str(write(folder / "x.bmp", content))] * 2
        feature = Value("string") if kind == "path" else Image(decode=False)
    rows = Dataset.from_dict(
        {"safe_caption": ["a", "b"], "safe_image": cells},
        Features({"safe_caption": Value("string"), "safe_image": feature}),
    )
    rows._fingerprint = "the same"
    return rows


@pytest.mark.parametrize("kind", ["bytes", "path", "file", "zip"])
def test_images_are_known_by_content(kind, tmp_path):
    def known(colour: str) -> tuple[str, dict]:
        if kind == "zip":
            (tmp_path / "images.zip").unlink(missing_ok=True)
        rows = QuadrupletRows(stored(kind, colour, tmp_path))
        return rows.fingerprint, rows.digest

    red, blue, again = known("red"), known("blue"), known("red")
    assert red == again and red[0] != blue[0]
    assert {name for name in red[1] if red[1][name] != blue[1][name]} == {"safe_image"}


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_a_stripe_in_a_large_image_is_noticed(kind, tmp_path):
    def known(stripe: int | None) -> str:
        image = PILImage.new("RGB", (300, 300), "red")
        if stripe is not None:
            image.paste("blue", (0, stripe, 300, stripe + 1))
        image.save(tmp_path / "x.bmp")
        content = (tmp_path / "x.bmp").read_bytes()
        cell = {"bytes": content, "path": None} if kind == "bytes" else str(write(tmp_path / "x.bmp", content))
        feature = Image(decode=False) if kind == "bytes" else Value("string")
        return column_digest(Dataset.from_dict({"image": [cell]}, Features({"image": feature})), "image")

    assert known(None) == known(None) and len({known(stripe) for stripe in (None, 7, 100, 299)}) == 4


def test_what_is_too_large_to_be_read_is_known_by_its_time_too(tmp_path):
    rows = Dataset.from_dict({"image": [str(tmp_path / "x.bmp")]})
    with open(tmp_path / "x.bmp", "wb") as file:
        file.truncate(WHOLE_FILE + 1)
    before = column_digest(rows, "image")
    os.utime(tmp_path / "x.bmp", (NOW, NOW))
    assert column_digest(rows, "image") != before


def test_a_digest_reads_samples_of_what_is_large(tmp_path):
    size = 3 * WHOLE_FILE
    known = set()
    for place in (None, 0, size // 2, size - 1, size):  # the last makes it longer
        with open(tmp_path / "large", "wb") as file:
            file.truncate(size)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        known.add(file_digest(tmp_path / "large"))
    assert len(known) == 4  # of the one in the middle nothing is read


def test_cells_that_are_no_files_are_known_by_themselves(tmp_path):
    cells = ["http://a/b.jpg", "x\0y", "z" * 5000, None, "gone.png"]
    assert column_digest(Dataset.from_dict({"x": cells}), "x") != column_digest(
        Dataset.from_dict({"x": cells[::-1]}), "x"
    )


def damaged(file: Path, how: str) -> None:
    content = file.read_bytes()
    half = content[: len(content) // 2]
    kinds = {"empty": b"", "cut": half, "garbage": b"\0garbage" + content, "zeroed": half.ljust(len(content), b"\0")}
    file.write_bytes(kinds[how])


@pytest.mark.parametrize("how", ["empty", "cut", "garbage"])
@pytest.mark.parametrize("file", ["dataset_info.json", "*.arrow"])
def test_a_damaged_cache_of_rows_is_made_again(file, how, cache, tmp_path, caplog):
    def make() -> Dataset:
        return kept_table(
            lambda: ({"x": n} for n in range(3)), "key", "audit", 3, features=Features({"x": Value("int64")})
        )

    assert make()["x"][:] == make()["x"][:] == [0, 1, 2]
    assert caplog.text.count("it is made again") == 0
    (found,) = cache.rglob(file)
    damaged(found, how)
    assert make()["x"][:] == [0, 1, 2]
    assert "cannot be read" in caplog.text

    source = write(tmp_path / "rows.jsonl", captions("gun"))
    load_quadruplets(str(source), hold_out=False)
    (found,) = cache_of([source]).rglob(file)
    damaged(found, how)
    for said in (1, 0):
        caplog.clear()
        assert load_quadruplets(str(source), hold_out=False)["train"]["unsafe_caption"][3] == "a gun 3"
        assert caplog.text.count("it is made again") == said


def test_embeddings_with_zeros_in_them_are_made_again(cache, caplog):
    def make() -> Dataset:
        made = ({"x": [float(n)] * 500} for n in range(1, 9))
        return kept_table(
            lambda: made, "zeros", "audit", 8, features=Features({"x": datasets.Sequence(Value("float32"))})
        )

    assert make()[7]["x"][0] == 8
    (found,) = cache.rglob("*.arrow")
    content = found.read_bytes()
    place = content.rindex(bytes(np.float32([8.0] * 9)))
    found.write_bytes(content[:place] + bytes(36) + content[place + 36 :])
    assert datasets.Dataset.from_file(str(found))[7]["x"][-1] == 0  # which can be read
    assert make()[7]["x"] == [8.0] * 500 and "has been changed): it is made again" in caplog.text
    caplog.clear()
    assert make()[7]["x"] == [8.0] * 500 and not caplog.text


def test_a_fault_of_the_data_is_no_damage(cache, tmp_path, caplog):
    def broken():
        yield {"x": 1}
        raise RuntimeError("not of the cache")

    for _ in range(2):
        with pytest.raises(datasets.exceptions.DatasetGenerationError):
            kept_table(broken, "broken", "audit", features=Features({"x": Value("int64")}))
    assert "made again" not in caplog.text


def test_pixels_and_embeddings_are_those_of_the_images_that_are_there(processor, cache, tmp_path):
    def first_pixel(colour: str) -> int:
        rows = QuadrupletRows(stored("path", colour, tmp_path))
        rows.cache_images(processor.image_processor, progress=False)
        return int(rows[0]["safe_image"][0, 0, 0])

    assert [first_pixel(colour) for colour in ("red", "black", "red")] == [255, 0, 255]


def test_the_whole_table_has_one_digest_for_its_content(tmp_path):
    rows = Dataset.from_dict(make_rows(8), features=FEATURES)
    rows.save_to_disk(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (QuadrupletRows(load_from_disk(str(tmp_path / name))) for name in "ab")
    assert a.digest == b.digest == QuadrupletRows(rows).digest and a.fingerprint == b.fingerprint
    assert QuadrupletRows(rows.select(range(7))).fingerprint != a.fingerprint
