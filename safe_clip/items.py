"""Embedded items, one type for training and evaluation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemBatch:
    """N embedded items of one kind, such as safe captions, of B rows that have one or none. An item that is not there
    is not in the tensors.

    Attributes:
        embeds: N x dimension, of length 1.
        row: N int64 on the CPU, increasing: the row that each belongs to.
        hidden_states: what generators read, N x length x width of each layer; where asked for.
    """

    embeds: Tensor
    row: Tensor
    hidden_states: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.row)


def pairs(a: ItemBatch, b: ItemBatch) -> tuple[Tensor, Tensor]:
    """Indices into two kinds of items of those that belong to the same rows, in the order of rows; int64 on the CPU."""
    _, first, second = np.intersect1d(a.row.numpy(), b.row.numpy(), assume_unique=True, return_indices=True)
    return torch.from_numpy(first), torch.from_numpy(second)
