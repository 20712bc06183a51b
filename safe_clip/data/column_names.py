"""What the names of columns say: of which side they are, and whether of captions or of images."""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from datasets import Image, Value

from .features import inner_feature, is_text
from .items import CAPTION_COLUMNS, IMAGE_COLUMNS, ITEM_COLUMNS, LABEL_COLUMNS


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


SAFE_WORDS = _set(
    "safe safer safest sfw benign harmless clean cleaned cleansed neutral good positive pos appropriate suitable "
    "acceptable innocuous innocent wholesome sanitized sanitised sanitary detox detoxed detoxified nontoxic"
)
UNSAFE_WORDS = _set(
    "unsafe nsfw nswf nfsw nsfl insecure toxic poison poisoned harm harmful harming neg negative bad evil nasty dirty "
    "vile unsuitable inappropriate unacceptable undesirable undesired unwanted forbidden prohibited banned disallowed "
    "explicit uncensored malicious malign mal malevolent offensive offending abusive abuse abused hate hateful hating "
    "violent violence gore gory bloody blood weapon drug drugs sexual sexualized sexy sex nude nudity naked porn porno "
    "pornographic erotic erotica hentai lewd adult mature xxx vulgar profane profanity obscene obscenity indecent "
    "disturbing shocking dangerous danger hazardous illegal illicit criminal crime unethical immoral racist racism "
    "sexist sexism harassment harassing sensitive problematic questionable flagged adversarial attack jailbreak "
    "jailbroken unclean impure wicked nefarious triggering risky sinful hurtful threatening insulting"
)
# Whatever stands around them in a name, these say so.
UNMISTAKABLE = re.compile(
    r"nsf[wl]|unsafe|toxic|harmful|malicious|explicit|offensiv|violen[tc]|porn|nudit|hateful|inappropriat|unsuitabl"
    r"|jailbreak|uncensor|obscen|vulgar|abusiv"
)
NOT = _set("not non no un isnt isn never without anti")
FREE = _set("free less")
# Beside a word that says unsafe, these leave open which side is meant: what was taken out, or what was left.
REMOVAL = _set(
    "de removed remove removal removing filtered filter filtering stripped excluded erased deleted dropped purged "
    "censored redacted masked blurred scrubbed replaced rewritten rewrite rephrased corrected fixed mitigated "
    "neutralized neutralised purified converted edited"
)
# What a generator of images is told to draw, and to keep away from: of either side.
GUIDANCE = _set("negative neg positive pos"), _set("prompt prompts")
FILLERS = _set("is are t be so very at all for work to of the a an and or my our this that its by with")
CAPTIONS = _set(
    "caption captions cap caps text texts txt prompt prompts description descriptions desc sentence sentences title "
    "alt query queries comment comments instruction instructions utterance phrase"
)
IMAGES = _set(
    "image images img imgs picture pictures pic pics photo photos photograph png jpg jpeg webp pixels thumbnail"
)
PLACES = _set("path paths file files filename filenames filepath url urls uri link links name names")
# What such columns hold is about a caption or an image, and is none.
ABOUT = _set(
    "id ids key keys idx index number num count length len score scores prob probs probability percentage percent pct "
    "confidence label labels category categories tag tags class cls type kind width height size hash md5 sha source "
    "license licence lang language split seed step steps guidance scale toxicity safety level rating flag reason model "
    "embedding embeddings vector tokens date time author user domain year"
)
PLAIN_NOUNS = _set("caption captions text texts prompt prompts") | IMAGES  # by which either side's column may go
OTHERS = _set("data col column columns set side version original orig new old en english item items raw")
VOCABULARY = (
    SAFE_WORDS
    | UNSAFE_WORDS
    | NOT
    | FREE
    | REMOVAL - {"de"}
    | FILLERS - {"t", "a"}
    | CAPTIONS
    | IMAGES
    | PLACES
    | ABOUT
    | OTHERS
)
ALIKE = 0.81  # of a word that is misspelled: "usafe" is like "unsafe", and "safe" is not


