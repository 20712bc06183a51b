"""Exact ranking in chunks: no query x gallery matrix is ever held whole, and no ranking is ever sorted whole.

Scores within `TIE` of one another are tied, and ties are broken by chance: every figure here is the
expectation over all orders of the tied items. A constant embedding, which ties everything, scores chance.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .tensors import as_embeddings

TIE = 1e-6  # above float32's rounding of a cosine, below any difference that means something
CHUNK_SCORES = 2**23  # query x gallery scores held at a time: 32 MiB
MIN_CHUNK = 128  # queries at a time, however large the gallery; with fewer, the product waits for memory
BLOCK_SCORES = 2**20  # scores looked at in one go, so that what is derived from them stays small and in cache


class Index(Protocol):
    """Scores queries against a gallery of `size` items."""

    size: int

    def chunks(self, queries: Tensor) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yields the first query's number, its chunk's scores (chunk x M), and the gallery rows that they
        belong to (chunk x M), or `None` where M is the whole gallery in order."""
        ...


class ExactIndex:
    """Scores every item of a gallery.

    Args:
        gallery: G x dimension embeddings; they are scaled to length 1 and put where queries are scored.
    """

    def __init__(self, gallery: Tensor):
        self.gallery = as_embeddings(gallery)
        self.size = len(self.gallery)

    def chunks(self, queries: Tensor) -> Iterator[tuple[int, Tensor, None]]:
        step = max(MIN_CHUNK, CHUNK_SCORES // self.size)
        rows = max(1, BLOCK_SCORES // self.size)
        buffer = queries.new_empty(min(step, len(queries)), self.size)
        transposed = self.gallery.T
        for start in range(0, len(queries), step):
            chunk = queries[start : start + step]
            scores = torch.mm(chunk, transposed, out=buffer[: len(chunk)])
            for number, block in enumerate(scores.split(rows)):
                yield start + number * rows, block, None


class Ranks(NamedTuple):
    """Where each query finds its first right item: Q integers each.

    Attributes:
        above: items that rank strictly before every right one; the gallery's size where an approximate
            index did not return any right item.
        tied: items tied with the best right one, itself included.
        right: right items among the tied.
    """

    above: Tensor
    tied: Tensor
    right: Tensor

    def recall_at(self, k: int) -> Tensor:
        """The chance that a right item is among the first k: Q float64 values in [0, 1]."""
        drawn = (k - self.above).clamp(min=0)  # places left for the tied items
        wrong = self.tied - self.right
        sure, missed = drawn > wrong, drawn == 0
        tied, wrong, drawn = self.tied.double(), wrong.double(), torch.minimum(drawn, wrong).double()
        # Hypergeometric: the chance that all the places go to wrong items is C(wrong, drawn) / C(tied, drawn).
        log_miss = (
            torch.lgamma(wrong + 1)
            - torch.lgamma(wrong - drawn + 1)
            - torch.lgamma(tied + 1)
            + torch.lgamma(tied - drawn + 1)
        )
        hit = torch.where(sure, 1.0, 1 - log_miss.exp())
        return torch.where(missed, 0.0, hit).double()

    def rank(self) -> Tensor:
        """The expected rank of the first right item, from 1: Q float64 values."""
        return self.above + (self.tied + 1.0).double() / (self.right + 1.0)


def first_right(queries: Tensor, index: Index, right: Sequence[Sequence[int]]) -> Ranks:
    """Ranks the best right item of each query.

    Args:
        queries: Q x dimension embeddings of length 1.
        index: the gallery.
        right: for each query, the gallery rows that are right for it, at least one.

    Raises:
        ValueError: the lengths differ, or a query has no right item or one outside of the gallery.
    """
    offsets, wanted = (tensor.to(queries.device) for tensor in _flat(right, len(queries), index.size))
    # Allocated once: a small result kept from each chunk splits the heap, and memory grows with every chunk.
    ranks = torch.empty(3, len(queries), dtype=torch.int64, device=queries.device)
    missing = torch.tensor([[index.size], [1], [1]], dtype=torch.int32, device=queries.device)
    for start, scores, rows in index.chunks(queries):
        mine = offsets[start : start + len(scores) + 1]
        of = torch.repeat_interleave(mine.diff())  # the query of each right item, within the chunk
        items = wanted[mine[0] : mine[-1]]
        if rows is not None:  # where a shortlist holds them
            stride = index.size + 1  # one number for each query and row, fillers included
            numbers = rows + stride * torch.arange(len(rows), device=rows.device)[:, None]
            held = torch.isin(numbers, stride * of + items)
            of, places = held.nonzero(as_tuple=True)
            own = scores[of, places]
        else:
            own = scores[of, items]
        best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, of, own, "amax")
        edge = best[:, None] - TIE
        above = _count(scores > best[:, None] + TIE)
        right_tied = torch.zeros_like(above).index_add(0, of, (own >= edge[of, 0]).to(above.dtype))
        counts = torch.stack([above, _count(scores >= edge) - above, right_tied])
        ranks[:, start : start + len(scores)] = torch.where(best > -torch.inf, counts, missing)
    return Ranks(*ranks.cpu())


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=1, dtype=torch.int32)  # several times faster than count_nonzero, with half its memory


