"""Protocol 1: who finds the right item, and how far down the list."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..metrics import load_metric
from ..metrics.ranking import ExactIndex
from .embedding import Items
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
) -> dict[str, Tensor]:
    """Recall@k and rank, text to image and image to text.

    Identical captions are one caption and identical pictures one picture: the gallery holds each once, and
    everything that some row pairs with the query is right for it. Five captions of a picture are thus five
    queries with one right answer, and the picture a query with five.

    Args:
        items: N quadruplets.
        settings: which of `SETTINGS`.
        ks: depths; those beyond the gallery are left out.
        factory: makes the index that is searched.

    Returns:
        `{setting}_{t2i,i2t}_recall_at_{k}` and `{setting}_{t2i,i2t}_rank`, the expected rank of the first right
        item from 1: N values each, in the order of the quadruplets.
    """
    metric = load_metric("recall_at_k")
    figures = {}
    for setting in settings:
        side, union = SETTINGS[setting]
        for way, modality in WAYS.items():
            queries, answers = items.of(side, modality), items.of("safe", other(modality))
            index = union_index(items, other(modality), factory)[0] if union else factory(answers.different)
            values = metric.compute(
                queries=queries.different.numpy(),
                references=right_items(queries, answers),
                index=index,
                k=[k for k in ks if k <= index.size],
                per_query=True,
            )
            figures |= {f"{setting}_{way}_{name}": value[queries.inverse] for name, value in values.items()}
    return figures


def right_items(queries: Items, answers: Items) -> list[list[int]]:
    """For each different query, the places of its answers among the different answers."""
    right: dict[int, set[int]] = defaultdict(set)
    for query, answer in torch.stack([queries.inverse, answers.inverse], dim=1).tolist():
        right[query].add(answer)
    return [sorted(right[query]) for query in range(len(right))]
