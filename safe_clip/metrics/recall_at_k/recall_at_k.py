"""Recall@k with several right answers and ties."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch

from safe_clip.metrics.array_metric import ArrayMetric
from safe_clip.metrics.ranking import ExactIndex, first_right
from safe_clip.metrics.tensors import as_embeddings

_DESCRIPTION = """
Share of queries that find a right item among the first k of a gallery, ranked by cosine, and the median rank of the
first right item. Several items may be right for a query, as where an image has five captions or two images the same
one: the first of them counts. Ties are broken by chance, so that a constant embedding scores what guessing would.
Exact, in chunks of queries.
"""

_INPUTS = """
Args:
    queries: Q embeddings; they are scaled to length 1.
    references: for each query, the list of gallery rows that are right for it.
    gallery: G x dimension embeddings (array or tensor); scaled to length 1.
    k: depths, (1, 5, 10, 20) by default.
    index: in place of the gallery, an index of `safe_clip.metrics` over it.
    per_query: return each query's value in place of the mean.
Returns:
    `recall_at_{k}` in [0, 1] for each k; `median_rank`, from 1 (with per_query, `rank`: the expected rank under ties).
Example:
    >>> recall = evaluate.load("safe_clip/metrics/recall_at_k")
    >>> recall.compute(queries=[[1.0, 0.0]], references=[[1]], gallery=[[0.0, 1.0], [0.8, 0.6]], k=[1])
    {'recall_at_1': 1.0, 'median_rank': 1.0}
"""

_CITATION = """
@article{hodosh2013framing,
  title={Framing Image Description as a Ranking Task: Data, Models and Evaluation Metrics},
  author={Hodosh, Micah and Young, Peter and Hockenmaier, Julia},
  journal={Journal of Artificial Intelligence Research},
  volume={47},
  year={2013}
}
"""


class RecallAtK(ArrayMetric, evaluate.Metric):
    """Recall@k and median rank of the first right item."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "queries": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self,
        queries: np.ndarray,
        references: Sequence[Sequence[int]],
        gallery: np.ndarray | None = None,
        k: Sequence[int] = (1, 5, 10, 20),
        index=None,
        per_query: bool = False,
    ) -> dict[str, float] | dict[str, torch.Tensor]:
        index = ExactIndex(gallery) if index is None else index
        ranks = first_right(as_embeddings(queries), index, references)
        values = {f"recall_at_{depth}": ranks.recall_at(depth) for depth in k}
        if per_query:
            return {**values, "rank": ranks.rank()}
        means = {name: value.mean().item() for name, value in values.items()}
        return {**means, "median_rank": np.median(ranks.rank()).item()}