def _flat(right: Sequence[Sequence[int]], queries: int, size: int) -> tuple[Tensor, Tensor]:
    """All right items in a row, and where each query's begin, with the end."""
    if len(right) != queries:
        raise ValueError(f"there are {queries} queries but right items for {len(right)}.")
    different = [sorted({int(row) for row in rows}) for rows in right]
    if not all(different):
        raise ValueError("every query needs at least one right item.")
    if min(rows[0] for rows in different) < 0 or max(rows[-1] for rows in different) >= size:
        raise ValueError(f"right items are rows of the gallery, 0 to {size - 1}.")
    ends = torch.tensor([0, *(len(rows) for rows in different)]).cumsum(dim=0)
    return ends, torch.tensor([row for rows in different for row in rows])


def safe_share(queries: Tensor, index: Index, safe_count: int, ks: Sequence[int]) -> Tensor:
    """Share of safe items among the first k results, for each query.

    Args:
        queries: Q x dimension embeddings of length 1.
        index: a gallery whose first `safe_count` rows are the safe items.
        safe_count: number of safe items.
        ks: depths, each from 1 to the gallery's size.

    Returns:
        Q x len(ks) float64 shares in [0, 1].
    """
    values = torch.empty(len(queries), len(ks), dtype=torch.float64, device=queries.device)
    for start, scores, rows in index.chunks(queries):
        if max(ks) > scores.shape[1]:
            raise ValueError(f"the first {max(ks)} of {scores.shape[1]} results were asked for.")
        top, places = scores.topk(min(max(ks) + 1, scores.shape[1]), dim=1)
        top_safe = (places if rows is None else rows.gather(1, places)) < safe_count
        for column, k in enumerate(ks):
            edge = top[:, k - 1 : k]
            above, to_edge = top > edge + TIE, top >= edge - TIE
            counts = torch.stack([_count(mask) for mask in (above, above & top_safe, to_edge, to_edge & top_safe)])
            # Where a tie runs past the list, the whole gallery is counted.
            past = to_edge[:, -1].nonzero()[:, 0]
            if len(past):
                mask = scores[past] >= edge[past] - TIE
                safe = mask[:, :safe_count] if rows is None else mask & (rows[past] < safe_count)
                counts[2:, past] = torch.stack([_count(mask), _count(safe)])
            above, above_safe, to_edge, to_edge_safe = counts.double()
            tied_safe = (to_edge_safe - above_safe) / (to_edge - above)
            values[start : start + len(scores), column] = (above_safe + (k - above) * tied_safe) / k
    return values.cpu()


def shared_neighbours(before: Tensor, after: Tensor, k: int) -> Tensor:
    """Jaccard overlap of each item's k nearest neighbours among the others, before and after.

    Args:
        before, after: N x dimension embeddings of length 1 of the same items; the dimensions may differ.
        k: neighbours, fewer than N.

    Returns:
        N float64 overlaps in [0, 1]. Under ties, the expected size of the intersection over the size
        of the union that it leaves.
    """
    if len(before) != len(after) or not 0 < k < len(before):
        raise ValueError(f"{k} neighbours cannot be compared among {len(before)} and {len(after)} items.")
    overlaps = torch.empty(len(before), dtype=torch.float64, device=before.device)
    for (start, old, _), (_, new, _) in zip(
        ExactIndex(before).chunks(before), ExactIndex(after).chunks(after), strict=True
    ):
        common = (_membership(old, start, k) * _membership(new, start, k)).sum(dim=1)
        overlaps[start : start + len(common)] = common / (2 * k - common)
    return overlaps.cpu()


def _membership(scores: Tensor, start: int, k: int) -> Tensor:
    """The chance of each item to be among the k nearest of each query, which is no neighbour of itself."""
    queries = torch.arange(len(scores), device=scores.device)
    scores[queries, queries + start] = -torch.inf
    edge = scores.topk(k, dim=1).values[:, -1:]
    above, to_edge = scores > edge + TIE, scores >= edge - TIE
    count = above.sum(dim=1, keepdim=True)
    chance = (k - count).double() / (to_edge.sum(dim=1, keepdim=True) - count)
    return torch.where(above, 1.0, to_edge * chance)
