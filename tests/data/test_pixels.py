"""Images that are decoded once."""

import datasets
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from transformers import CLIPImageProcessor, CLIPImageProcessorPil, CLIPProcessor

from safe_clip import QuadrupletCollator, QuadrupletRows, UserError
from safe_clip.data import pixels
from safe_clip.data.cells import open_archive
from safe_clip.store import tables

from ..helpers import FEATURES, make_rows

SIZES = {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=[CLIPImageProcessor, CLIPImageProcessorPil])
def image_processor(request):
    return request.param(**SIZES)


@pytest.fixture
def photos():
    """Of many shapes, with gaps."""
    table = make_rows(12)
    for index in range(12):
        shape = (30 + 7 * index, 90 - 5 * index)
        table["safe_image"][index] = PILImage.effect_noise(shape, 90).convert("RGB")
    rows = Dataset.from_dict(table, features=FEATURES).with_format("arrow")[:].to_pylist()
    rows[3]["unsafe_image"] = rows[5]["safe_image"] = None
    return Dataset.from_list(rows, features=FEATURES)


def test_pixels_are_those_of_decoding_each_time(image_processor, photos, processor):
    collate = QuadrupletCollator(CLIPProcessor(image_processor, processor.tokenizer), 77)
    before, after = QuadrupletRows(photos), QuadrupletRows(photos)
    after.cache_images(image_processor, progress=False)
    assert after.shape == (3, 20, 20) and after.digest == before.digest
    batches = [collate([rows[index] for index in range(12)]) for rows in (before, after)]
    assert batches[0]["pixel_values"].shape == (22, 3, 20, 20)
    assert (batches[0]["layout"].present == batches[1]["layout"].present).all()
    assert (batches[0]["pixel_values"] - batches[1]["pixel_values"]).abs().max() <= 1e-6


def test_each_image_is_opened_once_whatever_comes_after(image_processor, photos, monkeypatch):
    opened = []
    open_image = pixels.open_image
    monkeypatch.setattr(pixels, "open_image", lambda *cell: opened.append(cell[1:]) or open_image(*cell))
    monkeypatch.setattr(tables, "CHUNK", 5)
    for _ in range(2):
        rows = QuadrupletRows(photos)
        rows.cache_images(image_processor, progress=False)
        [rows[index] for index in range(12)]
    assert sorted(opened) == sorted(
        [(row, "safe_image") for row in range(12) if row != 5]
        + [(row, "unsafe_image") for row in range(12) if row != 3]
    )


def test_what_was_decoded_before_an_interruption_is_kept(image_processor, photos, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 4)
    opened = []
    open_image = pixels.open_image

    def stop_at_ten(value, row, column):
        if row == 10 and len(opened) < 20:
            raise KeyboardInterrupt
        opened.append(row)
        return open_image(value, row, column)

    monkeypatch.setattr(pixels, "open_image", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        QuadrupletRows(photos).cache_images(image_processor, progress=False)
    del opened[:]
    opened += [-1] * 20
    QuadrupletRows(photos).cache_images(image_processor, progress=False)
    assert set(opened[20:]) == {8, 9, 10, 11}  # the chunk that was cut off


def test_another_processor_or_another_file_is_decoded_anew(photos, tmp_path, processor):
    paths = []
    for index, image in enumerate(photos["safe_image"][:3]):
        paths.append(str(tmp_path / f"{index}.png"))
        image.save(paths[-1])
    rows = Dataset.from_dict({"safe_caption": list("abc"), "safe_image": paths}).cast_column("safe_image", Image())

    def first(image_processor):
        data = QuadrupletRows(rows)
        data.cache_images(image_processor, progress=False)
        return data[0]["safe_image"]

    small = first(CLIPImageProcessorPil(**SIZES))
    assert first(CLIPImageProcessorPil(**SIZES | {"crop_size": {"height": 8, "width": 8}})).shape == (3, 8, 8)
    PILImage.new("RGB", (40, 40), "red").save(paths[0])
    assert (first(CLIPImageProcessorPil(**SIZES)) == torch.tensor([255, 0, 0])[:, None, None]).all()
    assert not (small == torch.tensor([255, 0, 0])[:, None, None]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(workers, image_processor, photos):
    table = photos.with_format("arrow")[:].to_pylist()
    table[7]["unsafe_image"] = {"bytes": b"<html>", "path": None}
    rows = QuadrupletRows(Dataset.from_list(table, features=FEATURES))
    with pytest.raises(UserError, match="row 7, column 'unsafe_image': the image cannot be read"):
        rows.cache_images(image_processor, workers, progress=False)


def test_pixels_that_are_no_levels_are_not_cached(photos):
    class Odd(CLIPImageProcessorPil):
        def resize(self, image, *args, **kwargs):
            return super().resize(image, *args, **kwargs) * 0.7

    assert pixels.pixel_shape(Odd(**SIZES)) is None and pixels.pixel_shape(CLIPImageProcessorPil(**SIZES)) == (
        3,
        20,
        20,
    )


def test_there_is_room_or_not(photos, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage(100_000, 0, 60_000))
    assert pixels.cache_size(photos, (3, 20, 20)) == 22 * 1200
    assert pixels.has_room(22 * 1200) and not pixels.has_room(31_000)


def test_an_archive_that_was_written_anew_is_decoded_anew(tmp_path):
    import zipfile

    def first(colour):
        PILImage.new("RGB", (40, 40), colour).save(tmp_path / "0.png")
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            archive.write(tmp_path / "0.png", "0.png")
            archive.writestr("note.txt", colour)  # so that sizes differ
        open_archive.cache_clear()
        cells = [None, f"zip://0.png::{tmp_path / 'images.zip'}"]
        data = QuadrupletRows(Dataset.from_dict({"safe_caption": ["a", "b"], "safe_image": cells}))
        data.cache_images(CLIPImageProcessorPil(**SIZES), progress=False)
        return data[1]["safe_image"][:, 0, 0].tolist()

    assert first("red") == [255, 0, 0] and first("blue") == [0, 0, 255]


def test_rows_of_images_alone_are_kept_decoded(rows, processor):
    items = QuadrupletRows(rows.select_columns(["safe_image", "unsafe_image"]))
    items.cache_images(processor.image_processor, progress=False)
    assert len(items) == 24 and items[3]["unsafe_image"].shape == (3, 16, 16)
