"""Checking all captions of a data set before training starts."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .allowance import check_bad_share
from .beginnings import MOST_COUNTED, token_counts
from .columns import numbered
from .items import CAPTION_COLUMNS, EMPTY, ITEM_COLUMNS, ROW_COLUMN, items_there
from .plain import plain_rows
from .rows import check_caption

logger = logging.getLogger(__name__)


def _token_counts(batch: dict, indices: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    counts = {}
    indices = batch.get(ROW_COLUMN, indices)
    for column in CAPTION_COLUMNS:
        cells = batch.get(column, [None] * len(indices))
        texts = [check_caption(text, row, column) for row, text in zip(indices, cells, strict=True) if text is not None]
        lengths = iter(token_counts(texts, tokenizer))
        counts[column] = [0 if text is None else next(lengths) for text in cells]
    return counts


def count_tokens(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The tokens of each row's captions before any is cut, as `token_counts`, 0 where there is none; a column for each.

    Raises:
        UserError: a caption cannot be used.
    """
    columns = [name for name in (*CAPTION_COLUMNS, ROW_COLUMN) if name in rows.column_names]
    return rows.select_columns(columns).map(
        partial(_token_counts, tokenizer=tokenizer),
        batched=True,
        with_indices=True,
        remove_columns=columns,
        # Else a column that keeps its name keeps its type, and counts over `large_string` become texts.
        features=Features({column: Value("int64") for column in CAPTION_COLUMNS}),
        desc="Checking captions",
    )


def check_captions(data_sets: Sequence[Dataset], tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Checks that every caption can be used, and warns once of those that will be cut.

    Args:
        data_sets: data sets with the caption columns; their images are not touched.
        tokenizer: the model's tokenizer.
        max_length: tokens that the text encoder takes, both special ones included (CLIP: 77).

    Returns:
        The number of captions longer than `max_length` tokens. `datasets` caches the counting.

    Raises:
        UserError: a caption is not text, or a text without anything in it.
    """
    lengths: list[int] = []
    for rows in data_sets:
        if not set(CAPTION_COLUMNS) & set(rows.column_names):
            continue
        counts = count_tokens(plain_rows(rows), tokenizer)
        lengths += [length for column in CAPTION_COLUMNS for length in counts[column] if length]
    cut = sum(length > max_length for length in lengths)
    if cut:
        logger.warning(
            "%d of %d captions are longer than the text encoder's %d tokens (the longest has %s); "
            "they are cut, keeping the end token.",
            cut,
            len(lengths),
            max_length,
            f"{MOST_COUNTED} or more" if max(lengths) >= MOST_COUNTED else max(lengths),
        )
    return cut


def leave_out_bad_captions(rows: Dataset, where: str, max_bad_fraction: float) -> tuple[Dataset, list[str]]:
    """The rows that have items, and whose captions can be used, and for each of the others why not.

    Args:
        rows: quadruplets.
        where: what the error calls them.
        max_bad_fraction: the largest share of bad rows that is still taken for bad luck, in [0, 1].

    Raises:
        UserError: there are more bad rows than that, or no others.
    """
    rows = plain_rows(rows, where)
    faults: dict[int, str] = {}
    numbers = rows[ROW_COLUMN] if ROW_COLUMN in rows.column_names else range(len(rows))
    there = np.any([items_there(rows, column) for column in ITEM_COLUMNS], axis=0)
    for row in np.flatnonzero(~there).tolist():
        faults[row] = EMPTY.format(numbers[row])
    for column in CAPTION_COLUMNS:
        for row, text in enumerate(rows[column] if column in rows.column_names else ()):
            try:
                if text is not None:
                    check_caption(text, numbers[row], column)
            except UserError as error:
                faults.setdefault(row, str(error))
    if not faults:
        return rows, []
    summary = f"for their captions, {len(faults):,} of {len(rows):,} rows of {where} cannot be used"
    check_bad_share(len(faults), len(rows), max_bad_fraction, summary, f". The first: {next(iter(faults.values()))}")
    return numbered(rows).select([row for row in range(len(rows)) if row not in faults]), list(faults.values())
