"""What reading and scoring tell of a data set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ...errors import UserError
from ..columns import numbered, with_column
from ..features import cell_name, texts_in
from ..items import CAPTION_COLUMNS, IMAGE_COLUMNS, ITEM_COLUMNS, LABEL_COLUMNS, ROW_COLUMN, SAFE, UNKNOWN, UNSAFE
from ..minors import TEXT_COLUMNS, speaks_of_minors
from .duplicates import at_place, near_images, repeated_rows, same_captions
from .reading import KINDS, UNCLEAR, ReadColumn

NUDITY_FROM = 0.5  # at the latest: where minors are spoken of, a high --threshold is no reason to look away
SIDES = ("safe", "unsafe")
CATEGORY = "category"
LONGEST_NAME = 40  # characters: a cell that is longer is no name, and may be content that nobody should be shown


@dataclass(frozen=True)
class Judged:
    """Items, and what classifiers say of them.

    Attributes:
        items: a column of a split.
        scores: the highest that any classifier gives, N x 2: unsafe, and nudity; NaN where none gave any.
        threshold: from which on an item is unsafe.
    """

    items: ReadColumn
    scores: np.ndarray
    threshold: float

    @property
    def verdict(self) -> np.ndarray:
        """`SAFE`, `UNSAFE` or `UNKNOWN`; N int8."""
        score = self.scores[:, 0]
        return np.select([np.isnan(score), score >= self.threshold], [UNKNOWN, UNSAFE], SAFE).astype(np.int8)

    @property
    def scored(self) -> bool:
        return bool(len(self.scores) and not np.isnan(self.scores[:, 0]).all())

    @property
    def wrong(self) -> np.ndarray:
        """Which items are not what their side says; N booleans."""
        return self.verdict == (UNSAFE if self.items.column.startswith("safe") else SAFE)

    def only(self, rows: np.ndarray) -> "Judged":
        """Some of the rows."""
        items = replace(
            self.items, rows=self.items.rows.select(rows), facts=self.items.facts.select(rows).flatten_indices()
        )
        return replace(self, items=items, scores=self.scores[rows])


def leave_out_minors(splits: DatasetDict, judged: Sequence[Judged]) -> tuple[DatasetDict, list[Judged], dict[str, int]]:
    """Leaves out rows whose text mentions a minor where a classifier sees nudity in any of their items.

    Args:
        splits: quadruplets.
        judged: all their columns of items.

    Returns:
        The other rows, what was judged of them, and by split how many were left out.

    Raises:
        UserError: a split has no others.
    """
    left, kept, refused = DatasetDict(), [], {}
    for split, rows in splits.items():
        own = [each for each in judged if each.items.split == split]
        nude = np.any([each.scores[:, 1] >= min(each.threshold, NUDITY_FROM) for each in own], axis=0)
        columns = [column for column in TEXT_COLUMNS if column in rows.column_names]
        texts = rows.select_columns(columns)
        out = [
            row
            for row in np.flatnonzero(nude).tolist()
            if speaks_of_minors(
                text for column in columns for text in texts_in(texts.features[column], texts[row][column])
            )
        ]
        if out:
            if len(out) == len(rows):
                raise UserError(f"split '{split}': all rows mention a minor where a classifier sees nudity. Remove it.")
            refused[split] = len(out)
            stay = np.setdiff1d(np.arange(len(rows)), out)
            rows, own = numbered(rows).select(stay), [each.only(stay) for each in own]
        left[split] = rows
        kept += own
    return left, kept, refused


def row_numbers(rows: Dataset) -> np.ndarray:
    """The numbers by which a person knows the rows."""
    return np.array(rows[ROW_COLUMN]) if ROW_COLUMN in rows.column_names else np.arange(len(rows))


def find(splits: DatasetDict, judged: Sequence[Judged], max_length: int) -> dict[str, Any]:
    """All findings, as `audit.json` has them: counts, and numbers of rows.

    Args:
        splits: quadruplets.
        judged: all their columns of items.
        max_length: tokens that the text encoder takes.
    """
    columns = {split: [each for each in judged if each.items.split == split] for split in splits}
    numbers = {split: row_numbers(rows) for split, rows in splits.items()}
    return {
        "splits": {
            split: {
                "rows": len(rows),
                "items": {each.items.column: _item(each, numbers[split]) for each in columns[split]},
                "sides": {side: _side(columns[split], side, numbers[split]) for side in SIDES},
                "captions": {
                    each.items.column: _captions(each.items, numbers[split], max_length)
                    for each in columns[split]
                    if each.items.is_caption
                },
                "pictures": {
                    each.items.column: {kind: numbers[split][each.items.numbers(kind)].tolist() for kind in KINDS}
                    for each in columns[split]
                    if not each.items.is_caption
                },
                "categories": _categories(rows),
                "repeated": _repeated(columns[split], numbers[split]),
            }
            for split, rows in splits.items()
        },
        "leaks": {
            kind: _leaks([each.items for each in judged if each.items.column in names], numbers)
            for kind, names in (("captions", CAPTION_COLUMNS), ("pictures", IMAGE_COLUMNS))
        },
    }


def _item(judged: Judged, numbers: np.ndarray) -> dict[str, Any]:
    faults = judged.items.faults()
    return {
        "there": int((judged.items.digest != 0).sum()) + len(faults),
        "scored": int((judged.verdict != UNKNOWN).sum()),
        "unsafe": int((judged.verdict == UNSAFE).sum()),
        "wrong": numbers[judged.wrong].tolist(),
        "faults": list(faults.values()),
    }


def _side(columns: Sequence[Judged], side: str, numbers: np.ndarray) -> dict[str, Any] | None:
    """Of a side's captions and images, which are unsafe together; `None` where they were not both scored."""
    verdicts = [
        each.verdict
        for name in ITEM_COLUMNS
        for each in columns
        if each.items.column == name and each.scored and name.startswith(f"{side}_")
    ]
    if len(verdicts) < 2:
        return None
    caption, image = verdicts
    both = (caption != UNKNOWN) & (image != UNKNOWN)
    wrong = SAFE if side == "unsafe" else UNSAFE
    return {
        "scored": int(both.sum()),
        "unsafe in both": int((both & (caption == UNSAFE) & (image == UNSAFE)).sum()),
        "unsafe caption alone": int((both & (caption == UNSAFE) & (image == SAFE)).sum()),
        "unsafe picture alone": int((both & (caption == SAFE) & (image == UNSAFE)).sum()),
        "safe in both": int((both & (caption == SAFE) & (image == SAFE)).sum()),
        "wrong in both": numbers[both & (caption == wrong) & (image == wrong)].tolist(),
    }


