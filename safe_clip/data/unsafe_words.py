"""Words that say what is unsafe, by which captions of the unsafe side are known."""

import re
import unicodedata
from collections.abc import Iterable

# Of a sexual kind; refusing rows that sexualise minors uses these too.
SEXUAL = (
    r"nud(?:e|es|ity|ism|ist|ists)|naked\w*|unclothed|undress\w*|topless|bottomless|bare-?\s?(?:chest|breast)\w*"
    r"|erotic\w*|sex(?:es|y|ier|ual|ually|uali[sz]\w*|ting)?|nsfw|porn\w*|hentai|ecchi|lewd\w*|lust\w*|seduc\w*|sensual\w*"
    r"|provocative\w*|suggestive\w*|fetish\w*|bdsm|lingerie|underwear|panties|thongs?|bikinis?|genital\w*|breasts?|nipples?"
    r"|buttocks|crotch|arous\w*|orgasm\w*|masturbat\w*|intercourse|strip(?:ping|per|tease)\w*|prostitut\w*|escorts?"
    r"|molest\w*|rap(?:e|es|ed|ing|ist|ists)|incest\w*|x-?rated|explicit"
)
OTHERS = (
    r"weapons?|guns?|gunmen|gunman|rifles?|pistols?|revolvers?|shotguns?|firearms?|machetes?|daggers?|grenades?|bombs?"
    r"|bomb(?:ed|ing|ings|er)|explosives?|ammunition|blood(?:y|ied|shed|stain\w*)?|gore|gory|gruesome|corpses?|cadavers?"
    r"|behead\w*|decapitat\w*|dismember\w*|mutilat\w*|tortur\w*|murder\w*|kill(?:s|ed|ing|ings|er|ers)?|stab(?:s|bed|bing)"
    r"|strangl\w*|massacre\w*|wound(?:s|ed)|suicid\w*|self-?\s?harm\w*|hostages?|kidnap\w*"
    r"|drugs?|cocaine|heroin|meth(?:amphetamine)?|opium|opioids?|marijuana|cannabis|syringes?|cigarettes?|overdos\w*"
    r"|violen(?:t|tly|ce)|abus(?:e|es|ed|ing|ive|er)|assault\w*|attack(?:s|ed|ing|er|ers)?|threaten\w*|terroris\w*"
    r"|hate(?:d|ful|red)?|racis\w*|sexis\w*|nazis?|slurs?|harass\w*|bully\w*|toxic|harmful|unsafe|illegal\w*|gambl\w*"
)
UNSAFE = re.compile(rf"\b(?:{SEXUAL}|{OTHERS})\b")
EMPTY_WORDS = {"and", "any", "for", "non", "none", "not", "other", "others", "safe", "some", "the", "unknown", "with"}


def says_unsafe(text: str, about: Iterable[str] = ()) -> bool:
    """Whether a caption has a word that says what is unsafe: one of a list, or of what its row is about.

    Args:
        text: the caption.
        about: what the row calls unsafe in it, such as `["weapons", "dagger"]`.
    """
    text = plain(text)
    if UNSAFE.search(text):
        return True
    words = {
        word.removesuffix("s") if len(word) > 3 else word
        for told in about
        for word in re.findall(r"[^\W\d_]{3,}", plain(told))
        if word not in EMPTY_WORDS
    }
    return any(re.search(rf"\b{re.escape(word)}(?:e?s)?\b", text) for word in words)


def plain(text: str) -> str:
    """Without capitals, accents and the marks that words are spelled with to be overlooked."""
    if text.isascii():
        return text.casefold()
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(
        letter for letter in folded if not unicodedata.combining(letter) and unicodedata.category(letter) != "Cf"
    )
