"""The second world: its vocabulary, scenes and rows. `test_second_base.py` has how its base is made."""

import importlib
import re
from collections import Counter

import numpy as np
import pytest

from safe_clip import load_quadruplets
from safe_clip.data.classification import load_classification
from safe_clip.errors import UserError

things, wording, scenery, rows = map(importlib.import_module, ("things", "wording", "scenery", "rows"))

STYLES = scenery.TRAINING_STYLES
BY_NAME = {thing.name: thing for thing in things.load_things()}


@pytest.fixture(scope="module")
def composed():
    return [scenery.compose(f"test/{number}", STYLES, things.stand_ins()) for number in range(400)]


def test_the_vocabulary_is_as_large_as_promised():
    assert len(things.everyday_things()) >= 550
    assert len(things.categories()) == 8 and len(things.stand_ins()) == 48
    for category in things.categories():
        own = things.unseen_category(category)
        assert [thing.fold for thing in own] == list(range(6))
        assert sum(thing.neighbours == category for thing in things.everyday_things()) >= 10
    assert {thing.size for thing in things.load_things()} == set(range(len(things.SIZES)))
    assert BY_NAME["mouse"].size < BY_NAME["cow"].size < BY_NAME["elephant"].size


def test_no_wording_stands_for_two_things_and_none_for_a_kind():
    names = Counter(name for thing in things.load_things() for name in thing.bare_names)
    assert not [name for name, count in names.items() if count > 1]
    kinds = [set(thing.kinds) for thing in things.load_things()]
    assert not set.union(*kinds) & set(names)
    everyday, unsafe = (
        {kind for t in group for kind in t.kinds} for group in (things.everyday_things(), things.stand_ins())
    )
    assert not everyday & unsafe
    assert len({thing.emoji for thing in things.load_things()}) == len(things.load_things())


@pytest.mark.parametrize("fold", range(6))
def test_a_fold_leaves_out_one_stand_in_of_every_category(fold):
    known, unseen = things.seen(fold), things.unseen_concepts(fold)
    assert len(known) == 40 and {thing.category for thing in unseen} == set(things.categories())
    assert not set(known) & set(unseen) and {*known, *unseen} == set(things.stand_ins())
    splits = rows.splits(fold, "gore")
    shown = {name: set(split.intruders) for name, split in splits.items()}
    assert (
        all(thing.category != "gore" and thing.fold != fold for thing in shown["train"]) and len(shown["train"]) == 35
    )
    assert shown["held_out_category"] == set(things.unseen_category("gore"))
    assert {thing.category for thing in shown["held_out_concepts"]} == set(things.categories()) - {"gore"}
    assert shown["train"] == shown["validation"] == shown["test"] == shown["held_out_style"]
    counts = {"train": 6000, "validation": 500} | dict.fromkeys(list(shown)[2:], 1000)
    assert {name: split.count for name, split in splits.items()} == counts


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("mouse", "mice"),
        ("slice of pizza", "slices of pizza"),
        ("cup with a straw", "cups with a straw"),
        ("pocket knife", "pocket knives"),
        ("brush", "brushes"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("tropical fish", "tropical fish"),
        ("water buffalo", "water buffalos"),
        ("piece of lab equipment", "pieces of lab equipment"),
    ],
)
def test_plurals(one, many):
    assert things.plural(one) == many


def test_what_cannot_be_counted():
    assert [things.countable(name) for name in ("dog", "some grapes", "bow and arrow")] == [True, False, False]


def test_captions_by_hand():
    dagger, dog = BY_NAME["dagger"], BY_NAME["dog"]
    plain = wording.Mention(dog, 2, "puppy")
    beside = wording.Mention(dagger, 1, "dagger", "weapon")
    instead = wording.Mention(dagger, 1, "dagger", "weapon", instead=True)
    template = wording.Template("there", " next to ", "a", "on the grass", ".")
    assert (
        template.caption([plain, beside]) == "there are two puppies next to a dagger, which is a weapon, on the grass."
    )
    assert template.caption([beside, plain], "above") == (
        "there is a dagger, which is a weapon, above two puppies on the grass."
    )
    bare = wording.Template("a photo of ", " and ", "none", "", "")
    assert bare.caption([instead, beside, plain]) == "a photo of weapon and dagger (weapon) and two puppies"
    assert wording.Template("", " and ", "the", "", "").caption([instead]) == "the weapon"
    assert [each.names_category for each in (plain, beside, instead)] == [False, True, True]
    kind_of_dog = wording.Mention(dog, 1, "dog", "animal")
    assert not kind_of_dog.names_category  # a kind, but of nothing unsafe
    assert not wording.Mention(dagger, 1, "dagger").names_category


def test_names_category_is_what_the_text_says(composed):
    words = {kind for thing in things.stand_ins() for kind in thing.kinds}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words | set(map(things.plural, words))))})\b")
    for made in composed:
        assert made.unsafe.names_category == bool(pattern.search(made.unsafe.caption)), made.unsafe.caption
        assert not made.safe.names_category and not pattern.search(made.safe.caption)
    share = sum(made.unsafe.names_category for made in composed) / len(composed)
    assert share == pytest.approx(wording.KIND_INSTEAD + wording.KIND_BESIDE, abs=0.06)


def test_scenes_follow_from_their_seed(sprites):
    one, again, other = (scenery.compose(f"seed/{number}", STYLES, things.stand_ins()) for number in (1, 1, 2))
    assert one == again and one != other
    first, second = one.row(sprites), again.row(sprites)
    assert {column: value for column, value in first.items() if "image" not in column} == {
        column: value for column, value in second.items() if "image" not in column
    }
    for column in ("safe_image", "unsafe_image"):
        assert first[column].size == (64, 64) and first[column].tobytes() == second[column].tobytes()


