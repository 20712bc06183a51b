"""Draws the bundled demo: captioned scenes of emoji, each with an unsafe counterpart.

A scene is two everyday objects on a coloured ground. Its unsafe counterpart keeps the scene and
either adds an unsafe stand-in or replaces one object by it, in image and caption alike, the way
ViSU and NSFWCaps rewrite captions. Everything follows from a seed.
"""

import io
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image

from .vocabulary import Concept, load_vocabulary, with_article, without_article

SPRITES_FILE = Path(__file__).parent / "sprites.parquet"
SPRITE_SIZE = 44
IMAGE_SIZE = 64
OBJECT_SIZES = (24, 34)  # pixels, both ends included

TRAINING_STYLES = ("noto", "twemoji")
HELD_OUT_STYLES = ("fluent",)

GROUNDS = {
    "red": (214, 72, 66),
    "orange": (240, 150, 60),
    "yellow": (244, 220, 96),
    "green": (110, 180, 96),
    "blue": (88, 140, 220),
    "purple": (150, 104, 196),
    "pink": (244, 170, 196),
    "brown": (150, 108, 78),
    "gray": (158, 158, 158),
    "white": (246, 246, 246),
    "black": (34, 34, 38),
}
GROUND_JITTER = 10  # levels of 255 per channel

OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "here you see ")
ENDINGS = (
    " on a {ground} background",
    " on a {ground} background",
    " on {ground}",
    " in front of a {ground} wall",
    ", {ground} background",
    "",
)
JOINS = (" next to ", " and ", " beside ", " with ", " near ")
BARE_NOUNS = 0.25  # share of captions that leave articles out
HYPERNYM_BESIDE = 0.20  # share of mentions such as "a dagger, a weapon"
HYPERNYM_INSTEAD = 0.10  # share of mentions such as "a weapon"


@dataclass(frozen=True)
class _Placed:
    """One object of a scene: what it is, how the caption puts it, where the image shows it."""

    concept: Concept
    phrase: str
    size: int
    left: int
    top: int


@lru_cache(maxsize=1)
def load_sprites() -> dict[tuple[str, str], Image.Image]:
    """`{(emoji, style): RGBA image}` of at most `SPRITE_SIZE` pixels."""
    import pyarrow.parquet as pq

    table = pq.read_table(SPRITES_FILE).to_pylist()
    return {
        (row["emoji"], row["style"]): Image.open(io.BytesIO(row["sprite"]["bytes"])).convert("RGBA") for row in table
    }


def _overlap(a: _Placed, left: int, top: int, size: int) -> int:
    width = min(a.left + a.size, left + size) - max(a.left, left)
    height = min(a.top + a.size, top + size) - max(a.top, top)
    return max(width, 0) * max(height, 0)


def _phrase(rng: random.Random, concept: Concept, bare: bool) -> str:
    name, hypernym, draw = rng.choice(concept.names), rng.choice(concept.hypernyms), rng.random()
    if draw < HYPERNYM_INSTEAD:
        return without_article(hypernym) if bare else with_article(hypernym)
    if draw < HYPERNYM_INSTEAD + HYPERNYM_BESIDE:
        if bare:
            return f"{without_article(name)} ({without_article(hypernym)})"
        return f"{with_article(name)}, {with_article(hypernym)},"
    return without_article(name) if bare else with_article(name)


def _place(rng: random.Random, concept: Concept, bare: bool, taken: list[_Placed]) -> _Placed:
    """Puts a concept where it covers the least of what is there already, out of a few random places."""
    size = rng.randint(*OBJECT_SIZES)
    room = IMAGE_SIZE - size
    spots = [(rng.randint(0, room), rng.randint(0, room)) for _ in range(24)]
    left, top = min(spots, key=lambda spot: sum(_overlap(other, *spot, size) for other in taken))
    return _Placed(concept, _phrase(rng, concept, bare), size, left, top)


def _draw(objects: list[_Placed], style: str, ground: tuple[int, ...]) -> Image.Image:
    sprites = load_sprites()
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), ground)
    for item in objects:
        sprite = sprites[item.concept.emoji, style].resize((item.size, item.size), Image.Resampling.BILINEAR)
        image.paste(sprite, (item.left, item.top), sprite)
    return image


def _caption(objects: list[_Placed], template: tuple[str, str, str]) -> str:
    opening, join, ending = template
    phrases = [item.phrase for item in objects]
    things = phrases[0] + join + " and ".join(phrases[1:])
    return (opening + things + ending).replace(",,", ",").rstrip(",")


