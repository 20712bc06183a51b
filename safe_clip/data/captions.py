"""Checking all captions of a data set before training starts."""

import logging
from functools import partial

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .quadruplets import CAPTION_COLUMNS, check_caption

logger = logging.getLogger(__name__)


def _token_counts(batch: dict, indices: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    counts = {}
    for column in CAPTION_COLUMNS:
        texts = [check_caption(text, row, column) for row, text in zip(indices, batch[column], strict=True)]
        # Lengths before truncation are what is asked for, so the tokenizer's warning about them is noise.
        counts[column] = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    return counts


def check_captions(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Checks that every caption can be used, and warns once of those that will be cut.

    Args:
        rows: a data set with the caption columns; its pictures are not touched.
        tokenizer: the model's tokenizer.
        max_length: tokens that the text encoder takes, both special ones included (CLIP: 77).

    Returns:
        The number of captions longer than `max_length` tokens. `datasets` caches the counting.

    Raises:
        UserError: a caption is empty or not text.
    """
    counts = rows.select_columns(list(CAPTION_COLUMNS)).map(
        partial(_token_counts, tokenizer=tokenizer),
        batched=True,
        with_indices=True,
        remove_columns=list(CAPTION_COLUMNS),
        desc="Checking captions",
    )
    lengths = [length for column in CAPTION_COLUMNS for length in counts[column]]
    cut = sum(length > max_length for length in lengths)
    if cut:
        logger.warning(
            "%d of %d captions are longer than the text encoder's %d tokens (the longest has %d); "
            "they are cut, keeping the end token.",
            cut,
            len(lengths),
            max_length,
            max(lengths),
        )
    return cut
