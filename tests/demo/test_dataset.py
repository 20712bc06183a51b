import pytest
from datasets import Image

from safe_clip import load_quadruplets
from safe_clip.demo.dataset import SPLITS
from safe_clip.demo.vocabulary import load_vocabulary

from .test_world import mentions


@pytest.fixture(scope="module")
def splits():
    return load_quadruplets("demo")


@pytest.mark.slow
def test_splits_and_columns(splits):
    assert {name: len(rows) for name, rows in splits.items()} == {name: count for name, (count, *_) in SPLITS.items()}
    for rows in splits.values():
        assert rows.column_names == ["safe_caption", "safe_image", "unsafe_caption", "unsafe_image", "category"]
        assert isinstance(rows.features["safe_image"], Image)
    assert splits["train"][0]["safe_image"].size == (64, 64)


@pytest.mark.slow
def test_fine_tuning_never_sees_the_held_out_concepts(splits):
    unsafe = [c for c in load_vocabulary() if c.category]
    for name, rows in splits.items():
        found = {c for caption in rows["unsafe_caption"] for c in mentions(caption, unsafe)}
        expected = {c for c in unsafe if c.held_out == (name == "held_out_concepts")}
        assert found == expected, name


@pytest.mark.slow
def test_no_scene_is_in_two_splits(splits):
    seen = {}
    for name, rows in splits.items():
        for pair in zip(rows["safe_caption"], rows["unsafe_caption"], strict=True):
            assert seen.setdefault(pair, name) == name