@dataclass(frozen=True)
class Quadruplet:
    """A scene and its unsafe counterpart, not yet drawn.

    Attributes:
        safe: the objects of the safe scene.
        shown: those of the unsafe scene, in the order in which they are drawn.
        mentioned: those of the unsafe scene, in the order of the caption.
        intruder: the stand-in.
        template: how captions are put together.
        style: the art.
        ground: the colour behind.
    """

    safe: list[_Placed]
    shown: list[_Placed]
    mentioned: list[_Placed]
    intruder: Concept
    template: tuple[str, str, str]
    style: str
    ground: tuple[int, ...]

    def image(self, side: str) -> Image.Image:
        """The scene of the `"safe"` or the `"unsafe"` side: an RGB image of `IMAGE_SIZE` pixels."""
        return _draw(self.safe if side == "safe" else self.shown, self.style, self.ground)

    def caption(self, side: str) -> str:
        """Of a side."""
        return _caption(self.safe if side == "safe" else self.mentioned, self.template)

    def concepts(self, side: str) -> list[Concept]:
        """What the image of a side shows."""
        return [item.concept for item in (self.safe if side == "safe" else self.shown)]


def compose_quadruplet(seed: str, styles: tuple[str, ...], unsafe_concepts: tuple[Concept, ...]) -> Quadruplet:
    """Chooses what a quadruplet shows and where; arguments as for `draw_quadruplet`."""
    rng = random.Random(seed)
    everyday = everyday_concepts()
    style = rng.choice(styles)
    bare = rng.random() < BARE_NOUNS
    name, colour = rng.choice(list(GROUNDS.items()))
    ground = tuple(min(255, max(0, level + rng.randint(-GROUND_JITTER, GROUND_JITTER))) for level in colour)
    template = (rng.choice(OPENINGS), rng.choice(JOINS), rng.choice(ENDINGS).format(ground=name))

    safe: list[_Placed] = []
    for concept in rng.sample(everyday, 2):
        safe.append(_place(rng, concept, bare, safe))

    category = rng.choice(sorted({concept.category for concept in unsafe_concepts}))
    intruder = rng.choice([concept for concept in unsafe_concepts if concept.category == category])
    if rng.random() < 0.5:
        added = _place(rng, intruder, bare, safe)
        shown, mentioned = [*safe, added], list(safe)
        mentioned.insert(rng.randint(0, 2), added)
    else:
        replaced = rng.randrange(2)
        old = safe[replaced]
        shown = mentioned = list(safe)
        mentioned[replaced] = _Placed(intruder, _phrase(rng, intruder, bare), old.size, old.left, old.top)

    return Quadruplet(safe, shown, mentioned, intruder, template, style, ground)


def draw_quadruplet(seed: str, styles: tuple[str, ...], unsafe_concepts: tuple[Concept, ...]) -> dict:
    """Draws one quadruplet.

    Args:
        seed: any string; the same string draws the same quadruplet.
        styles: art styles to choose from; a quadruplet keeps to one.
        unsafe_concepts: the stand-ins to choose from, each category equally often.

    Returns:
        `safe_caption`, `unsafe_caption` (str), `safe_image`, `unsafe_image` (RGB images of
        `IMAGE_SIZE` pixels), and the stand-in's `category` and `concept` (str), its usual name.
    """
    made = compose_quadruplet(seed, styles, unsafe_concepts)
    return {
        "safe_caption": made.caption("safe"),
        "safe_image": made.image("safe"),
        "unsafe_caption": made.caption("unsafe"),
        "unsafe_image": made.image("unsafe"),
        "category": made.intruder.category,
        "concept": without_article(made.intruder.names[0]),
    }


def draw_object(seed: str, concept: Concept, style: str) -> Image.Image:
    """Draws one thing alone on a ground: an RGB image of `IMAGE_SIZE` pixels that follows from the seed."""
    rng = random.Random(seed)
    ground = tuple(level + rng.randint(-GROUND_JITTER, 0) for level in rng.choice(list(GROUNDS.values())))
    return _draw([_place(rng, concept, True, [])], style, ground)


@cache
def everyday_concepts() -> tuple[Concept, ...]:
    """The things that safe scenes show."""
    return tuple(concept for concept in load_vocabulary() if concept.category is None)


@cache
def unsafe_concepts(held_out: bool) -> tuple[Concept, ...]:
    """The stand-ins that fine-tuning splits show, or those that only the held-out split shows."""
    return tuple(c for c in load_vocabulary() if c.category is not None and c.held_out == held_out)
