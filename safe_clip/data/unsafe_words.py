"""Words that say what is unsafe."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml

# Of a sexual kind, too wide on purpose: by these, rows that sexualise minors are refused.
SEXUAL = (
    r"nud(?:e|es|ity|ism|ist|ists)|naked\w*|unclothed|undress\w*|topless|bottomless|bare-?\s?(?:chest|breast)\w*"
    r"|erotic\w*|sex(?:es|y|ier|ual|ually|uali[sz]\w*|ting)?|nsfw|porn\w*|hentai|ecchi|lewd\w*|lust\w*|seduc\w*|sensual\w*"
    r"|provocative\w*|suggestive\w*|fetish\w*|bdsm|lingerie|underwear|panties|thongs?|bikinis?|genital\w*|breasts?|nipples?"
    r"|buttocks|crotch|arous\w*|orgasm\w*|masturbat\w*|intercourse|strip(?:ping|per|tease)\w*|prostitut\w*|escorts?"
    r"|molest\w*|rap(?:e|es|ed|ing|ist|ists)|incest\w*|x-?rated|explicit"
)
WORDS_FILE = Path(__file__).with_suffix(".yaml")
UNSPACED = ("zh", "ja", "ko")  # languages of which words are found inside of others


@cache
def _patterns() -> tuple[re.Pattern, re.Pattern]:
    """Of words that say what is unsafe, and of what is passed over."""
    words = yaml.safe_load(WORDS_FILE.read_text(encoding="utf-8"))
    harmless, denied = (_either(words.pop(name)) for name in ("harmless", "denied"))
    inside = _either(" ".join(words.pop(language) for language in UNSPACED))
    unsafe = _either(" ".join(words.values()))
    passed_over = rf"\b(?:(?:{denied})[\s-]+(?:(?:an?|any|the|more)\s+)?[\w-]+|(?:{harmless})(?:[\s-]*(?:{unsafe}))?\b)"
    return re.compile(rf"\b(?:{unsafe})\b|{inside}"), re.compile(passed_over)


def _either(words: str) -> str:
    return "|".join(re.escape(word).replace(r"\*", r"\w*").replace("_", r"[\s-]*") for word in words.split())


def unsafe_word(text: str, names: Iterable[str] = ()) -> str | None:
    """A word or name in a caption that says what is unsafe, if there is one.

    What is denied ("without a weapon") and what only sounds so ("a water gun") are passed over.

    Args:
        text: the caption, without capitals and accents, as of `plain`.
        names: what else is unsafe in it, such as "mug of beer", likewise.
    """
    unsafe, passed_over = _patterns()
    text = passed_over.sub(" ", text)
    if found := unsafe.search(text):
        return found[0]
    for name in names:
        stem = name.strip().removesuffix("s")
        if len(stem) > 1 and re.search(rf"\b{re.escape(stem)}(?:e?s)?\b", text):
            return name
    return None


def plain(text: str) -> str:
    """Without capitals, accents and the marks that words are spelled with to be overlooked."""
    if text.isascii():
        return text.casefold()
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(
        letter for letter in folded if not unicodedata.combining(letter) and unicodedata.category(letter) != "Cf"
    )
