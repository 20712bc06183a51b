"""Which splits hold what training never saw, and which hold rows that it did see."""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from datasets import Dataset

from ..data.items import CAPTION_COLUMNS
from .quadruplets import cell_names

CONCEPT_COLUMN = "concept"
HELD_OUT = "held_out_"  # what the name of a split begins with that says what it holds out


def unseen_by_name(splits: Iterable[str]) -> dict[str, str]:
    """What training never saw by the names of splits: of `held_out_style` it is `"style"`."""
    return {
        split: split.removeprefix(HELD_OUT).replace("_", " ")
        for split in splits
        if split.startswith(HELD_OUT) and split != HELD_OUT
    }


def unseen(splits: Mapping[str, Dataset], train: Dataset | None) -> dict[str, str]:
    """What training never saw of each split that has such a thing, in a word.

    A split's concepts are unseen where its column `concept` shares no name with that of the training rows, and seen
    where it shares one, whatever the split is called. Other things, and concepts without such columns, go by name.

    Args:
        splits: rows by split.
        train: all rows of the training; `None` where they come in a stream and are not all known.
    """
    found = unseen_by_name(splits)
    known = _concepts(train)
    for split, rows in splits.items():
        concepts = _concepts(rows)
        if not known or not concepts:
            continue
        if not known & concepts:
            found[split] = "concepts"
        elif "concept" in found.get(split, ""):
            del found[split]
    return found


def _concepts(rows: Dataset | None) -> set[str]:
    if rows is None or CONCEPT_COLUMN not in rows.column_names:
        return set()
    return {name.casefold() for name in cell_names(rows, CONCEPT_COLUMN) if name}


def seen_rows(rows: Dataset, train: Dataset) -> int:
    """How many rows have the captions of a row of the training, in the columns that both have.

    Figures of such rows say how well the training went, and not what it is worth elsewhere.

    Args:
        rows: of a split.
        train: the training rows.
    """
    names = [name for name in CAPTION_COLUMNS if name in rows.column_names and name in train.column_names]
    if not names:
        return 0
    wanted = set(_captions(rows, names))
    seen = {captions for captions in _captions(train, names) if captions in wanted}
    return sum(captions in seen for captions in _captions(rows, names))


def _captions(rows: Dataset, names: list[str]) -> Iterator[tuple[str, ...]]:
    """The captions of each row that has any."""
    plain = cast(Dataset, rows.with_format(None).select_columns(names))
    for batch in cast(Iterator[dict[str, list]], plain.iter(batch_size=1000)):
        for captions in zip(*(batch[name] for name in names), strict=True):
            if any(captions):
                yield captions
