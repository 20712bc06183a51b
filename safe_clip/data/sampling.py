"""The order in which training rows come."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from .captions import count_tokens
from .items import CAPTION_COLUMNS
from .rows import QuadrupletRows


class SimilarLengths(LengthGroupedSampler):
    """Batches of captions of about the same length, in another order in every epoch, the same on every process.

    Args:
        batch_size: rows of a step.
        rows: of a data set.
        tokenizer: what lengths are counted with.
        seed: of the order.
    """

    def __init__(self, batch_size: int, rows: QuadrupletRows, tokenizer: PreTrainedTokenizerBase, seed: int):
        counts = count_tokens(rows.stored, tokenizer)
        longest = np.max([counts[column] for column in CAPTION_COLUMNS], axis=0)
        super().__init__(batch_size, lengths=longest[rows.layout.row].tolist(), generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Changes the order of the rows."""
        self.epoch = epoch

    def __iter__(self):
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()
