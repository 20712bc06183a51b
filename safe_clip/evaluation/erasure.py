"""What a trained objective has to beat: a way to make a CLIP safer that needs no training."""

import copy
import warnings

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from ..embedding.embedder import Embedder
from ..errors import UserError
from ..models.families import family_of
from .quadruplets import embed_quadruplets, readable_rows


def erase_unsafe_direction(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Dataset, batch_size: int = 128
) -> PreTrainedModel:
    """A CLIP whose embeddings hold nothing that tells unsafe from safe items linearly, at the least change.

    LEACE (Belrose et al., NeurIPS 2023), fitted on the embeddings of each modality and folded into the model's two
    projections, or put after its encoders where there are none. A CLIP's have no bias, so that the erasure is about the
    origin, not about the mean; and embeddings are scaled to length 1 afterwards, which may bring a little of the
    difference back.

    Args:
        model: the original; it is not changed.
        processor: its processor.
        rows: quadruplets to fit on.
        batch_size: items at a time.

    Raises:
        UserError: `concept-erasure` is not installed, or a row cannot be used.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of its use of torch.jit
            from concept_erasure import LeaceFitter
    except ImportError as error:
        raise UserError("the linear erasure requires concept-erasure: pip install 'safe-clip[baselines]'.") from error
    items = embed_quadruplets(Embedder(model, processor, "Embedding", batch_size), rows)
    readable_rows([items.safe_image, items.unsafe_image], "the rows to fit on")
    erased = copy.deepcopy(model)
    for modality, tower in family_of(erased).towers.items():
        safe, unsafe = (items.of(side, modality).embeds.double() for side in ("safe", "unsafe"))
        if not len(safe) or not len(unsafe):
            continue  # nothing tells the two apart
        labels = torch.cat([torch.zeros(len(safe)), torch.ones(len(unsafe))]).long()
        eraser = LeaceFitter.fit(torch.cat([safe, unsafe]), labels).eraser
        tower.map_embeddings(erased, eraser.P)
    return erased
