"""How much of each item's neighbourhood survives."""

import datasets
import evaluate
import numpy as np
import torch

from safe_clip.metrics.array_metric import ArrayMetric
from safe_clip.metrics.ranking import shared_neighbours
from safe_clip.metrics.tensors import as_embeddings

_DESCRIPTION = """
Jaccard overlap of each item's k nearest neighbours, by cosine, before and after a change of the model: 1 where every
neighbourhood stays as it was. It shows damage that recall hides. Ties are broken by chance, independently before and
after, so that a constant embedding scores the overlap of two random neighbourhoods. Exact, in chunks of items.
"""

_INPUTS = """
Args:
    before, after: N embeddings each, of the same items in the same order; they are scaled to length 1.
    k: neighbours, 10 by default.
    per_query: return each item's value in place of the mean.
Returns:
    `neighbour_overlap` in [0, 1].
Example:
    >>> overlap = evaluate.load("safe_clip/metrics/neighbour_overlap")
    >>> items = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
    >>> overlap.compute(before=items, after=items, k=1)
    {'neighbour_overlap': 1.0}
"""

_CITATION = """
@article{klabunde2023similarity,
  title={Similarity of Neural Network Models: A Survey of Functional and Representational Measures},
  author={Klabunde, Max and Schumacher, Tobias and Strohmaier, Markus and Lemmerich, Florian},
  journal={arXiv preprint arXiv:2305.06329},
  year={2023}
}
"""


class NeighbourOverlap(ArrayMetric, evaluate.Metric):
    """Jaccard overlap of nearest neighbours."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "before": datasets.Sequence(datasets.Value("float32")),
                    "after": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(
        self, before: np.ndarray, after: np.ndarray, k: int = 10, per_query: bool = False
    ) -> dict[str, float] | dict[str, torch.Tensor]:
        overlap = shared_neighbours(as_embeddings(before), as_embeddings(after), k)
        return {"neighbour_overlap": overlap if per_query else overlap.mean().item()}
