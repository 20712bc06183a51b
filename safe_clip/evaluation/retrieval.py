"""Protocol 1: cross-modal retrieval, by recall@k and rank of the paired safe item."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..embedding.items import IdentifiedItems, figure
from ..items import pairs
from ..metrics import scores
from ..metrics.ranking import ExactIndex, Index
from .quadruplets import IndexFactory, QuadrupletItems, other, union_index

KS = (1, 5, 10, 20)
WAYS = {"t2i": "text", "i2t": "image"}  # the modality of the query

# The side of the queries and whether the pool holds the unsafe items too. In each the paired *safe* item is right.
SETTINGS = {
    "safe": ("safe", False),
    "safe_union": ("safe", True),
    "unsafe_union": ("unsafe", True),  # the protocol of HySAC, table 1
}


def retrieval(
    items: QuadrupletItems,
    settings: Sequence[str] = tuple(SETTINGS),
    ks: Sequence[int] = KS,
    factory: IndexFactory = ExactIndex,
    gallery: QuadrupletItems | None = None,
) -> dict[str, Tensor]:
    """Recall@k and rank, text to image and image to text.

    Identical captions are one caption and identical images one image: the gallery holds each once, and
    everything that some row pairs with the query is right for it. Five captions of an image are thus five
    queries with one right answer, and the image a query with five.

    Args:
        items: N quadruplets, the queries.
        settings: which of `SETTINGS`.
        ks: depths; those beyond the gallery are left out.
        factory: makes the index that is searched.
        gallery: the same quadruplets embedded by the model that built the gallery; by default, the queries' own model.

    Returns:
        `{setting}_{t2i,i2t}_recall_at_{k}` and `{setting}_{t2i,i2t}_rank`, the expected rank of the first right
        item from 1: N values each, in the order of the quadruplets, NaN where a query or its answer is missing.
        Nothing of what no quadruplet has.
    """
    gallery = items if gallery is None else gallery
    figures = {}
    for setting in settings:
        side, union = SETTINGS[setting]
        for way, modality in WAYS.items():
            queries, answers = items.of(side, modality), gallery.of("safe", other(modality))
            if not len(pairs(queries, answers)[0]):
                continue
            index = union_index(gallery, other(modality), factory)[0] if union else factory(answers.different)
            assert index is not None  # there are answers in it
            found = find(queries, answers, index, ks)
            figures |= {f"{setting}_{way}_{name}": value for name, value in found.items()}
    return figures


def counterparts(
    items: QuadrupletItems, ks: Sequence[int] = KS, gallery: QuadrupletItems | None = None
) -> dict[str, Tensor]:
    """Within a modality: whether unsafe items find their own safe counterpart among the safe items.

    For data of one modality, where nothing can be asked across.

    Args:
        items, ks, gallery: as for `retrieval`.

    Returns:
        `{text,image}_recall_at_{k}` and `{text,image}_rank`, as `retrieval`.
    """
    figures = {}
    for modality in WAYS.values():
        queries, answers = items.of("unsafe", modality), (gallery or items).of("safe", modality)
        if len(pairs(queries, answers)[0]):
            found = find(queries, answers, ExactIndex(answers.different), ks)
            figures |= {f"{modality}_{name}": value for name, value in found.items()}
    return figures


def find(queries: IdentifiedItems, answers: IdentifiedItems, index: Index, ks: Sequence[int]) -> dict[str, Tensor]:
    """`recall_at_{k}` and `rank` of queries whose answers stand first in an index; NaN for what is missing."""
    right: list[set[int]] = [set() for _ in queries.first]  # for each different query, among the different answers
    asking, answering = pairs(queries, answers)
    for query, answer in zip(queries.inverse[asking].tolist(), answers.inverse[answering].tolist(), strict=True):
        right[query].add(answer)
    asked = torch.tensor([bool(found) for found in right])
    values = scores(
        "recall_at_k",
        queries=queries.different[asked].numpy(),
        references=[sorted(found) for found in right if found],
        index=index,
        k=[k for k in ks if k <= index.size],
        per_query=True,
    )
    whole = torch.full((len(right),), torch.nan, dtype=torch.float64)
    return {
        name: figure(whole.masked_scatter(asked, value.double())[queries.inverse], queries.row, queries.count)
        for name, value in values.items()
    }