def words(name: str) -> tuple[str, ...]:
    """The words of a name, in small letters: of `"imageNSFW"`, `"image"` and `"nsfw"`."""
    found: list[str] = []
    for piece in re.findall(r"[^\W\d_]+|\d+", unicodedata.normalize("NFKC", str(name))):
        parts = _parted(piece.casefold())
        if parts is None:
            camel = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+", piece)
            parts = tuple(word for part in camel for word in _parted(part.casefold()) or (part.casefold(),))
        found += parts
    return tuple(found)


@cache
def _parted(piece: str) -> tuple[str, ...] | None:
    """A piece as words that are known, the longest first; `None` where it is not made of those."""
    if not piece:
        return ()
    for end in range(len(piece), 1, -1):
        word = piece[:end]
        if word in VOCABULARY or (word.endswith("s") and word[:-1] in VOCABULARY):
            rest = _parted(piece[end:])
            if rest is not None:
                return (word, *rest)
    return None


def _sense(word: str) -> bool | None:
    """Whether a word says unsafe, or safe (`False`), or neither."""
    single = word[:-1] if word.endswith("s") else word
    if word in SAFE_WORDS or word.startswith("detox"):
        return False
    if word in UNSAFE_WORDS or single in UNSAFE_WORDS:
        return True
    if word in VOCABULARY:
        return None
    if UNMISTAKABLE.search(word):
        return True
    alike = len(word) > 3 and difflib.get_close_matches(word, ["unsafe", "harmful", "explicit", "toxic"], 1, ALIKE)
    return True if alike else None


def senses(name: str) -> set[bool]:
    """The sides that a name speaks of: `True` for unsafe; both where it speaks of both, or leaves open which."""
    own, sides, turned = words(name), [], False
    if all(group & set(own) for group in GUIDANCE):
        return {True, False}
    for word in own:
        sense = _sense(word)
        if sense is not None:
            sides.append(sense != turned)
            turned = False
        elif word in NOT:
            turned = True
        elif word in FREE and sides:
            sides[-1] = not sides[-1]
        elif word not in FILLERS:
            turned = False
    return {True, False} if sides and REMOVAL & set(own) else set(sides)


def says_unsafe(name: str) -> bool | None:
    """Whether a name says that its column is of the unsafe side; `False` for the safe one, `None` where it says neither
    or both."""
    sides = senses(name)
    return sides.pop() if len(sides) == 1 else None


def modality(name: str, feature: Any = None) -> str | None:
    """`"text"` or `"image"`, as far as a column's name and kind tell and agree.

    Args:
        name: of the column.
        feature: of the column; by default its name alone tells.
    """
    inner, own = inner_feature(feature), words(name)
    nouns = [word if word in CAPTIONS | IMAGES | PLACES | ABOUT else _alike(word) for word in own]
    kinds = ["text" if word in CAPTIONS else "image" for word in nouns if word in CAPTIONS | IMAGES]
    named = kinds[-1] if kinds else "image" if any(word in PLACES - {"name", "names"} for word in nouns) else None
    if any(word in PLACES for word in nouns) and "image" not in kinds and "text" in kinds:
        named = None  # where captions are
    if any(word in ABOUT for word in nouns):
        named = None
    if inner is None or (isinstance(inner, Value) and inner.dtype == "null"):
        return named
    holds = isinstance(inner, Image) or (isinstance(inner, Mapping) and {"bytes", "path"} <= set(inner))
    if holds or (isinstance(inner, Value) and "binary" in inner.dtype):
        return "image" if kinds[-1:] != ["text"] and not any(word in ABOUT for word in nouns) else None
    return named if is_text(inner) else None


