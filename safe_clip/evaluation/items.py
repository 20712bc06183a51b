"""Embedded items of one kind."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Items:
    """N items of one kind.

    Attributes:
        embeds: N x dimension float32 embeddings of length 1; all NaN where there is no item, or a picture that could
            not be read.
        ids: N int64 numbers, equal where the texts, or the decoded pixels, are the same.
        unreadable: for each picture that could not be read, its number and why.
    """

    embeds: Tensor
    ids: Tensor
    unreadable: dict[int, str] | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def select(self, keep: Tensor) -> "Items":
        """The items whose numbers are given."""
        return Items(self.embeds[keep], self.ids[keep])

    def scatter(self, places: Tensor, count: int) -> "Items":
        """These items at some of `count` places, and nothing at the others."""
        if len(places) == count:
            return self
        embeds = self.embeds.new_full((count, self.embeds.shape[1]), torch.nan)
        ids = self.ids.new_zeros(count)
        embeds[places], ids[places] = self.embeds, self.ids
        unreadable = {int(places[index]): reason for index, reason in (self.unreadable or {}).items()}
        return Items(embeds, ids, unreadable)

    @cached_property
    def there(self) -> Tensor:
        """Which of the N items there are; N booleans."""
        return ~self.embeds[:, 0].isnan()

    @cached_property
    def _unique(self) -> tuple[Tensor, Tensor]:
        spots = self.there.nonzero().flatten()
        ids, inverse = torch.unique(self.ids[spots], return_inverse=True)
        first = torch.full((len(ids),), len(self.ids)).scatter_reduce(0, inverse, spots, "amin", include_self=True)
        order = torch.argsort(first)  # as the items stand in the data
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        whole = torch.full((len(self.ids),), -1)
        whole[spots] = place[inverse]
        return first[order], whole

    @property
    def first(self) -> Tensor:
        """Numbers of the U different items, each where it first stands."""
        return self._unique[0]

    @property
    def inverse(self) -> Tensor:
        """For each of the N items, its place among the U different ones; -1 for none."""
        return self._unique[1]

    @property
    def different(self) -> Tensor:
        """U x dimension embeddings: identical items once."""
        return self.embeds if len(self.first) == len(self) else self.embeds[self.first]

    def spread(self, values: Tensor) -> Tensor:
        """A value for each of the U different items, as one for each of the N; NaN for none."""
        if self.there.all():
            return values[self.inverse]
        spread = torch.full((len(self),), torch.nan, dtype=torch.float64)
        spread[self.there] = values[self.inverse[self.there]].double()
        return spread
