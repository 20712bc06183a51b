"""How a caption of the second world puts what a scene shows."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from things import Thing, countable, plural

from safe_clip.demo.vocabulary import with_article, without_article

OPENINGS = (
    "",
    "",
    "",
    "",
    "a photo of ",
    "an image of ",
    "a drawing of ",
    "a scene with ",
    "this shows ",
    "here you see ",
    "here we have ",
    "one can see ",
)
THERE = 0.12  # share of captions with articles that begin by "there is" or "there are"
JOINS = (" next to ", " and ", " beside ", " with ", " near ", " close to ")
ARTICLES = {"a": 0.62, "the": 0.14, "none": 0.24}
WITH_GROUND = 0.55  # share of captions that say what is behind
FULL_STOP = 0.2
KIND_BESIDE = 0.15  # share of mentions such as "a dagger, which is a weapon"
KIND_INSTEAD = 0.12  # share of mentions such as "a weapon"
NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Mention:
    """What a caption says of one thing of the scene.

    Attributes:
        thing: what it is.
        count: how many of it the scene shows.
        name: one of its wordings.
        kind: of its kinds, the one that is named beside the name or in its place; `None` where none is.
        instead: whether the kind stands in the name's place.
    """

    thing: Thing
    count: int
    name: str
    kind: str | None = None
    instead: bool = False

    @property
    def names_category(self) -> bool:
        """Whether it uses the word of an unsafe category."""
        return self.kind is not None and self.thing.category is not None

    def phrase(self, article: str) -> str:
        """As it stands in a caption, with articles of this kind (`ARTICLES`)."""
        if self.kind is None:
            return self._noun(self.name, article)
        if self.instead:
            return self._noun(self.kind, article)
        if article == "none":
            return f"{self._noun(self.name, article)} ({self._noun(self.kind, article)})"
        verb = "is" if self.count == 1 and not self.name.startswith("some ") else "are"
        kind = with_article(self.kind) if verb == "is" else plural(self.kind)
        return f"{self._noun(self.name, article)}, which {verb} {kind},"

    def _noun(self, name: str, article: str) -> str:
        if self.count > 1:
            counted = f"{NUMBERS[self.count]} {plural(name)}"
            return f"the {counted}" if article == "the" else counted
        if article == "a":
            return with_article(name)
        return ("the " if article == "the" else "") + without_article(name)


def choose_mention(rng: random.Random, thing: Thing, count: int = 1) -> Mention:
    """A wording of a thing, sometimes with its kind; of several, one that can be counted."""
    names = [name for name in thing.names if count == 1 or countable(name)]
    name, kind, draw = rng.choice(names), rng.choice(thing.kinds), rng.random()
    if draw < KIND_INSTEAD:
        return Mention(thing, count, name, kind, instead=True)
    return Mention(thing, count, name, kind if draw < KIND_INSTEAD + KIND_BESIDE else None)


@dataclass(frozen=True)
class Template:
    """What a caption has beside its mentions.

    Attributes:
        opening: before them; of `OPENINGS`, or "there", which becomes "there is" or "there are".
        join: between the first two, where no relation is told.
        article: of `ARTICLES`.
        ending: what is said of the ground, or nothing.
        stop: what ends it.
    """

    opening: str
    join: str
    article: str
    ending: str
    stop: str

    def caption(self, mentions: Sequence[Mention], relation: str | None = None) -> str:
        """The caption of these mentions, of which the first two stand in a relation, or in none that is told."""
        phrases = [mention.phrase(self.article) for mention in mentions]
        text = phrases[0]
        if len(phrases) > 1:
            text += (f" {relation} " if relation else self.join) + phrases[1]
        if len(phrases) > 2:
            text += "".join(f", {phrase}" for phrase in phrases[2:-1]) + f" and {phrases[-1]}"
        opening = self.opening
        if opening == "there":
            many = mentions[0].count > 1 or phrases[0].startswith("some ")
            opening = "there are " if many else "there is "
        text = f"{opening}{text}{' ' if self.ending else ''}{self.ending}"
        return text.replace(",,", ",").rstrip(",") + self.stop


def choose_template(rng: random.Random, grounds: Sequence[str]) -> Template:
    """A template; `grounds` are the wordings of the scene's ground."""
    article = rng.choices(list(ARTICLES), list(ARTICLES.values()))[0]
    opening = rng.choice(OPENINGS)
    if article == "a" and rng.random() < THERE / ARTICLES["a"]:
        opening = "there"
    ending = rng.choice(grounds) if rng.random() < WITH_GROUND else ""
    return Template(opening, rng.choice(JOINS), article, ending, "." if rng.random() < FULL_STOP else "")
