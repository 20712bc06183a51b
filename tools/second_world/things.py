"""The things of the second world, how English names them, and which of them are unsafe.

`python tools/second_world/things.py` prints what there is.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from safe_clip.demo.vocabulary import without_article

VOCABULARY_FILE = Path(__file__).parent / "vocabulary.yaml"
SIZES = ("tiny", "small", "medium", "large", "huge")
FOLDS = 6


@dataclass(frozen=True)
class Thing:
    """One thing that a scene can show.

    Attributes:
        emoji: its Unicode emoji, the key of its sprites.
        names: wordings without article, the first being the usual one.
        kinds: names of the kind of thing it is ("weapon" for a dagger); of a stand-in, those of its category.
        size: its place in `SIZES`.
        category: the unsafe category it stands in for, or `None` for everyday things.
        fold: of a stand-in, the fold in which training never shows it.
        neighbours: of an everyday thing, the unsafe category that it is much like without being of it.
    """

    emoji: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    size: int
    category: str | None = None
    fold: int | None = None
    neighbours: str | None = None

    @property
    def name(self) -> str:
        """The usual wording, as a bare noun."""
        return without_article(self.names[0])

    @property
    def bare_names(self) -> tuple[str, ...]:
        """All wordings as bare nouns."""
        return tuple(map(without_article, self.names))


def _wordings(text: str) -> tuple[str, ...]:
    return tuple(text.split(" / "))


@cache
def load_things() -> tuple[Thing, ...]:
    """All things, everyday ones first, in the order of `vocabulary.yaml`."""
    tables = yaml.safe_load(VOCABULARY_FILE.read_text(encoding="utf-8"))
    of_kind, of_thing = {}, {}
    for place, size in enumerate(SIZES):
        of_kind |= dict.fromkeys(_wordings(tables["sizes"][size]["kinds"]), place)
        of_thing |= dict.fromkeys(tables["sizes"][size]["things"].split(), place)
    near = {emoji: category for category, emojis in tables["neighbours"].items() for emoji in emojis.split()}
    everyday = [
        Thing(
            emoji,
            _wordings(names),
            _wordings(kind),
            of_thing.get(emoji, of_kind[kind]),
            neighbours=near.get(emoji),
        )
        for kind, things in tables["everyday"].items()
        for emoji, names in things.items()
    ]
    unsafe = [
        Thing(
            emoji,
            _wordings(names),
            _wordings(table["kinds"]),
            of_thing.get(emoji, of_kind[category]),
            category,
            fold,
        )
        for category, table in tables["unsafe"].items()
        for fold, (emoji, names) in enumerate(table["concepts"].items())
    ]
    return (*everyday, *unsafe)


@cache
def everyday_things() -> tuple[Thing, ...]:
    """What safe scenes show."""
    return tuple(thing for thing in load_things() if thing.category is None)


@cache
def stand_ins() -> tuple[Thing, ...]:
    """All that plays what is unsafe."""
    return tuple(thing for thing in load_things() if thing.category is not None)


@cache
def categories() -> tuple[str, ...]:
    """The unsafe categories, in the order of the file."""
    return tuple(dict.fromkeys(thing.category for thing in stand_ins() if thing.category))


def seen(fold: int, category: str | None = None) -> tuple[Thing, ...]:
    """The stand-ins that training shows: all but those of a fold and those of a category."""
    return tuple(thing for thing in stand_ins() if thing.fold != fold and thing.category != category)


def unseen_concepts(fold: int, category: str | None = None) -> tuple[Thing, ...]:
    """Those of a fold, one of every category but the one that is left out whole."""
    return tuple(thing for thing in stand_ins() if thing.fold == fold and thing.category != category)


def unseen_category(category: str) -> tuple[Thing, ...]:
    """Those of a category."""
    return tuple(thing for thing in stand_ins() if thing.category == category)


# Nouns whose plural no rule gives.
PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "knife": "knives",
    "wolf": "wolves",
    "leaf": "leaves",
    "loaf": "loaves",
    "scarf": "scarves",
    "elf": "elves",
    "tooth": "teeth",
    "die": "dice",
    "cactus": "cacti",
} | {name: name for name in ("sheep", "deer", "fish", "moose", "bison", "shrimp", "squid", "dango")}
# Behind one of these a name goes on, and what is before it is counted.
_HEADS = (" of ", " with ", " in ", " from ", " on ")


def plural(name: str) -> str:
    """A bare noun in the plural: "slices of pizza" for "slice of pizza"."""
    head, rest = name, ""
    for word in _HEADS:
        before, found, after = name.partition(word)
        if found and len(before) < len(head):
            head, rest = before, found + after
    first, space, last = head.rpartition(" ")
    if last in PLURALS or last.endswith("fish"):
        many = PLURALS.get(last, last)
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        many = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = last[:-1] + "ies"
    elif last in ("tomato", "potato", "mango", "volcano"):
        many = last + "es"
    elif last.endswith("man"):
        many = last[:-3] + "men"
    else:
        many = last + "s"
    return first + space + many + rest


def countable(name: str) -> bool:
    """Whether there can be two of what a wording names."""
    return not name.startswith("some ") and " and " not in name and not name.endswith("jeans")


if __name__ == "__main__":
    count = Counter(thing.category for thing in stand_ins())
    print(f"{len(everyday_things())} everyday things in {len({t.kinds for t in everyday_things()})} kinds")
    for each in categories():
        close = sum(thing.neighbours == each for thing in everyday_things())
        print(f"{each}: {count[each]} stand-ins, {close} neighbours")
