"""What captions of the world speak of."""

import re
from functools import cache

from .vocabulary import Concept, load_vocabulary, without_article


@cache
def _wordings() -> dict[str, frozenset[Concept]]:
    """What each wording may mean: a name one thing, a hypernym all things of its kind."""
    table: dict[str, set[Concept]] = {}
    for concept in load_vocabulary():
        for wording in (*concept.names, *concept.hypernyms):
            table.setdefault(without_article(wording).lower(), set()).add(concept)
    return {wording: frozenset(concepts) for wording, concepts in table.items()}


@cache
def _pattern() -> re.Pattern:
    longest_first = sorted(_wordings(), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")


def mentions(caption: str) -> list[frozenset[Concept]]:
    """The things that a caption names, in its order.

    Args:
        caption: any text.

    Returns:
        For each wording, the longest at its place, the concepts that it may mean: one for a name that only one thing
        has, several for the name of a kind of thing. `"a dagger, a weapon"` gives two.
    """
    return [_wordings()[found.group()] for found in _pattern().finditer(caption.lower())]
