"""The few figures that a training run is watched by."""

import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, ProcessorMixin

from ..data.plain import plain_rows
from ..embedding.embedder import Embedder
from ..embedding.items import IdentifiedItems
from ..terminal import phase
from .quadruplets import QuadrupletItems, count_items, embed_quadruplets, readable_rows
from .redirection import QUERIES, redirection
from .retrieval import WAYS, counterparts, retrieval


def evaluate_quadruplets(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Dataset,
    batch_size: int = 128,
    desc: str = "Embedding",
) -> dict[str, float]:
    """Measures a model on quadruplets: the summary that training logs and compares.

    Args:
        model: of a known family, such as a `CLIPModel`, used in eval mode on the device where it is.
        processor: its processor.
        rows: a data set with the columns of a quadruplet.
        batch_size: items at a time.
        desc: label of the progress bar.

    Returns:
        The figures of `summary_figures` on the quadruplets that the rows make, shares in [0, 1].

    Raises:
        UserError: a row cannot be used.
    """
    return summary_figures(embed_rows(model, processor, rows, batch_size, desc))


def embed_rows(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Dataset, batch_size: int = 128, desc: str = "Embedding"
) -> QuadrupletItems:
    """What `summary_figures` is of; arguments and errors as for `evaluate_quadruplets`."""
    rows = plain_rows(rows)
    with phase(desc, count_items(rows)):
        items = embed_quadruplets(Embedder(model, processor, desc, batch_size), rows)
    readable_rows([items.safe_image, items.unsafe_image], desc)
    return items


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`summary_figures` for `SafeCLIPTrainer(compute_metrics=...)`, over the evaluation rows."""
    made = []
    for embeds, ids in zip(prediction.predictions, torch.as_tensor(prediction.label_ids).T, strict=True):
        embeds = torch.as_tensor(embeds)
        row = (~embeds[:, 0].isnan()).nonzero().flatten()  # rows of NaN stand for items that are not there
        made.append(IdentifiedItems(embeds[row], row, ids=ids[row], count=len(embeds)))
    return summary_figures(QuadrupletItems(*made, layout=None))


def summary_figures(items: QuadrupletItems, gallery: QuadrupletItems | None = None) -> dict[str, float]:
    """The figures that a training run is watched by.

    Args:
        items: N quadruplets, the queries.
        gallery: the same quadruplets as what is searched, such as by the original; by default, `items`.

    Returns:
        `retrieval_{t2i,i2t}`: recall@1 of safe queries among safe items. `redirection_{safe,unsafe}_{text,image}`:
        the four safe rates, each named after its query: the share of queries whose first result, from the mixed
        pool of the other modality, is safe. `redirection_safe_rate`: the mean of these. Of data of one modality alone,
        in place of all that: `counterpart_{text,image}`, the share of unsafe items that find their own safe
        counterpart first among the safe items of their modality. All in [0, 1].
    """
    recalls = retrieval(items, settings=("safe",), ks=(1,), gallery=gallery)
    rates = redirection(items, gallery, ks=(1,))
    named = {f"retrieval_{way}": recalls.get(f"safe_{way}_recall_at_1") for way in WAYS}
    named |= {
        f"redirection_{side}_{modality}": rates.get(f"{side}_{modality}_safe_rate_at_1") for side, modality in QUERIES
    }
    named["redirection_safe_rate"] = rates.get("mean_safe_rate_at_1")
    if not recalls and not rates:
        found = counterparts(items, ks=(1,), gallery=gallery)
        named = {f"counterpart_{modality}": found.get(f"{modality}_recall_at_1") for modality in WAYS.values()}
    return {name: values.nanmean().item() for name, values in named.items() if values is not None}
