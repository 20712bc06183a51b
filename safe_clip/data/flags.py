"""Columns whose cells are verdicts, such as yes and no, under names that captions go by."""

import re
from collections.abc import Sequence
from itertools import islice

from datasets import Dataset, IterableDataset

from .features import texts_in

SEEN = 100  # rows that tell
VERDICTS = set(
    re.findall(r"\S+", "yes no y n true false t f 0 1 0.0 1.0 safe unsafe sfw nsfw none null na n/a pass fail")
)


def flag_columns(rows: Dataset | IterableDataset, columns: Sequence[str]) -> set[str]:
    """Those of some columns that hold nothing but verdicts, as far as the first rows tell."""
    if not columns:
        return set()
    some = rows.select_columns(list(columns))
    head = list(islice(some, SEEN))
    kinds = some.features or {}
    return {
        name
        for name in columns
        if _are_verdicts([text for row in head for text in texts_in(kinds.get(name), row[name])])
    }


def _are_verdicts(texts: list[str]) -> bool:
    said = {text.strip().casefold() for text in texts} - {""}
    return bool(said) and said <= VERDICTS