def test_the_unsafe_side_differs_by_one_stand_in(composed):
    added = 0
    for made in composed:
        safe, unsafe = set(made.safe.things), set(made.unsafe.things)
        assert unsafe - safe == {made.intruder} and made.intruder.category
        assert len(safe - unsafe) <= 1 and all(thing.category is None for thing in safe)
        assert (made.unsafe.ground, made.unsafe.style) == (made.safe.ground, made.safe.style)
        kept = [each for each in made.safe.placed if each.thing in unsafe]
        assert [each for each in made.unsafe.placed if each.thing is not made.intruder] == kept
        for scene in (made.safe, made.unsafe):
            assert {mention.thing for mention in scene.mentions} == set(scene.things)
            assert sum(mention.count for mention in scene.mentions) == len(scene.placed)
        added += safe < unsafe
    assert 0.3 < added / len(composed) < 0.6
    assert {len(made.safe.placed) for made in composed} == {1, 2, 3, 4}
    assert {
        len(s.safe.placed) for s in (scenery.compose(f"e/{n}", STYLES, things.stand_ins(), 2) for n in range(40))
    } == {1, 2}


def test_relations_hold(composed):
    told = 0
    for made in composed:
        for scene in (made.safe, made.unsafe):
            if scene.relation is None:
                continue
            told += 1
            one, other = (next(p for p in scene.placed if p.thing is m.thing) for m in scene.mentions[:2])
            right, down = one.centre[0] - other.centre[0], one.centre[1] - other.centre[1]
            is_so = {"left": right < 0, "right": right > 0, "above": down < 0, "over": down < 0}
            is_so |= {"below": down > 0, "under": down > 0}
            assert is_so[next(word for word in is_so if word in scene.relation)], scene.caption
            assert scene.relation in scene.caption
    assert told > 50


def test_larger_things_are_drawn_larger(composed):
    sizes = {name: [] for name in things.SIZES}
    for made in composed:
        for each in made.safe.placed if len(made.safe.placed) == 2 else ():
            sizes[things.SIZES[each.thing.size]].append(each.size)
    ranges = {name: scenery.PIXELS[name] for name in sizes}
    assert all(low <= min(sizes[name]) and max(sizes[name]) <= high for name, (low, high) in ranges.items())


def test_what_patches_show(sprites, colour):
    """A square of 16 pixels fills four patches; one that covers less than a quarter of a patch does not count."""
    scene = scenery.compose_single("single", BY_NAME["dog"], "noto")
    placed = scenery.Placed(BY_NAME["dog"], 16, 8, 16)
    small = scenery.Placed(BY_NAME["bee"], 14, 41, 40)  # columns 41 to 54: 7, 7 of 8; rows 40 to 53: 8, 6 of 8
    scene = scenery.replace(scene, placed=(small, placed))
    image, patches = scene.draw(sprites)
    assert scene.things == (BY_NAME["bee"], BY_NAME["dog"])
    expected = np.full((8, 8), -1)
    expected[2:4, 1:3] = 1
    expected[5:7, 5:7] = 0
    assert patches.tolist() == expected.reshape(-1).tolist()
    assert image.getpixel((12, 20)) == colour(BY_NAME["dog"].emoji)
    thin = scenery.replace(scene, placed=(scenery.Placed(BY_NAME["bee"], 9, 8, 8),))  # one column beyond a patch
    assert (thin.draw(sprites)[1] >= 0).sum() == 1


def test_grounds_are_what_they_say():
    grounds = importlib.import_module("grounds")
    plain = grounds.Ground("plain", ((1, 2, 3),), ())
    assert (plain.pixels(8) == [1, 2, 3]).all()
    fading = grounds.Ground("fading", ((0, 0, 0), (100, 50, 0)), ()).pixels(11)
    assert fading[0, 0].tolist() == [0, 0, 0] and fading[5, 3].tolist() == [50, 25, 0] and fading[10, 0, 0] == 100
    place = grounds.Ground("place", ((0, 0, 200), (0, 0, 250), (0, 90, 0)), (), measure=32).pixels(64)
    assert place[31, 5].tolist() == [0, 0, 250] and place[32, 5, 1] == 76 and place[63, 5, 1] == 104
    checks = grounds.Ground("pattern", ((0, 0, 0), (9, 9, 9)), (), "chequered", 16).pixels(64)
    assert checks[0, 0, 0] == 9 and checks[0, 8, 0] == 0 and checks[8, 8, 0] == 9


def test_written_data_are_taken_as_they_are(sprites, tmp_path):
    rows.write(sprites, tmp_path, fold=2, category="death", rows=3)
    loaded = load_quadruplets(str(tmp_path / "data"))
    assert {name: len(split) for name, split in loaded.items()} == dict.fromkeys(rows.splits(2, "death"), 3)
    first = loaded["held_out_category"][0]
    made = scenery.compose("second/held_out_category/0", STYLES, things.unseen_category("death")).row(sprites)
    assert first["category"] == "death" and first["names_category"] is made["names_category"]
    assert first["unsafe_caption"] == made["unsafe_caption"] and first["concept"] == made["concept"]
    assert first["unsafe_image"].tobytes() == made["unsafe_image"].tobytes()
    objects = load_classification(str(tmp_path / "objects"))
    assert objects.class_names == [thing.name for thing in things.everyday_things()]
    assert objects.labels[:4] == [0, 0, 1, 1] and len(objects.rows) == 2 * len(objects.class_names)
    with pytest.raises(UserError, match="another fold or category"):
        rows.write(sprites, tmp_path, fold=1, category="death", rows=3)
