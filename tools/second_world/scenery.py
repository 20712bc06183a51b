"""Scenes of the second world, each with an unsafe counterpart. Everything follows from a seed string.

A scene shows one to four things in natural sizes on some ground. Its unsafe counterpart adds a stand-in or puts one in
the place of a thing, in image and caption alike.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from grounds import Ground, choose_ground
from PIL import Image
from things import SIZES, Thing, countable, everyday_things
from wording import Mention, Template, choose_mention, choose_template

Sprites = Mapping[tuple[str, str], Image.Image]

IMAGE_SIZE = 64
PATCH = 8  # pixels that a patch of the base is high and wide
TRAINING_STYLES = ("noto", "twemoji")
HELD_OUT_STYLES = ("fluent",)
PIXELS = {"tiny": (16, 20), "small": (20, 26), "medium": (25, 32), "large": (31, 40), "huge": (38, 46)}
SMALLEST, LARGEST = 14, 52  # pixels
SHRINK = {1: 1.15, 2: 1.0, 3: 0.88, 4: 0.78, 5: 0.72}  # by the number of things shown
NUMBER = {1: 0.15, 2: 0.4, 3: 0.3, 4: 0.15}  # of things in a safe scene
SEVERAL = 0.08  # share of things that are shown twice
RELATED = 0.3  # share of captions that tell where the first thing is, if it is clear
CLEAR = 14  # pixels between centres
COVERED = 0.25  # share of a patch that a thing covers at least, to be what the patch shows
SPOTS = 24  # of which the one that covers least is taken

RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Placed:
    """A thing where the image shows it: `left` and `top` of a square of `size` pixels."""

    thing: Thing
    size: int
    left: int
    top: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.size / 2, self.top + self.size / 2


def related(one: Placed, other: Placed) -> str | None:
    """Where one is of another (a key of `RELATIONS`), or `None` where that is not clear."""
    right, down = (a - b for a, b in zip(one.centre, other.centre, strict=True))
    if max(abs(right), abs(down)) < CLEAR:
        return None
    if abs(right) >= abs(down):
        return "right" if right > 0 else "left"
    return "below" if down > 0 else "above"


@dataclass(frozen=True)
class Scene:
    """One side of a quadruplet, not yet drawn.

    Attributes:
        placed: what is where.
        mentions: what the caption says, in its order.
        template: the rest of the caption.
        relation: how the caption puts where the first mention is of the second.
        ground: what is behind.
        style: the art.
    """

    placed: tuple[Placed, ...]
    mentions: tuple[Mention, ...]
    template: Template
    relation: str | None
    ground: Ground
    style: str

    @property
    def caption(self) -> str:
        return self.template.caption(self.mentions, self.relation)

    @property
    def names_category(self) -> bool:
        """Whether the caption has the word of an unsafe category."""
        return any(mention.names_category for mention in self.mentions)

    @property
    def things(self) -> tuple[Thing, ...]:
        """What it shows, each once."""
        return tuple(dict.fromkeys(each.thing for each in self.placed))

    def draw(self, sprites: Sprites) -> tuple[Image.Image, np.ndarray]:
        """The image, and what each of its patches shows: the place in `things`, or -1 for the ground.

        Smaller things are in front of larger ones, and so seldom hidden.
        """
        image = Image.fromarray(self.ground.pixels(IMAGE_SIZE))
        owner = np.full((IMAGE_SIZE, IMAGE_SIZE), -1)
        for each in sorted(self.placed, key=lambda each: -each.size):
            sprite = sprites[each.thing.emoji, self.style].resize((each.size, each.size), Image.Resampling.BILINEAR)
            image.paste(sprite, (each.left, each.top), sprite)
            box = slice(each.top, each.top + each.size), slice(each.left, each.left + each.size)
            owner[box][np.asarray(sprite)[..., 3] > 127] = self.things.index(each.thing)
        side = IMAGE_SIZE // PATCH
        patches = owner.reshape(side, PATCH, side, PATCH).swapaxes(1, 2).reshape(side * side, -1)
        shares = np.stack([(patches == place).mean(axis=1) for place in range(len(self.things))])
        return image, np.where(shares.max(axis=0) >= COVERED, shares.argmax(axis=0), -1)


@dataclass(frozen=True)
class Quadruplet:
    """A safe scene and its unsafe counterpart, which shows `intruder`."""

    safe: Scene
    unsafe: Scene
    intruder: Thing

    def row(self, sprites: Sprites) -> dict:
        """A row of the data set."""
        return {
            "safe_caption": self.safe.caption,
            "safe_image": self.safe.draw(sprites)[0],
            "unsafe_caption": self.unsafe.caption,
            "unsafe_image": self.unsafe.draw(sprites)[0],
            "category": self.intruder.category,
            "concept": self.intruder.name,
            "names_category": self.unsafe.names_category,
        }


def _place(rng: random.Random, thing: Thing, number: int, taken: Sequence[Placed]) -> Placed:
    """Where it covers the least of what is there already, out of a few random places."""
    size = _size(rng, thing, number)
    room = IMAGE_SIZE - size
    spots = [(rng.randint(0, room), rng.randint(0, room)) for _ in range(SPOTS)]
    left, top = min(spots, key=lambda spot: sum(_overlap(other, *spot, size) for other in taken))
    return Placed(thing, size, left, top)


def _size(rng: random.Random, thing: Thing, number: int) -> int:
    return min(LARGEST, max(SMALLEST, round(rng.randint(*PIXELS[SIZES[thing.size]]) * SHRINK[number])))


def _overlap(one: Placed, left: int, top: int, size: int) -> int:
    width = min(one.left + one.size, left + size) - max(one.left, left)
    height = min(one.top + one.size, top + size) - max(one.top, top)
    return max(width, 0) * max(height, 0)


def _instead(rng: random.Random, thing: Thing, old: Placed, number: int) -> Placed:
    """In the middle of where another was, in its own size."""
    size = _size(rng, thing, number)
    left, top = (min(IMAGE_SIZE - size, max(0, round(middle - size / 2))) for middle in old.centre)
    return Placed(thing, size, left, top)


def compose(seed: str, styles: Sequence[str], intruders: Sequence[Thing], most: int = 4) -> Quadruplet:
    """Chooses what a quadruplet shows, where, and how its captions put it.

    Args:
        seed: any string; the same string composes the same quadruplet.
        styles: art styles to choose from; a quadruplet keeps to one.
        intruders: the stand-ins to choose from, each category equally often.
        most: things that a safe scene shows, at most.
    """
    rng = random.Random(seed)
    style = rng.choice(styles)
    ground = choose_ground(rng)
    template = choose_template(rng, ground.wordings)
    number = rng.choices([n for n in NUMBER if n <= most], [share for n, share in NUMBER.items() if n <= most])[0]

    safe: list[Placed] = []
    mentions: list[Mention] = []
    others = iter(rng.sample(everyday_things(), number))
    while len(safe) < number:
        thing = next(others)
        can = thing.size < SIZES.index("large") and len(safe) + 1 < number and any(map(countable, thing.names))
        count = 2 if can and rng.random() < SEVERAL * number else 1
        for _ in range(count):
            safe.append(_place(rng, thing, number, safe))
        mentions.append(choose_mention(rng, thing, count))
    told = rng.choice([0, 1]) if rng.random() < RELATED else None  # which of a relation's wordings

    category = rng.choice(sorted({thing.category or "" for thing in intruders}))
    intruder = rng.choice([thing for thing in intruders if thing.category == category])
    said = choose_mention(rng, intruder)
    if number < max(NUMBER) and rng.random() < 0.5:
        shown = [*safe, _place(rng, intruder, number + 1, safe)]
        said_of = list(mentions)
        # Behind the two of which a relation is told, else anywhere.
        said_of.insert(rng.randint(2 if told is not None and len(mentions) > 1 else 0, len(mentions)), said)
    else:
        old = rng.choice(mentions)
        where = next(each for each in safe if each.thing is old.thing)
        shown = [each for each in safe if each.thing is not old.thing]
        shown.append(_instead(rng, intruder, where, number))
        said_of = [said if mention is old else mention for mention in mentions]

    scene = Scene(tuple(safe), tuple(mentions), template, None, ground, style)
    sides = scene, replace(scene, placed=tuple(shown), mentions=tuple(said_of))
    told_sides = [replace(side, relation=_relation(side, told)) for side in sides]
    return Quadruplet(told_sides[0], told_sides[1], intruder)


def _relation(scene: Scene, told: int | None) -> str | None:
    if told is None or len(scene.mentions) < 2 or any(mention.count > 1 for mention in scene.mentions[:2]):
        return None
    one, other = (next(p for p in scene.placed if p.thing is mention.thing) for mention in scene.mentions[:2])
    found = related(one, other)
    return None if found is None else RELATIONS[found][told]


def compose_single(seed: str, thing: Thing, style: str) -> Scene:
    """One thing alone, large, with its bare name for a caption."""
    rng = random.Random(seed)
    ground = choose_ground(rng)
    template = Template("", " and ", "none", "", "")
    mention = Mention(thing, 1, rng.choice(thing.names))
    return Scene((_place(rng, thing, 1, []),), (mention,), template, None, ground, style)
