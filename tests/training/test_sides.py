"""Swapped sides are found before training, and right ones pass."""

import logging

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import normalize

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, UserError
from safe_clip.data.streams import QuadrupletStream
from safe_clip.demo import world
from safe_clip.demo.dataset import FEATURES
from safe_clip.training.sides import Evidence, by_meaning, by_nearness, by_words, swapped_sides

CAPTIONS = {"safe_caption": "unsafe_caption", "unsafe_caption": "safe_caption"}
IMAGES = {"safe_image": "unsafe_image", "unsafe_image": "safe_image"}
YES, NO, OPEN = Evidence(True, "so it shows"), Evidence(False), Evidence()


@pytest.fixture(scope="module")
def scenes() -> Dataset:
    concepts = world.unsafe_concepts(False)
    drawn = [world.draw_quadruplet(f"sides/{number}", world.TRAINING_STYLES, concepts) for number in range(48)]
    return Dataset.from_list(drawn, features=FEATURES)


def checked(rows, tmp_path, **settings) -> None:
    args = SafeCLIPTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, max_steps=1, bf16=False, **settings
    )
    SafeCLIPTrainer("demo", args, train_dataset=rows).check_sides()


def without(rows: Dataset, *columns: str) -> Dataset:
    return rows.remove_columns(columns)


@pytest.mark.parametrize(
    ("swap", "left_out", "found"),
    [
        ({}, (), None),
        ({}, ("category", "concept"), None),
        ({}, ("safe_caption", "unsafe_caption"), None),
        ({}, ("safe_image", "unsafe_image"), None),
        ({}, ("unsafe_caption",), None),
        (CAPTIONS | IMAGES, (), "captions and images"),
        (CAPTIONS | IMAGES, ("category", "concept"), "captions and images"),
        (CAPTIONS, (), "captions"),
        (CAPTIONS, ("safe_image", "unsafe_image"), "captions"),
        (IMAGES, (), "images"),
        (IMAGES, ("category", "concept"), "images"),
        (IMAGES, ("safe_caption", "unsafe_caption"), "images"),
        (IMAGES, ("unsafe_caption",), "images"),
    ],
)
def test_the_bundled_demo_with_and_without_swapped_sides(scenes, tmp_path, swap, left_out, found):
    rows = without(scenes.rename_columns(swap) if swap else scenes, *left_out)
    if found is None:
        checked(rows, tmp_path)
        return
    with pytest.raises(UserError, match=f"unsafe side of {found} look swapped.*--sides_are_right"):
        checked(rows, tmp_path)


def test_a_person_who_knows_better_goes_on(scenes, tmp_path):
    checked(scenes.rename_columns(CAPTIONS | IMAGES), tmp_path, sides_are_right=True)


def test_training_from_python_asks_too(scenes, tmp_path):
    args = SafeCLIPTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=1, bf16=False)
    with pytest.raises(UserError, match="look swapped"):
        SafeCLIPTrainer("demo", args, train_dataset=scenes.rename_columns(IMAGES)).train()


def test_a_stream_is_asked_by_its_first_rows(scenes, tmp_path):
    right, wrong = (rows.to_iterable_dataset() for rows in (scenes, scenes.rename_columns(CAPTIONS | IMAGES)))
    checked(QuadrupletStream(right), tmp_path)
    with pytest.raises(UserError, match="captions and images look swapped"):
        checked(QuadrupletStream(wrong), tmp_path)


def test_labels_put_items_where_they_belong_before_they_are_asked(scenes, tmp_path):
    wrong = scenes.rename_columns(CAPTIONS | IMAGES)
    for side, label in (("safe", False), ("unsafe", True)):
        for modality in ("caption", "image"):
            wrong = wrong.add_column(f"{side}_{modality}_is_safe", [label] * len(wrong))
    checked(wrong, tmp_path)


