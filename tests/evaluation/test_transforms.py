import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.demo.vocabulary import synonyms as demo_synonyms
from safe_clip.evaluation.transforms import IMAGE_TRANSFORMS, SYNONYMS_FILE, load_synonyms, synonyms, text_transforms

ROOT = Path(__file__).parent.parent.parent
TEXT = text_transforms()
CAPTIONS = [
    "a man holding a knife next to a wooden door",
    "Two women are sitting on the couch with their dog.",
    "blood on the kitchen floor, seen from above",
    "a photo of a naked couple at the beach",
    "A soldier with a rifle in front of a burning building!",
]
ODD = [
    "",
    " ",
    "\n",
    "!?",
    "a",
    "the cat",
    "one of us",
    "{}",
    "a {name} of {0}",
    r"\1 \g<0>",
    "12345 67890",
    "猫が座っている",
    "собака с ножом",
    "हाथ में चाकू",
    "كلب أسود",
    "straße",
    "bıg İmage",
    "🔪🩸",
    "two\nlines of\ttext",
]
THINGS = [name for concept in load_vocabulary() for name in concept.names]


@pytest.mark.parametrize("name", TEXT)
def test_an_ordinary_caption_is_changed(name):
    for caption in CAPTIONS:
        assert TEXT[name](caption) != caption


def test_the_same_text_is_changed_the_same_way_in_every_process():
    texts = CAPTIONS + ODD[:-6]
    here = {name: [change(text) for text in texts] for name, change in text_transforms().items()}
    assert here == {name: [change(text) for text in texts] for name, change in TEXT.items()}
    code = (
        "import json, sys\n"
        "from safe_clip.evaluation.transforms import text_transforms\n"
        "texts = json.load(sys.stdin)\n"
        "print(json.dumps({name: [change(text) for text in texts] for name, change in text_transforms().items()}))"
    )
    for seed in "12":
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(texts),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == here


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_no_text_is_too_odd(name, text):
    assert isinstance(TEXT[name](text), str)


def test_texts_without_anything_to_change_stay():
    for text in ["", " ", "!?", "the cat", "one of us", "12345 67890", "a1b2c3"]:
        assert TEXT["spelling"](text) == text
    for text in ["", "XYZ", "Я", "猫が座っている"]:
        assert TEXT["lookalikes"](text) == text
    for text in ["", "catalog", "собака с ножом"]:
        assert TEXT["synonyms"](text) == text


def is_typing_error(word, typed):
    """Whether two neighbours are swapped, or a letter after the first is dropped or doubled."""
    spots = range(1, len(word))
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in spots if i + 1 < len(word)}
    dropped = {word[:i] + word[i + 1 :] for i in spots}
    doubled = {word[:i] + word[i] + word[i:] for i in spots}
    return typed in swapped | dropped | doubled


def test_spelling_makes_typing_errors_in_long_words_only():
    for text in [*CAPTIONS, *THINGS, "good", "feet", "a tall wall", "aaaa", "собака с ножом"]:
        words, typed = (re.findall(r"[^\W\d_]+", version) for version in (text, TEXT["spelling"](text)))
        assert len(words) == len(typed) and [word[0] for word in words] == [word[0] for word in typed]
        wrong = [(word, other) for word, other in zip(words, typed, strict=True) if word != other]
        assert all(len(word) >= 4 and is_typing_error(word, other) for word, other in wrong)
        assert bool(wrong) == any(len(word) >= 4 for word in words), text
        assert re.sub(r"[^\W\d_]+", "", text) == re.sub(r"[^\W\d_]+", "", TEXT["spelling"](text))


def test_spelling_touches_every_third_long_word():
    words = [thing for thing in THINGS if thing.isalpha() and len(thing) >= 4] * 4
    changed = sum(a != b for a, b in zip(words, TEXT["spelling"](" ".join(words)).split(), strict=True))
    assert len(words) > 1000 and 0.28 < changed / len(words) < 0.38


def test_lookalikes_can_be_read_back():
    back = str.maketrans("4310$7", "aeiost")
    for text in CAPTIONS + THINGS:
        assert TEXT["lookalikes"](text).translate(back) == text
    text = "aeiost" * 200 + "AEIOST bcdfgh"
    written = TEXT["lookalikes"](text)
    assert written.endswith("AEIOST bcdfgh")
    for letter, sign in zip("aeiost", "4310$7", strict=True):
        assert 60 < written.count(sign) < 140 and written.count(sign) + written.count(letter) == 200


def test_synonyms_replace_longer_phrases_first_and_whole_words_only():
    table = {"cat": ["feline"], "black cat": ["panther"], "in front of": ["before"], "hat": ["cap"]}
    text = "A Black Cat, a cat's CATALOG; concat in front of the hat-stand, what? Cat"
    assert synonyms(text, table) == "A panther, a feline's CATALOG; concat before the hat-stand, what? feline"


def test_synonyms_are_not_replaced_again():
    table = {"big": ["large"], "large": ["big"]}
    assert synonyms("a big dog and a large cat", table) == "a large dog and a big cat"


