import random
from collections import Counter

import numpy as np
import pytest

from safe_clip.demo import world
from safe_clip.demo.vocabulary import load_vocabulary, with_article, without_article

STYLES = world.TRAINING_STYLES
SEEN = world.unsafe_concepts(held_out=False)
HELD_OUT = world.unsafe_concepts(held_out=True)


@pytest.fixture(scope="module")
def quadruplets():
    return [world.draw_quadruplet(f"test-world/{i}", STYLES, SEEN) for i in range(400)]


def mentions(caption, concepts):
    """Concepts one of whose wordings the caption has, as whole words."""
    caption = caption.replace("fork and knife", "cutlery")  # the one everyday thing named after an unsafe one
    padded = f" {caption.replace(',', ' ').replace('(', ' ').replace(')', ' ')} "
    return [c for c in concepts if any(f" {without_article(name)} " in padded for name in c.names)]


def test_the_vocabulary_is_what_the_world_promises():
    vocabulary = load_vocabulary()
    everyday = [c for c in vocabulary if c.category is None]
    assert 500 <= len(everyday) <= 600
    assert Counter(c.category for c in vocabulary if c.category) == {"weapons": 7, "drugs": 5, "gore": 6, "abuse": 4}
    assert Counter(c.category for c in HELD_OUT) == {"weapons": 1, "drugs": 1, "gore": 1, "abuse": 1}
    names = [name for c in vocabulary for name in c.names]
    assert len(names) == len(set(names)), "two concepts share a wording"
    assert not {c.hypernyms for c in everyday} & {c.hypernyms for c in vocabulary if c.category}


def test_every_concept_has_a_sprite_in_every_style():
    sprites = world.load_sprites()
    assert set(sprites) == {
        (c.emoji, style) for c in load_vocabulary() for style in (*world.TRAINING_STYLES, *world.HELD_OUT_STYLES)
    }
    for (emoji, style), sprite in sprites.items():
        assert sprite.mode == "RGBA" and max(sprite.size) == world.SPRITE_SIZE, (emoji, style)
        assert np.asarray(sprite)[..., 3].mean() > 10, f"{emoji} in {style} is all but transparent"
    assert world.SPRITES_FILE.stat().st_size < 6e6


def test_a_seed_draws_the_same_quadruplet_again():
    random.seed(1)
    first = world.draw_quadruplet("x/1", STYLES, SEEN)
    random.seed(2)
    second = world.draw_quadruplet("x/1", STYLES, SEEN)
    other = world.draw_quadruplet("x/2", STYLES, SEEN)
    assert first["safe_caption"] == second["safe_caption"] != other["safe_caption"]
    for column in ("safe_image", "unsafe_image"):
        assert first[column].tobytes() == second[column].tobytes() != other[column].tobytes()


def test_pinned_scenes():
    """Figures in the documentation hold for these scenes; if they change, every figure has to be made again."""
    rows = [world.draw_quadruplet(f"test/{i}", STYLES, SEEN) for i in range(3)]
    assert [(row["safe_caption"], row["unsafe_caption"]) for row in rows] == PINNED


PINNED = [
    (
        "a drawing of a paintbrush near a candle, brown background",
        "a drawing of a drug near a paintbrush and a candle, brown background",
    ),
    ("a bus near a dog on a purple background", "a bus near a dog and a zombie on a purple background"),
    (
        "here you see stadium (building) and shirt and tie on red",
        "here you see stadium (building) and dynamite stick and shirt and tie on red",
    ),
]


def test_the_unsafe_side_adds_or_replaces_half_of_the_time(quadruplets):
    added = 0
    for row in quadruplets:
        safe, unsafe = (np.asarray(row[f"{side}_image"], dtype=int) for side in ("safe", "unsafe"))
        changed = (safe != unsafe).any(axis=-1)
        assert changed.any()
        # The rest of the scene stays: what changes fits in the box of one object.
        ys, xs = np.nonzero(changed)
        assert np.ptp(ys) < world.OBJECT_SIZES[1] and np.ptp(xs) < world.OBJECT_SIZES[1]
        # An added mention is joined by one more "and", or takes the first place.
        added += len(row["unsafe_caption"].split(" and ")) > len(row["safe_caption"].split(" and "))
    assert 0.42 < added / len(quadruplets) < 0.58


def test_unsafe_captions_name_a_stand_in_of_the_category_and_safe_ones_none(quadruplets):
    unsafe = [c for c in load_vocabulary() if c.category]
    named = 0
    for row in quadruplets:
        assert not mentions(row["safe_caption"], unsafe), row["safe_caption"]
        found = mentions(row["unsafe_caption"], unsafe)
        assert {c.category for c in found} <= {row["category"]}
        assert all(not c.held_out for c in found)
        named += bool(found)
    assert named / len(quadruplets) == pytest.approx(1 - world.HYPERNYM_INSTEAD, abs=0.05)
    assert set(Counter(row["category"] for row in quadruplets)) == {"weapons", "drugs", "gore", "abuse"}


def test_captions_use_hypernyms_for_safe_and_unsafe_objects_alike(quadruplets):
    beside = sum("a weapon" in row["unsafe_caption"] or "(weapon)" in row["unsafe_caption"] for row in quadruplets)
    of_weapons = sum(row["category"] == "weapons" for row in quadruplets)
    assert 0.15 < beside / of_weapons < 0.5
    assert sum(", an animal," in row["safe_caption"] for row in quadruplets) > 5


def test_safe_scenes_show_two_objects_on_the_ground_that_the_caption_names(quadruplets):
    for row in quadruplets[:100]:
        corner = np.asarray(row["safe_image"])[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        for name, colour in world.GROUNDS.items():
            if f" {name} background" in row["safe_caption"] or f"on {name}" in row["safe_caption"]:
                near = (abs(corner - colour) <= world.GROUND_JITTER).all(axis=-1)
                assert near.sum() >= 1, row["safe_caption"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apple", "an apple"),
        ("dog", "a dog"),
        ("unicorn", "a unicorn"),
        ("ufo", "a ufo"),
        ("hourglass", "an hourglass"),
        ("umbrella", "an umbrella"),
        ("some grapes", "some grapes"),
        ("pair of jeans", "a pair of jeans"),
    ],
)
def test_articles(name, expected):
    assert with_article(name) == expected


def test_bare_nouns():
    assert without_article("some grapes") == "grapes"
