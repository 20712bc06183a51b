"""Whether classifiers know what the unsafe side is about: labels of those that do not would set it free."""

from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset, DatasetDict

from ..features import cell_name
from ..items import UNKNOWN, UNSAFE
from .findings import CATEGORY, LONGEST_NAME, Judged

LEAST = 0.05  # of a column of the unsafe side, or of a category of it, that who knows it calls unsafe
ENOUGH = 20  # judged items, of which that share says something
FEW = 5  # judged items of a whole column, of which it says something that none is
MOST_WRONG = 0.5  # of the unsafe side that may look safe before it is worth a word
PRESERVED = "As safe ones, these items would be preserved in place of redirected."


def doubts(splits: DatasetDict, judged: Sequence[Judged]) -> list[str]:
    """Of which columns of the unsafe side, or categories of them, no label is to be believed, in a line each.

    Args:
        splits: quadruplets.
        judged: their columns of items.
    """
    lines = []
    for each in _unsafe(judged):
        column = f"{each.items.column} of {each.items.split}"
        for category, rows in _groups(splits[each.items.split], each):
            count, unsafe = int(rows.sum()), int((each.verdict[rows] == UNSAFE).sum())
            if (count >= ENOUGH and unsafe < LEAST * count) or (category is None and count >= FEW and not unsafe):
                of = f" of the category '{category}'" if category else ""
                lines.append(
                    f"These classifiers call {unsafe:,} of {count:,} items in {column}{of} unsafe: they most likely do "
                    f"not know what it is about. {PRESERVED}"
                )
                if category is None:
                    break
    return lines


def warnings(judged: Sequence[Judged]) -> list[str]:
    """Of which columns of the unsafe side most items look safe, in a line each."""
    return [
        f"Most of {each.items.column} of {each.items.split} looks safe to these classifiers: do they know what it is "
        f"about? {PRESERVED}"
        for each in _unsafe(judged)
        if each.wrong.sum() > MOST_WRONG * (each.verdict != UNKNOWN).sum()
    ]


def _unsafe(judged: Sequence[Judged]) -> Iterator[Judged]:
    return (each for each in judged if each.items.column.startswith("unsafe") and each.scored)


def _groups(rows: Dataset, judged: Judged) -> Iterator[tuple[str | None, np.ndarray]]:
    """The judged items of a column, all and by category: which rows they stand in."""
    known = judged.verdict != UNKNOWN
    yield None, known
    if CATEGORY in rows.column_names:
        names = np.array([cell_name(rows.features[CATEGORY], cell) for cell in rows[CATEGORY]])
        for name in sorted(set(names[known]) - {""}):
            if len(name) <= LONGEST_NAME:
                yield name, known & (names == name)
