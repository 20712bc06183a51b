"""Rows that sexualise minors, which are refused.

Two lists of words, kept tame and deliberately too wide: a row is refused where its captions and its category together
speak of a minor and of something sexual, wherever in the row either stands, since the unsafe side was made from the
safe one. English alone is read.
"""

import logging
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

from datasets import Dataset, IterableDataset

from ..errors import UserError
from .columns import numbered
from .features import texts_in
from .items import ABOUT_COLUMNS, CAPTION_COLUMNS
from .unsafe_words import SEXUAL, plain

logger = logging.getLogger(__name__)

TEXT_COLUMNS = (*CAPTION_COLUMNS, *ABOUT_COLUMNS)

YOUNG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
MINORS = re.compile(
    r"\b(?:"
    r"child(?:ren|hood|like|s)?|kids?|kiddos?|minors?|under-?\s?aged?|toddlers?|bab(?:y|ies)|infants?|newborns?"
    r"|teen(?:s|age[rd]?s?)?|pre-?teens?|tweens?|adolescents?|juveniles?|pubescents?|prepubescents?|schoolkids?"
    r"|school-?\s?(?:girl|boy|child)(?:s|ren)?|boys?|girls?|lolis?|lolitas?|lolicon|shotas?|shotacon|jailbait"
    r"|p(?:a)?edo\w*|high-?\s?school(?:er|ers)?|kindergart\w*|preschool\w*|elementary\s+school\w*"
    rf"|(?:1[0-7]|[0-9]|{YOUNG.replace(' ', '|')})[\s-]*(?:years?|yrs?|months?)[\s-]*olds?"
    rf"|(?:age|aged)\s+(?:1[0-7]|[0-9]|{YOUNG.replace(' ', '|')})"
    r"|(?:1[0-7]|[1-9])\s?y/?o"
    r")\b"
)
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
APART = re.compile(r"\b[a-z](?:([ .*\-])[a-z])(?:\1[a-z])+\b")  # n.u.d.e
MIXED = re.compile(r"(?=[\d@$!]*[a-z])[a-z\d@$!]*[\d@$!][a-z\d@$!]*")  # ch1ld, and 1girl
SIGNS = str.maketrans("0134578@$!", "oieastbasi")
LIKE_LATIN = str.maketrans(  # of the Cyrillic and the Greek alphabet
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"
    "\u03bd\u03bf\u03b1\u03b5\u03c1\u03b9\u03ba\u03c4\u03c5\u03c7\u0131",
    "aeopcyxijshdqwvoaepiktuxi",
)
SEXUAL_WORDS = re.compile(rf"\b(?:{SEXUAL})\b")


def speaks_of_minors(texts: Iterable[Any]) -> bool:
    """Whether some of these texts mentions a minor; what is no text is passed over."""
    return any(MINORS.search(readings(text)) for text in texts if isinstance(text, str))


def sexualises_minors(texts: Iterable[Any]) -> bool:
    """Whether these texts, taken together, mention a minor and something sexual."""
    joined = " \n ".join(readings(text) for text in texts if isinstance(text, str))
    return bool(SEXUAL_WORDS.search(joined) and MINORS.search(joined))


def refuse_minors(rows: Dataset | IterableDataset, where: str) -> Dataset | IterableDataset:
    """Drops rows that sexualise minors, and says how many, but neither which nor what they hold; of a stream, not even
    that.

    Args:
        rows: with any of the columns of captions, `category` and `concept`.
        where: what messages call them.

    Raises:
        UserError: no other row is left.
    """
    if isinstance(rows, IterableDataset):
        features = rows.features or {}
        return rows.filter(
            lambda row: (
                not sexualises_minors(
                    text for column in TEXT_COLUMNS for text in texts_in(features.get(column), row.get(column))
                )
            )
        )
    columns = [column for column in TEXT_COLUMNS if column in rows.column_names]
    if not columns:
        return rows
    cells = zip(*(_texts(rows, column) for column in columns), strict=True)
    refused = {row for row, texts in enumerate(cells) if sexualises_minors(chain.from_iterable(texts))}
    if not refused:
        return rows
    if len(refused) == len(rows):
        raise UserError(f"{where}: all rows were refused, because they sexualise minors.")
    logger.warning("%s: %d of %d rows were refused, because they sexualise minors.", where, len(refused), len(rows))
    return numbered(rows).select([row for row in range(len(rows)) if row not in refused])


def _texts(rows: Dataset, column: str) -> list[list[str]]:
    feature = rows.features[column]
    return [list(texts_in(feature, cell)) for cell in rows[column]]


def readings(text: str) -> str:
    """A text in plain letters, and beside it as it may be read where it is spelled to be overlooked: words run together
    or set apart, and digits, signs and letters of other alphabets that look like letters."""
    spelled = plain(CAMEL.sub(" ", text)).translate(LIKE_LATIN).replace("_", " ")
    read = [spelled]
    if APART.search(spelled):
        read.append(APART.sub(lambda found: re.sub(r"[^a-z]", "", found[0]), spelled))
    if MIXED.search(spelled):
        read.append(MIXED.sub(lambda found: found[0].translate(SIGNS), spelled))
        read.append(MIXED.sub(lambda found: re.sub(r"(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)", " ", found[0]), spelled))
    return " \n ".join(read)
