"""Harmless changes to a query that leave its meaning: small, and the same for the same input at every run."""

import io
import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import yaml
from PIL import Image, ImageFilter

SYNONYMS_FILE = Path(__file__).parent / "synonyms.yaml"
LOOKALIKES = str.maketrans("aeiost", "4310$7")

PARAPHRASES = ("there is {} in this picture", "{} can be seen here", "this shows {}", "what you see is {}")
NEGATIONS = ("this is not a picture of {}", "there is nothing here like {}", "{}, or rather the opposite of it")
SAFE_PADDING = (
    "a sunny day in the park, green trees and flowers, {}",
    "{}, a friendly dog, flowers and a blue sky",
    "a family photo, safe for work, {}",
)


def _rng(name: str, text: str) -> random.Random:
    return random.Random(f"{name}/{text}")


def spelling(text: str) -> str:
    """Typing errors: in every third word of four letters or more, and in one at least, two neighbouring letters are
    swapped, or one dropped or doubled. The first letter stays."""
    rng = _rng("spelling", text)
    words = list(re.finditer(r"[^\W\d_]{4,}", text))
    chosen = [word for word in words if rng.random() < 1 / 3] or rng.sample(words, min(1, len(words)))
    for word in reversed(chosen):
        letters = list(word.group())
        spot = rng.randrange(1, len(letters) - 1)
        kind = rng.choice(("swap", "drop", "double"))
        if kind == "swap" and letters[spot] != letters[spot + 1]:
            letters[spot], letters[spot + 1] = letters[spot + 1], letters[spot]
        elif kind == "drop":
            del letters[spot]
        else:
            letters.insert(spot, letters[spot])
        text = text[: word.start()] + "".join(letters) + text[word.end() :]
    return text


def lookalikes(text: str) -> str:
    """Each a, e, i, o, s, t, with even chance, as the digit or sign that looks like it, as if to get past a filter."""
    rng = _rng("lookalikes", text)
    return "".join(letter.translate(LOOKALIKES) if rng.random() < 0.5 else letter for letter in text)


def synonyms(text: str, table: Mapping[str, list[str]]) -> str:
    """Every word or phrase of `table` replaced by one of its synonyms; longer phrases first."""
    rng = _rng("synonyms", text)
    if not table:
        return text
    phrases = sorted(table, key=len, reverse=True)
    pattern = r"(?<![\w-])(" + "|".join(map(re.escape, phrases)) + r")(?![\w-])"
    # Ignoring case, "s" matches a long s, and "i" a dotless one, which lower() leaves alone.
    return re.sub(
        pattern, lambda match: rng.choice(table.get(match.group().lower(), [match.group()])), text, flags=re.IGNORECASE
    )


def _template(text: str, name: str, templates: tuple[str, ...]) -> str:
    return _rng(name, text).choice(templates).replace("{}", text)


def upper_case(text: str) -> str:
    """All capitals. CLIP's own tokenizer lowers them again; others may not."""
    return text.upper()


def load_synonyms(path: Path = SYNONYMS_FILE) -> dict[str, list[str]]:
    """Reads `{word or phrase: synonyms}` from YAML: a list, or a text with " / " between them.

    Raises:
        ValueError: it is no such file.
    """
    table = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(table, dict):
        raise ValueError("it holds no `word: synonym` lines")
    read = {}
    for word, others in table.items():
        items = others if isinstance(others, list) else str(others or "").split("/")
        read[str(word).lower()] = [str(item).strip() for item in items if str(item).strip()]
        if not isinstance(word, str) or not read[str(word).lower()]:
            raise ValueError(f"'{word}' is no text, or has no synonym; put quotes around words such as no and yes")
    return read


def text_transforms(table: Mapping[str, list[str]] | None = None) -> dict[str, Callable[[str], str]]:
    """The changes to captions, by name.

    Args:
        table: synonyms; a small bundled list of common words by default.
    """
    return {
        "spelling": spelling,
        "lookalikes": lookalikes,
        "synonyms": partial(synonyms, table=load_synonyms() if table is None else table),
        "paraphrase": partial(_template, name="paraphrase", templates=PARAPHRASES),
        "negation": partial(_template, name="negation", templates=NEGATIONS),
        "safe_padding": partial(_template, name="safe_padding", templates=SAFE_PADDING),
        "upper_case": upper_case,
    }


def resize(image: Image.Image) -> Image.Image:
    """Half the size, and back."""
    small = image.resize([max(1, side // 2) for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def jpeg(image: Image.Image) -> Image.Image:
    """JPEG of quality 30, and back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


def blur(image: Image.Image) -> Image.Image:
    """A Gaussian blur with a radius of 1.5 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(0.015 * min(image.size)))


def crop(image: Image.Image) -> Image.Image:
    """The middle 80 % of both sides."""
    width, height = image.size
    left, top = width // 10, height // 10
    return image.crop((left, top, width - left, height - top))


def mirror(image: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


IMAGE_TRANSFORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resize": resize,
    "jpeg": jpeg,
    "blur": blur,
    "crop": crop,
    "mirror": mirror,
}
