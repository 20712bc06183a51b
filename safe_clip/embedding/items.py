"""Embedded items of one kind, of which identical ones are known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..items import ItemBatch


@dataclass(frozen=True, kw_only=True)
class IdentifiedItems(ItemBatch):
    """N embedded items of one kind, of B rows that have one or none, with what tells different ones apart.

    Attributes:
        ids: N int64 numbers, equal where the texts, or the decoded pixels, are the same.
        count: B, the number of rows.
        unreadable: for each image that could not be read, and so is not in the tensors, its row and why.
    """

    ids: Tensor
    count: int
    unreadable: dict[int, str] = field(default_factory=dict)

    @cached_property
    def _unique(self) -> tuple[Tensor, Tensor]:
        _, first, inverse = np.unique(self.ids.numpy(), return_index=True, return_inverse=True)
        order = np.argsort(first)  # as the items stand in the data
        return torch.from_numpy(first[order]), torch.from_numpy(np.argsort(order)[inverse])

    @property
    def first(self) -> Tensor:
        """Indices of the U different items, each where it first stands."""
        return self._unique[0]

    @property
    def inverse(self) -> Tensor:
        """For each of the N items, its index among the U different ones."""
        return self._unique[1]

    @property
    def different(self) -> Tensor:
        """U x dimension embeddings: identical items once."""
        return self.embeds if len(self.first) == len(self) else self.embeds[self.first]

    def moved(self, old: Tensor, new: Tensor, count: int) -> "IdentifiedItems":
        """The items of the rows `old`, as those of the rows `new` among `count`; both are increasing."""
        kept = torch.isin(self.row, old)
        embeds, ids = (self.embeds, self.ids) if kept.all() else (self.embeds[kept], self.ids[kept])
        numbers = dict(zip(old.tolist(), new.tolist(), strict=True)) if self.unreadable else {}
        unreadable = {numbers[row]: reason for row, reason in self.unreadable.items() if row in numbers}
        row = new[torch.searchsorted(old, self.row[kept])]
        return IdentifiedItems(embeds, row, ids=ids, count=count, unreadable=unreadable)

    def select(self, rows: Tensor) -> "IdentifiedItems":
        """The items of some rows, in their order, which are numbered anew."""
        return self.moved(rows, torch.arange(len(rows)), len(rows))


def figure(values: Tensor, row: Tensor | Sequence[int], count: int) -> Tensor:
    """Values of the items of some rows, as one for each of `count` rows: float64, NaN for rows without an item."""
    made = torch.full((count,), torch.nan, dtype=torch.float64)
    made[row] = values.double()
    return made