def _captions(items: ReadColumn, numbers: np.ndarray, max_length: int) -> dict[str, Any]:
    languages = Counter(items.facts.data.column("language").drop_null().to_pylist())
    main = next((name for name, _ in languages.most_common() if name != UNCLEAR), None)
    other = [row for row, name in enumerate(items.facts["language"]) if name not in (None, UNCLEAR, main)]
    return {
        "longest": int(items.numbers("tokens").max(initial=0)),
        "too long": numbers[items.numbers("tokens") > max_length].tolist(),
        "languages": dict(languages.most_common()),
        "in another language": numbers[other].tolist(),
    }


def _categories(rows: Dataset) -> dict[str, int]:
    if CATEGORY not in rows.column_names:
        return {}
    feature = rows.features[CATEGORY]
    cells = Counter("None" if cell is None else cell_name(feature, cell) for cell in rows[CATEGORY])
    names = Counter()
    for name, count in cells.items():
        names[name if len(name) <= LONGEST_NAME else "longer than a name"] += count
    return dict(names.most_common())


def _repeated(columns: Sequence[Judged], numbers: np.ndarray) -> list[list[int]]:
    """Rows that have the same items as an earlier one: both numbers."""
    first = repeated_rows([each.items for each in columns])
    rows = np.flatnonzero(first >= 0)
    return np.stack([numbers[rows], numbers[first[rows]]], axis=1).tolist()


def _leaks(columns: Sequence[ReadColumn], numbers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Items of a split that an earlier split has too: where both stand, one of the earlier for each."""
    leaks = []
    for later in columns:
        order = list(numbers)
        earlier = [each for each in columns if order.index(each.split) < order.index(later.split)]
        if not earlier:
            continue
        places = (same_captions if later.is_caption else near_images)(earlier, later)
        for row in np.flatnonzero(places >= 0).tolist():
            found, other = at_place(earlier, int(places[row]))
            leaks.append(
                {
                    "split": later.split,
                    "column": later.column,
                    "row": int(numbers[later.split][row]),
                    "of": {
                        "split": found.split,
                        "column": found.column,
                        "row": int(numbers[found.split][other]),
                    },
                }
            )
    return leaks


def labelled(rows: Dataset, judged: Sequence[Judged]) -> Dataset:
    """Rows with a column that says of each scored item whether it is safe; without the numbers that they had."""
    labels = dict(zip(ITEM_COLUMNS, LABEL_COLUMNS, strict=True))
    rows = rows.remove_columns([ROW_COLUMN]) if ROW_COLUMN in rows.column_names else rows
    for each in judged:
        if not each.scored:
            continue
        label = labels[each.items.column]
        values = [None if verdict == UNKNOWN else verdict == SAFE for verdict in each.verdict.tolist()]
        rows = with_column(rows, label, values)
    return rows
