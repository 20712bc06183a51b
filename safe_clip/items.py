"""Embedded items, one type for training and evaluation.

Items are packed: tensors hold no placeholder for a missing item. The row indices of the items are kept on the CPU, so
that matching items of the same row never synchronizes with the GPU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

ITEMS = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")
MODALITIES = ("text", "image")
SIDES = ("safe", "unsafe")


@dataclass(frozen=True, eq=False)
class Layout:
    """Which items B quadruplets have.

    Attributes:
        present: which of `ITEMS` each has; B x 4 booleans.
        relabelled: whether it consists of unsafe-side items that are labelled safe; B booleans.
        half_unsafe: whether exactly one item of its unsafe side is labelled safe; B booleans.
    """

    present: np.ndarray
    relabelled: np.ndarray
    half_unsafe: np.ndarray

    @classmethod
    def of(cls, present: np.ndarray) -> "Layout":
        """That of quadruplets without labels."""
        no = np.zeros(len(present), dtype=bool)
        return cls(present, no, no)

    @classmethod
    def whole(cls, count: int) -> "Layout":
        """That of quadruplets that have all items, without labels."""
        return cls.of(np.ones((count, len(ITEMS)), dtype=bool))

    @classmethod
    def join(cls, layouts: Sequence["Layout"]) -> "Layout":
        """That of quadruplets that follow one another."""
        fields = ("present", "relabelled", "half_unsafe")
        return cls(*(np.concatenate([getattr(each, name) for each in layouts]) for name in fields))

    def __len__(self) -> int:
        return len(self.present)

    def having(self, *items: str) -> np.ndarray:
        """Which quadruplets have all of some items; B booleans."""
        return np.all(self.present[:, [ITEMS.index(item) for item in items]], axis=1)

    def rows(self, *items: str) -> Tensor:
        """The numbers of the quadruplets that have all of some items; int64."""
        return torch.from_numpy(self.having(*items).nonzero()[0])


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """N embedded items of one kind, such as safe captions, of B rows that have one or none.

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

    @classmethod
    def packed(cls, embeds: Tensor, present: np.ndarray) -> "ItemBatch":
        """The items that there are, of B x dimension embeddings and B booleans."""
        row = torch.from_numpy(present.nonzero()[0])
        return cls(embeds if present.all() else embeds[to(row, embeds)], row)

    def dense(self, count: int) -> Tensor:
        """`count` x dimension embeddings, NaN for rows without an item."""
        if len(self) == count:
            return self.embeds
        dense = self.embeds.new_full((count, self.embeds.shape[1]), torch.nan)
        return dense.index_copy(0, to(self.row, dense), self.embeds)

    def among(self, which: np.ndarray) -> "ItemBatch":
        """The items of those of the B rows that B booleans name."""
        kept = torch.from_numpy(which[self.row.numpy()].nonzero()[0])
        return self if len(kept) == len(self) else ItemBatch(self.embeds[to(kept, self.embeds)], self.row[kept])

    def take(self, rows: Tensor) -> "ItemBatch":
        """The items of the given rows, renumbered from 0 in this order; a row may be given several times."""
        place = torch.full((1 + max((int(each.max()) for each in (rows, self.row) if len(each)), default=0),), -1)
        place[self.row] = torch.arange(len(self))
        found = place[rows]
        return ItemBatch(self.embeds[to(found[found >= 0], self.embeds)], (found >= 0).nonzero().flatten())


@dataclass(frozen=True, eq=False)
class Quadruplets:
    """The embedded items of B quadruplets, each of which may lack some.

    Attributes:
        safe_text, unsafe_text, safe_image, unsafe_image: the items of each kind.
        layout: which quadruplets have which.
    """

    safe_text: ItemBatch
    unsafe_text: ItemBatch
    safe_image: ItemBatch
    unsafe_image: ItemBatch
    layout: Layout

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, item: str) -> ItemBatch:
        return getattr(self, item)

    def __iter__(self) -> Iterator[ItemBatch]:
        return (self[item] for item in ITEMS)

    @classmethod
    def of_sides(
        cls,
        text: Tensor | None,
        image: Tensor | None,
        layout: Layout,
        hidden_states: Mapping[str, tuple[Tensor, ...]] | None = None,
        sides: Sequence[str] = SIDES,
    ) -> "Quadruplets":
        """Splits the output of a CLIP for one batch into the four kinds of items.

        Args:
            text, image: embeddings of the batch's captions and images, the safe side first; `None` for none.
            layout: which quadruplets have which items.
            hidden_states: by modality, the hidden states of each layer, in the same order.
            sides: the sides that were embedded.
        """
        like = next(embeds for embeds in (text, image) if embeds is not None)
        made = {item: ItemBatch(like[:0], torch.arange(0)) for item in ITEMS}
        for modality, embeds in (("text", text), ("image", image)):
            if embeds is None:
                continue
            layers = (hidden_states or {}).get(modality)
            start = 0
            for item in (f"{side}_{modality}" for side in sides):
                row = layout.rows(item)
                mine = slice(start, start := start + len(row))
                made[item] = ItemBatch(embeds[mine], row, layers and tuple(layer[mine] for layer in layers))
        return cls(**made, layout=layout)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.safe_text.embeds.device

    @classmethod
    def packed(cls, columns: Sequence[Tensor | None], layout: Layout) -> "Quadruplets":
        """Those of embeddings in the order of `ITEMS`, B x dimension each; of what is `None`, there are no items."""
        like = next(column for column in columns if column is not None)
        items = (
            ItemBatch(like[:0], torch.arange(0)) if column is None else ItemBatch.packed(column, present)
            for column, present in zip(columns, layout.present.T, strict=True)
        )
        return cls(*items, layout=layout)

    @classmethod
    def join(cls, parts: Sequence["Quadruplets"]) -> "Quadruplets":
        """Quadruplets that follow one another, without hidden states."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist()
        items = (
            ItemBatch(
                torch.cat([part[item].embeds for part in parts]),
                torch.cat([part[item].row + start for part, start in zip(parts, starts, strict=True)]),
            )
            for item in ITEMS
        )
        return cls(*items, layout=Layout.join([part.layout for part in parts]))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Quadruplets":
        """The same with every tensor of embeddings changed."""
        return Quadruplets(*(replace(items, embeds=change(items.embeds)) for items in self), layout=self.layout)


def to(index: Tensor, like: Tensor) -> Tensor:
    """Copies an index to the device of `like`, without waiting for the copy."""
    return index.to(like.device, non_blocking=True)


def pairs(a: ItemBatch, b: ItemBatch) -> tuple[Tensor, Tensor]:
    """Indices into `a` and into `b` of the items that share a row, in the order of rows; int64 on the CPU."""
    _, first, second = np.intersect1d(a.row.numpy(), b.row.numpy(), assume_unique=True, return_indices=True)
    return torch.from_numpy(first), torch.from_numpy(second)
