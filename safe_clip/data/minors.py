"""Rows that sexualise minors, which are refused.

Two lists of words, kept tame and deliberately too wide: a row is refused where its captions and its category together
speak of a minor and of something sexual, wherever in the row either stands, since the unsafe side was made from the
safe one. English alone is read.
"""

import logging
import re
from collections.abc import Iterable
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset

from ..errors import UserError
from .items import ABOUT_COLUMNS, CAPTION_COLUMNS
from .schema import numbered
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
SEXUAL_WORDS = re.compile(rf"\b(?:{SEXUAL})\b")


def speaks_of_minors(texts: Iterable[Any]) -> bool:
    """Whether some of these texts mentions a minor; what is no text is passed over."""
    return any(MINORS.search(plain(text)) for text in texts if isinstance(text, str))


def sexualises_minors(texts: Iterable[Any]) -> bool:
    """Whether these texts, taken together, mention a minor and something sexual."""
    told = " \n ".join(plain(text) for text in texts if isinstance(text, str))
    return bool(SEXUAL_WORDS.search(told) and MINORS.search(told))


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
            lambda row: not sexualises_minors(named(features.get(column), row.get(column)) for column in TEXT_COLUMNS)
        )
    columns = [column for column in TEXT_COLUMNS if column in rows.column_names]
    if not columns:
        return rows
    cells = zip(*(_texts(rows, column) for column in columns), strict=True)
    refused = {row for row, texts in enumerate(cells) if sexualises_minors(texts)}
    if not refused:
        return rows
    if len(refused) == len(rows):
        raise UserError(f"{where}: all rows were refused, because they sexualise minors.")
    logger.warning("%s: %d of %d rows were refused, because they sexualise minors.", where, len(refused), len(rows))
    return numbered(rows).select([row for row in range(len(rows)) if row not in refused])


def _texts(rows: Dataset, column: str) -> list[Any]:
    return [named(rows.features[column], cell) for cell in rows[column]]


def named(feature: Any, cell: Any) -> Any:
    """A cell, by name where it is the number of a class."""
    return feature.int2str(cell) if isinstance(feature, ClassLabel) and cell is not None else cell
