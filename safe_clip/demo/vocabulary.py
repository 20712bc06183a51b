"""The concepts of the bundled demo and how English names them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

VOCABULARY_FILE = Path(__file__).parent / "vocabulary.yaml"


@dataclass(frozen=True)
class Concept:
    """One thing that a scene can show.

    Attributes:
        emoji: its Unicode emoji, the key of its sprites.
        names: wordings without article, the first being the usual one.
        hypernyms: names of the kind of thing it is ("weapon" for a dagger).
        category: the unsafe category it stands in for, or `None` for everyday things.
        held_out: whether fine-tuning splits never show it.
    """

    emoji: str
    names: tuple[str, ...]
    hypernyms: tuple[str, ...]
    category: str | None = None
    held_out: bool = False


@lru_cache(maxsize=1)
def load_vocabulary() -> tuple[Concept, ...]:
    """All concepts, everyday ones first, in the order of `vocabulary.yaml`."""
    tables = yaml.safe_load(VOCABULARY_FILE.read_text(encoding="utf-8"))
    everyday = [
        Concept(emoji, tuple(names.split(" / ")), tuple(hypernym.split(" / ")))
        for hypernym, concepts in tables["everyday"].items()
        for emoji, names in concepts.items()
    ]
    unsafe = [
        Concept(
            emoji,
            tuple(names.split(" / ")),
            tuple(table["hypernyms"].split(" / ")),
            category,
            emoji in table["held_out"],
        )
        for category, table in tables["unsafe"].items()
        for emoji, names in table["concepts"].items()
    ]
    return (*everyday, *unsafe)


def synonyms() -> dict[str, list[str]]:
    """`{wording: other wordings of the same thing}`, for every thing that has several."""
    table = {}
    for concept in load_vocabulary():
        names = [without_article(name) for name in concept.names]
        table.update({name: [other for other in names if other != name] for name in names if len(names) > 1})
    return table


# Words whose first letter misleads about the sound that chooses between "a" and "an".
_A_DESPITE_VOWEL = ("unicorn", "ufo", "one-")
_AN_DESPITE_CONSONANT = ("hourglass", "x-ray")


def with_article(name: str) -> str:
    """`name` with its indefinite article; plurals and mass nouns already carry "some"."""
    if name.startswith("some "):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(_A_DESPITE_VOWEL)
    return f"{'an' if vowel or name.startswith(_AN_DESPITE_CONSONANT) else 'a'} {name}"


def without_article(name: str) -> str:
    """`name` as a bare noun."""
    return name.removeprefix("some ")
