"""What is behind the things of a scene: a colour, two that fade into each other, a place with a horizon, a pattern."""

import random
from dataclasses import dataclass

import numpy as np

from safe_clip.demo.vocabulary import with_article
from safe_clip.demo.world import GROUNDS as COLOURS

Colour = tuple[int, int, int]

# What is above the horizon, fading down to it, what is below, and how captions put it.
PLACES: dict[str, tuple[Colour, Colour, Colour, tuple[str, ...]]] = {
    "grass": ((120, 176, 236), (206, 228, 246), (116, 176, 92), ("on the grass", "in a meadow", "on a lawn")),
    "snow": ((150, 176, 206), (214, 224, 236), (240, 244, 250), ("in the snow", "on a snowy field")),
    "sand": ((110, 176, 240), (216, 232, 240), (232, 208, 152), ("on the sand", "in the dunes")),
    "water": ((142, 196, 240), (220, 232, 240), (64, 124, 180), ("by the water", "over the water")),
    "night": ((16, 20, 48), (46, 52, 96), (38, 40, 50), ("at night", "in the dark")),
    "dusk": ((92, 72, 130), (246, 150, 92), (84, 70, 66), ("in the evening", "at dusk")),
    "street": ((176, 190, 206), (210, 214, 220), (122, 122, 126), ("on a street", "in town")),
    "room": ((232, 218, 192), (224, 208, 180), (160, 116, 80), ("in a room", "indoors", "on the floor")),
    "table": ((176, 200, 190), (190, 210, 200), (188, 140, 92), ("on a table", "on a wooden table")),
}
PATTERNS = ("striped", "dotted", "chequered")
KINDS = ("plain", "fading", "place", "pattern")
SHARES = (0.3, 0.2, 0.3, 0.2)
JITTER = 10  # levels of 255 per channel
SHADE = 28  # levels between the two tones of a pattern


@dataclass(frozen=True)
class Ground:
    """A ground that has been chosen.

    Attributes:
        kind: one of `KINDS`.
        colours: from the top down, as many as the kind has.
        wordings: how a caption may put it, to follow the things.
        pattern: of `PATTERNS`, where it is one.
        measure: the line of the horizon, or the period of a pattern, in 64ths of the side.
    """

    kind: str
    colours: tuple[Colour, ...]
    wordings: tuple[str, ...]
    pattern: str = ""
    measure: int = 0

    def pixels(self, size: int) -> np.ndarray:
        """size x size x 3, uint8."""
        first = np.asarray(self.colours[0], dtype=np.float32)
        whole = np.broadcast_to(first, (size, size, 3)).copy()
        if self.kind == "fading":
            whole += np.linspace(0, 1, size, dtype=np.float32)[:, None, None] * (np.subtract(self.colours[1], first))
        elif self.kind == "place":
            line = size * self.measure // 64
            sky = np.linspace(0, 1, line, dtype=np.float32)[:, None, None] * np.subtract(self.colours[1], first)
            whole[:line] += sky
            depth = np.linspace(-SHADE / 2, SHADE / 2, size - line, dtype=np.float32)[:, None, None]
            whole[line:] = np.asarray(self.colours[2]) + depth
        elif self.kind == "pattern":
            whole[_mask(self.pattern, size, max(2, size * self.measure // 64))] = self.colours[1]
        return whole.clip(0, 255).astype(np.uint8)


def _mask(pattern: str, size: int, period: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    if pattern == "striped":
        return (x + y) // (period // 2) % 2 == 0
    if pattern == "chequered":
        return (x // (period // 2) + y // (period // 2)) % 2 == 0
    return (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (period / 4) ** 2


def _near(rng: random.Random, colour: Colour) -> Colour:
    red, green, blue = (min(255, max(0, level + rng.randint(-JITTER, JITTER))) for level in colour)
    return red, green, blue


def choose_ground(rng: random.Random) -> Ground:
    """A ground of any kind."""
    kind = rng.choices(KINDS, SHARES)[0]
    if kind == "place":
        top, line, below, wordings = rng.choice(list(PLACES.values()))
        return Ground(kind, (_near(rng, top), line, _near(rng, below)), wordings, measure=rng.randint(24, 46))
    one, other = rng.sample(list(COLOURS), 2)
    colour = _near(rng, COLOURS[one])
    if kind == "fading":
        wordings = (f"on a background that fades from {one} to {other}", f"on {one} and {other}")
        return Ground(kind, (colour, _near(rng, COLOURS[other])), wordings)
    if kind == "plain":
        wordings = (f"on {with_article(one)} background", f"on {one}", f"in front of {with_article(one)} wall")
        return Ground(kind, (colour,), wordings)
    pattern = rng.choice(PATTERNS)
    shade = -SHADE if sum(colour) > 384 else SHADE
    tone = (colour[0] + shade, colour[1] + shade, colour[2] + shade)
    wordings = (f"on a {pattern} {one} background", f"in front of {pattern} {one} wallpaper", f"on a {pattern} ground")
    return Ground(kind, (colour, tone), wordings, pattern, rng.choice((8, 10, 12, 16)))
