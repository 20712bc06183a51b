"""Embeddings of the training rows by the frozen original, computed once."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..items import ITEMS, Layout, Quadruplets


class ReferenceTable:
    """Embeddings of N rows by their numbers, in memory or on disk.

    Args:
        parts: of the rows, which follow one another: for each name, M x dimension.
    """

    def __init__(self, parts: Sequence[Mapping[str, Tensor]]):
        self.columns = {name: [part[name].numpy() for part in parts] for name in parts[0]}
        self.ends = np.cumsum([len(part) for part in next(iter(self.columns.values()))])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The embeddings of B rows: for each name, B x dimension float32, NaN for a missing item."""
        parts = np.searchsorted(self.ends, rows, side="right")
        starts = np.concatenate([[0], self.ends[:-1]])
        taken = {}
        for name, column in self.columns.items():
            taken[name] = np.empty((len(rows), column[0].shape[1]), dtype=np.float32)
            for part in np.unique(parts):
                mine = parts == part
                taken[name][mine] = column[part][rows[mine] - starts[part]]
        return {name: torch.from_numpy(column) for name, column in taken.items()}

    def items(self, rows: np.ndarray, layout: Layout, device: torch.device) -> Quadruplets:
        """The embedded items of B rows, which have this layout."""
        taken = self.take(rows)
        packed = Quadruplets.packed([taken.get(item) for item in ITEMS], layout)
        return packed.map(lambda embeds: embeds.to(device, non_blocking=True))
