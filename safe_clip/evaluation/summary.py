"""The few figures that a training run is watched by."""

import torch
from datasets import Dataset
from transformers import CLIPModel, CLIPProcessor, EvalPrediction

from .embedding import Embedder, Items
from .quadruplets import QuadrupletItems, embed_quadruplets, readable_rows
from .redirection import QUERIES, redirection
from .retrieval import WAYS, retrieval


def evaluate_quadruplets(
    model: CLIPModel, processor: CLIPProcessor, rows: Dataset, batch_size: int = 128, desc: str = "Embedding"
) -> dict[str, float]:
    """Measures a model on quadruplets: the summary that training logs and compares.

    Args:
        model: a `CLIPModel`, used in eval mode on the device where it is.
        processor: its processor.
        rows: a data set with the columns of a quadruplet.
        batch_size: items at a time.
        desc: label of the progress bar.

    Returns:
        The figures of `summary_figures`, shares in [0, 1].

    Raises:
        UserError: a row cannot be used.
    """
    items = embed_quadruplets(Embedder(model, processor, desc, batch_size), rows)
    readable_rows([items.safe_image, items.unsafe_image], desc, skip_corrupt=False)
    return summary_figures(items)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`summary_figures` for `SafeCLIPTrainer(compute_metrics=...)`, over the evaluation rows."""
    ids = torch.as_tensor(prediction.label_ids)
    embeds = (torch.as_tensor(embeds) for embeds in prediction.predictions)
    return summary_figures(QuadrupletItems(*(Items(*pair) for pair in zip(embeds, ids.T, strict=True))))


def summary_figures(items: QuadrupletItems) -> dict[str, float]:
    """The figures that a training run is watched by.

    Returns:
        `retrieval_{t2i,i2t}`: recall@1 of safe queries among safe items. `redirection_{safe,unsafe}_{text,image}`:
        the four safe rates, each named after its query: the share of queries whose first result, from the mixed
        pool of the other modality, is safe. `redirection_safe_rate`: the mean of the four. All in [0, 1].
    """
    recalls = retrieval(items, settings=("safe",), ks=(1,))
    rates = redirection(items, ks=(1,))
    return {
        **{f"retrieval_{way}": recalls[f"safe_{way}_recall_at_1"].mean().item() for way in WAYS},
        **{
            f"redirection_{side}_{modality}": rates[f"{side}_{modality}_safe_rate_at_1"].mean().item()
            for side, modality in QUERIES
        },
        "redirection_safe_rate": rates["mean_safe_rate_at_1"].mean().item(),
    }