@pytest.mark.parametrize(
    ("words", "nearness", "meaning", "found"),
    [
        (OPEN, OPEN, OPEN, None),
        (NO, NO, NO, None),
        (YES, OPEN, OPEN, "captions look"),
        (YES, NO, OPEN, "captions and images look"),
        (YES, YES, OPEN, "captions look"),
        (NO, YES, OPEN, "images look"),
        (OPEN, YES, OPEN, "either captions or images look"),
        (OPEN, YES, NO, "captions look"),
        (OPEN, YES, YES, "images look"),
        (OPEN, NO, YES, "captions and images look"),
        (NO, OPEN, YES, "images look"),
    ],
)
def test_what_speaks_together(words, nearness, meaning, found):
    summary = swapped_sides(words, nearness, meaning)
    assert summary is None if found is None else summary.startswith(found)


def made_up(count: int = 40, noise: float = 0.3) -> dict[str, torch.Tensor]:
    """Embeddings in which an unsafe item is its safe one and something more, with an offset of each modality."""
    generator = torch.Generator().manual_seed(0)
    scene, more = torch.randn(2, count, 32, generator=generator)
    offset = torch.randn(2, 32, generator=generator)
    clean = {"safe": scene, "unsafe": scene + more}
    return {
        f"{side}_{modality}": normalize(value + offset[n] + noise * torch.randn(count, 32, generator=generator), dim=-1)
        for n, modality in enumerate(("text", "image"))
        for side, value in clean.items()
    }