@cache
def _alike(word: str) -> str:
    """The noun that a word is a misspelling of, or itself."""
    close = difflib.get_close_matches(word, CAPTIONS | IMAGES, 1, ALIKE) if len(word) > 4 else []
    return close[0] if close else word


def folded(name: str) -> str:
    """A name without what people write differently: capitals, spaces, dashes."""
    return "".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", str(name)).casefold()))


def pair_of_captions(columns: Sequence[str], features: Mapping[str, Any] | None = None) -> dict[str, str] | None:
    """A column of captions and the one that says unsafe of the same noun (`prompt`, `nsfw_prompt`), as they are
    renamed."""
    own = [name for name in columns if modality(name, (features or {}).get(name)) == "text"]
    for noun in ("caption", "prompt", "text"):
        partners = [name for name in own if sorted(words(name)) in (sorted((noun, "nsfw")), sorted((noun, "unsafe")))]
        sided = [name for name in own if senses(name)]
        if noun in own and len(partners) == 1 and sided == partners:
            return {noun: "safe_caption", partners[0]: "unsafe_caption"}
    return None


def guess_columns(
    columns: Sequence[str], features: Mapping[str, Any] | None = None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Which columns are likely meant for those that are missing.

    A column that says unsafe is never taken for one of the safe side, one of captions never for one of images, nor the
    reverse.

    Args:
        columns: the names of all columns.
        features: of them, where they are known.

    Returns:
        `{column: of the schema}` where that is sure, and `{column: which of the schema it may be}` where it is not.
    """
    sure: dict[str, str] = {}
    doubtful: dict[str, list[str]] = {}
    kinds = {
        name: modality(name, (features or {}).get(name))
        for name in columns
        if name not in {*ITEM_COLUMNS, *LABEL_COLUMNS}
    }
    _bare_sides(kinds, features)
    for kind, (safe, unsafe) in (("text", CAPTION_COLUMNS), ("image", IMAGE_COLUMNS)):
        own = [name for name, each in kinds.items() if each == kind]
        good, bad = ([name for name in own if says_unsafe(name) is side] for side in (False, True))
        plain = [name for name in own if not senses(name) and _is_plain(name, kind, features)]
        lacks = [column for column in (safe, unsafe) if column not in columns]
        if safe in lacks and (good or plain):
            if len(good) == 1:
                sure[good[0]] = safe
            elif not good and len(plain) == 1 and (bad or unsafe in columns):
                sure[plain[0]] = safe
            else:
                doubtful |= {name: [safe] if name in good else lacks for name in good or plain}
        if unsafe in lacks:
            if len(bad) == 1:
                sure[bad[0]] = unsafe
            else:
                doubtful |= {name: [unsafe] for name in bad}
                if not bad:
                    doubtful |= {
                        name: lacks if safe not in sure.values() else [unsafe] for name in plain if name not in sure
                    }
    open_places = {name: [place for place in places if place not in sure.values()] for name, places in doubtful.items()}
    return sure, {name: places for name, places in open_places.items() if places}


def _is_plain(name: str, kind: str, features: Mapping[str, Any] | None) -> bool:
    """Whether a name has a noun that either side's column may be called by, or its column holds images themselves."""
    nouns = {_alike(word) for word in words(name)}
    feature = inner_feature((features or {}).get(name))
    return bool(nouns & PLAIN_NOUNS) or (kind == "image" and feature is not None and not is_text(feature))


def _bare_sides(kinds: dict[str, str | None], features: Mapping[str, Any] | None) -> None:
    """Takes two columns of texts for captions whose names say nothing but one side each, where no other is one."""
    if "text" in kinds.values():
        return
    bare = [
        name
        for name, kind in kinds.items()
        if kind is None
        and is_text((features or {}).get(name))
        and all(_sense(word) is not None or word in NOT | FREE | FILLERS for word in words(name))
    ]
    if sorted((says_unsafe(name) for name in bare), key=str) == [False, True]:
        kinds |= dict.fromkeys(bare, "text")
