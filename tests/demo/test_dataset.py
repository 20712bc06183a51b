import datasets
import pytest
from datasets import Image

from safe_clip import load_quadruplets
from safe_clip.demo import world
from safe_clip.demo.dataset import SPLITS, load_objects, load_unsafe_images
from safe_clip.demo.vocabulary import load_vocabulary, without_article

from .test_world import mentions


@pytest.fixture(scope="module")
def splits():
    return load_quadruplets("demo")


@pytest.mark.slow
def test_splits_and_columns(splits):
    assert {name: len(rows) for name, rows in splits.items()} == {name: count for name, (count, *_) in SPLITS.items()}
    columns = ["safe_caption", "safe_image", "unsafe_caption", "unsafe_image", "category", "concept"]
    for rows in splits.values():
        assert rows.column_names == columns
        assert isinstance(rows.features["safe_image"], Image)
    assert splits["train"][0]["safe_image"].size == (64, 64)


@pytest.mark.slow
def test_fine_tuning_never_sees_the_held_out_concepts(splits):
    unsafe = [c for c in load_vocabulary() if c.category]
    for name, rows in splits.items():
        found = {c for caption in rows["unsafe_caption"] for c in mentions(caption, unsafe)}
        expected = {c for c in unsafe if c.held_out == (name == "held_out_concepts")}
        assert found == expected, name
        assert set(rows["concept"]) == {without_article(c.names[0]) for c in expected}


@pytest.mark.slow
def test_no_scene_is_in_two_splits(splits):
    seen = {}
    for name, rows in splits.items():
        for pair in zip(rows["safe_caption"], rows["unsafe_caption"], strict=True):
            assert seen.setdefault(pair, name) == name


def drawn_afresh(load, monkeypatch, folder):
    """What `load` draws, and checks that a second load draws nothing and gives the same."""
    with monkeypatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        rows = load()
        patch.setattr(world, "draw_object", None)
        again = load()
    assert again._fingerprint == rows._fingerprint
    return rows


def pixels(rows):
    return [image.tobytes() for image in rows["image"]]


def test_two_images_of_every_everyday_thing(monkeypatch, tmp_path):
    rows = drawn_afresh(lambda: load_objects("noto"), monkeypatch, tmp_path / "a")
    names = rows.features["label"].names
    assert len(names) == len(set(names)) == len(world.everyday_concepts()) == 544
    assert not [name for name in names if name.startswith("some ")] and names[:3] == ["rat", "mouse", "hamster"]
    assert list(rows["label"]) == [label for label in range(544) for _ in range(2)]
    assert {(image.mode, image.size) for image in rows["image"]} == {("RGB", (64, 64))}
    assert len(set(pixels(rows))) == 1088
    assert pixels(rows) == pixels(drawn_afresh(lambda: load_objects("noto"), monkeypatch, tmp_path / "b"))
    other = drawn_afresh(lambda: load_objects("fluent"), monkeypatch, tmp_path / "a")
    assert other.features["label"].names == names and not set(pixels(other)) & set(pixels(rows))


def test_eight_images_of_every_stand_in_in_every_style(monkeypatch, tmp_path):
    rows = drawn_afresh(load_unsafe_images, monkeypatch, tmp_path / "a")
    assert len([c for c in load_vocabulary() if c.category]) == 22
    assert rows.column_names == ["image"] and len(rows) == 22 * 3 * 8
    assert {(image.mode, image.size) for image in rows["image"]} == {("RGB", (64, 64))}
    assert len(set(pixels(rows))) == 22 * 3 * 8
    assert pixels(rows) == pixels(drawn_afresh(load_unsafe_images, monkeypatch, tmp_path / "b"))