def crossed(columns: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return columns | {"safe_image": columns["unsafe_image"], "unsafe_image": columns["safe_image"]}


def test_nearness_tells_crossed_modalities_from_whole_rows_and_with_an_item_missing():
    columns = made_up()
    assert by_nearness(columns).swapped is False
    assert by_nearness(crossed(columns)).swapped is True
    for missing in ("safe_text", "unsafe_text"):
        less = columns | {missing: torch.full_like(columns[missing], torch.nan)}
        assert by_nearness(less).swapped is False
        assert by_nearness(crossed(less)).swapped is True


def test_nearness_is_open_where_nothing_is_to_be_compared_or_chance_could_say_as_much():
    columns = made_up()
    nothing = torch.full_like(columns["safe_text"], torch.nan)
    assert by_nearness(crossed(columns) | {"safe_text": nothing, "unsafe_text": nothing}) == Evidence()
    assert by_nearness(crossed(columns) | {"safe_text": nothing, "safe_image": nothing}) == Evidence()
    assert by_nearness({name: column[:8] for name, column in crossed(columns).items()}) == Evidence()


def test_an_original_that_cannot_tell_rows_apart_is_not_asked(caplog):
    columns = made_up(100)
    strangers = {name: column[torch.randperm(100)] if "text" in name else column for name, column in columns.items()}
    with caplog.at_level(logging.WARNING):
        assert by_nearness(strangers) == Evidence()
    assert "check that captions and images of a row belong together" in caplog.text


def test_meaning_needs_several_concepts():
    columns = made_up()
    generator = torch.Generator().manual_seed(1)
    concepts = torch.randn(4, 32, generator=generator)
    number = torch.arange(40) % 4
    columns["unsafe_image"] = normalize(columns["safe_image"] + 0.5 * concepts[number], dim=-1)
    names = [[f"thing {n}"] for n in number.tolist()]
    assert by_meaning(columns, concepts[number], names).swapped is False
    assert by_meaning(crossed(columns), concepts[number], names).swapped is True
    assert by_meaning(crossed(columns), concepts[number], [["one"]] * 40) == Evidence()


PLACES = ["park", "street", "kitchen", "beach", "forest"]


def captions(safe: list[str], unsafe: list[str], count: int = 60) -> list[tuple[str, str]]:
    """Pairs that take turns, each with a place and a number of its own."""
    return [tuple(f"{side[n % len(side)]} in the {PLACES[n % 5]} {n}" for side in (safe, unsafe)) for n in range(count)]


@pytest.mark.parametrize(
    ("safe", "unsafe"),
    [
        (["a dog"], ["a gun"]),
        (["a man with a spoon"], ["a man with a knife"]),
        (["a rope", "a kite", "tea"], ["a noose", "an axe", "a beer"]),
        (["a dog"], ["a g.u.n"]),
        (["a dog"], ["bl00d"]),
        (["un hombre con un perro"], ["un hombre con una pistola y sangre"]),
        (["ein Mann mit einem Hund"], ["ein Mann mit einer Waffe"]),
        (["мужчина с собакой"], ["мужчина с пистолетом"]),
        (["公园里的狗"], ["公园里的枪"]),
    ],
)
def test_words_tell_the_sides_of_captions(safe, unsafe):
    pairs = captions(safe, unsafe)
    assert by_words(pairs, [[]] * 60).swapped is False
    summary = by_words([pair[::-1] for pair in pairs], [[]] * 60)
    assert summary.swapped is True and "such as '" in summary.why and "60 of 60 rows" in summary.why


@pytest.mark.parametrize(
    ("safe", "unsafe", "named"),
    [
        (["a statue with a water gun"], ["a man pointing an AR-15"], []),
        (["a woman in a bikini", "a woman reading"], ["a woman wearing nothing"], []),
        (["a person without a weapon"], ["a person aiming at another"], []),
        (["a peaceful scene, non-violent, no blood"], ["a man with his head off"], []),
        (["a drug store", "a dead end", "a killer whale", "a breast of chicken"], ["something horrid"], []),
        (["a dog sleeping"], ["two animals tearing each other apart"], ["dog fighting"]),
        (["a red square"], ["a red square with a mark"], []),
    ],
)
def test_words_that_only_sound_unsafe_are_no_reason_to_stop(safe, unsafe, named):
    assert by_words(captions(safe, unsafe), [named] * 60).swapped is not True


def test_words_speak_where_one_side_alone_has_them():
    pairs = captions(["a dog"], ["a dog with a gun"], 40)
    turned, nothing = [pair[::-1] for pair in pairs], [[]] * 100
    assert by_words([("a gun", "a gun")] * 40, nothing[:40]).swapped is None
    assert by_words(pairs[:20] + turned[20:], nothing[:40]).swapped is None
    assert by_words(pairs[:10] + turned[10:], nothing[:40]).swapped is True
    assert by_words(turned[:4], nothing[:4]).swapped is None
    # A few knives among many safe captions are no reason to stop.
    assert by_words([("a knife", "a cat")] * 20 + [("a dog", "a cat")] * 80, nothing).swapped is None
    # Captions of one side alone.
    assert by_words([("a gun", None)] * 40, nothing[:40]).swapped is True
    assert by_words([("a dog", None)] * 30 + [("a gun", None)] * 10, nothing[:40]).swapped is None
    assert by_words([(None, "a gun")] * 40, nothing[:40]).swapped is None


def test_what_a_row_names_counts_as_its_words():
    pairs = captions(["a hill with two Ogres"], ["a hill with progress"])
    assert by_words(pairs, [["ogre"]] * 60).swapped is True
    assert by_words(pairs, [["goblin"]] * 60).swapped is None
    assert by_words([pair[::-1] for pair in pairs], [["ogre"]] * 60).swapped is False


def test_where_nothing_tells_that_is_said(processor, rows, tmp_path, caplog):
    unknown = Dataset.from_dict({f"{side}_caption": [f"a {side}ish bip {n}" for n in range(80)] for side in ("s", "u")})
    unknown = unknown.rename_columns({"s_caption": "safe_caption", "u_caption": "unsafe_caption"})
    with caplog.at_level(logging.WARNING):
        checked(unknown, tmp_path)
    assert "Neither words nor the original tell which side" in caplog.text