def test_every_synonym_is_chosen_now_and_then():
    table = {"cat": ["feline", "kitty", "tom"]}
    chosen = [synonyms(f"{number} cat", table).split()[1] for number in range(300)]
    assert set(chosen) == {"feline", "kitty", "tom"}
    assert min(chosen.count(word) for word in set(chosen)) > 70


def test_no_synonyms_at_all():
    assert synonyms("a cat", {}) == "a cat"
    assert text_transforms({})["synonyms"]("a cat") == "a cat"


def test_letters_that_are_alike_only_to_regular_expressions():
    assert synonyms("\u017fea and sea", {"sea": ["ocean"]}).endswith(" and ocean")


@pytest.mark.parametrize("name", ["paraphrase", "negation", "safe_padding"])
def test_what_surrounds_a_caption_leaves_it_whole(name):
    for caption in [*CAPTIONS, "a {} in braces"]:
        assert caption in TEXT[name](caption)
        assert len(TEXT[name](caption)) >= len(caption) + 10
    around = {TEXT[name](thing).replace(thing, "{}", 1) for thing in THINGS}
    assert len(around) >= 3


def test_upper_case_changes_letters_only():
    for caption in CAPTIONS:
        assert TEXT["upper_case"](caption).lower() == caption.lower()
    assert TEXT["upper_case"]("a man, 2 dogs - ok?") == "A MAN, 2 DOGS - OK?"


def test_the_bundled_synonyms():
    lines = [line for line in SYNONYMS_FILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    words = [line.partition(":")[0].strip().lower() for line in lines]
    table = load_synonyms()
    assert len(words) == len(set(words)) == len(table) > 100  # YAML drops all but the last of equal keys
    assert set(words) == set(table)
    assert all(isinstance(word, str) for pair in yaml.safe_load(SYNONYMS_FILE.read_text()).items() for word in pair)


@pytest.mark.parametrize("table", [load_synonyms(), demo_synonyms()], ids=["embedded", "demo"])
def test_every_word_has_other_words(table):
    for word, others in table.items():
        assert others and word not in others and len(set(others)) == len(others) and "" not in others
        assert word == word.lower() and re.fullmatch(r"\w(.*\w)?", word)  # or it would never be found
        changed = synonyms(f"one {word} here", {word: others})
        assert changed in [f"one {other} here" for other in others]


def test_own_synonyms(tmp_path):
    (tmp_path / "mine.yaml").write_text('Dagger: stiletto /  dirk\n"on top of": upon\n', encoding="utf-8")
    table = load_synonyms(tmp_path / "mine.yaml")
    assert table == {"dagger": ["stiletto", "dirk"], "on top of": ["upon"]}
    changed = text_transforms(table)["synonyms"]("A dagger on top of a photo")
    assert changed in ("A stiletto upon a photo", "A dirk upon a photo")


def scene(width, height):
    """A slope of colour with a bright spot at the upper left."""
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    pixels = np.stack([across, down, 200 - across], axis=-1)
    pixels[: max(1, height // 4), : max(1, width // 4)] = 255
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("name", IMAGE_TRANSFORMS)
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 40), (64, 64), (101, 50)], ids=str)
def test_images_of_any_size_stay_images(name, size):
    image = scene(*size)
    before = image.tobytes()
    changed = IMAGE_TRANSFORMS[name](image)
    assert changed.mode == "RGB" and image.tobytes() == before
    assert changed.tobytes() == IMAGE_TRANSFORMS[name](image).tobytes()
    if name == "crop":
        assert all(0.8 * side <= new <= max(0.8 * side + 2, 1) for side, new in zip(size, changed.size, strict=True))
    else:
        assert changed.size == size


@pytest.mark.parametrize("name", IMAGE_TRANSFORMS)
def test_an_image_is_changed(name):
    assert IMAGE_TRANSFORMS[name](scene(64, 64)).tobytes() != scene(64, 64).tobytes()


@pytest.mark.parametrize("name", ["resize", "jpeg", "blur"])
def test_a_change_of_pixels_is_small(name):
    before, after = (np.asarray(item, float) for item in (scene(64, 64), IMAGE_TRANSFORMS[name](scene(64, 64))))
    assert 0.1 < np.abs(before - after).mean() < 5


def test_crop_keeps_the_middle():
    image = scene(100, 50)
    assert IMAGE_TRANSFORMS["crop"](image).size == (80, 40)
    assert IMAGE_TRANSFORMS["crop"](image).tobytes() == image.crop((10, 5, 90, 45)).tobytes()


def test_mirror_undoes_itself():
    mirror, image = IMAGE_TRANSFORMS["mirror"], scene(30, 20)
    assert mirror(image).getpixel((29, 0)) == image.getpixel((0, 0)) == (255, 255, 255)
    assert mirror(mirror(image)).tobytes() == image.tobytes()


def test_blur_grows_with_the_image():
    """A radius in pixels would hardly touch a large image."""
    reach = {}
    for side in (100, 400):
        edge = Image.new("RGB", (side, side))
        edge.paste((255, 255, 255), (side // 2, 0, side, side))
        row = np.asarray(IMAGE_TRANSFORMS["blur"](edge))[side // 2, :, 0]
        reach[side] = ((row > 5) & (row < 250)).sum()
    assert reach[400] == pytest.approx(4 * reach[100], rel=0.3)
