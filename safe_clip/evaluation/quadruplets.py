"""A model and quadruplets in, retrieval and safety figures out."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPProcessor, EvalPrediction

from ..data.collator import QuadrupletCollator
from ..data.quadruplets import QuadrupletRows
from ..metrics.retrieval import quadruplet_metrics


@torch.inference_mode()
def embed_quadruplets(
    model: CLIPModel, processor: CLIPProcessor, rows: Any, batch_size: int = 128, desc: str = "Embedding"
) -> dict[str, Tensor]:
    """Embeds all four items of N quadruplets.

    Args:
        model: a `CLIPModel`, used in eval mode on the device where it is.
        rows: a data set with the columns of a quadruplet.
        batch_size: quadruplets at a time.
        desc: label of the progress bar.

    Returns:
        `safe_text`, `unsafe_text`, `safe_image`, `unsafe_image`: N x dimension float32 tensors of
        length-1 embeddings on the CPU.
    """
    collate = QuadrupletCollator(processor, model.config.text_config.max_position_embeddings)
    loader = DataLoader(QuadrupletRows(rows), batch_size, collate_fn=collate)
    training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    try:
        for batch in tqdm(loader, desc=desc, unit="batch", leave=False):
            for side in ("safe", "unsafe"):
                output = model(
                    **{
                        name: batch[f"{side}_{name}"].to(model.device)
                        for name in ("input_ids", "attention_mask", "pixel_values")
                    }
                )
                parts.setdefault(f"{side}_text", []).append(output.text_embeds.float().cpu())
                parts.setdefault(f"{side}_image", []).append(output.image_embeds.float().cpu())
    finally:
        model.train(training)
    return {name: torch.cat(chunks) for name, chunks in parts.items()}


def evaluate_quadruplets(
    model: CLIPModel, processor: CLIPProcessor, rows: Dataset, batch_size: int = 128, desc: str = "Embedding"
) -> dict[str, float]:
    """Measures a model on quadruplets.

    Args:
        model, processor, rows, batch_size, desc: as for `embed_quadruplets`.

    Returns:
        The figures of `quadruplet_metrics`, shares in [0, 1]. Pictures with the same safe caption are
        all right for it.

    Raises:
        UserError: a row cannot be used.
    """
    captions = rows["safe_caption"]
    first = {}
    groups = [first.setdefault(caption, index) for index, caption in enumerate(captions)]
    return quadruplet_metrics(**embed_quadruplets(model, processor, rows, batch_size, desc), groups=groups)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`quadruplet_metrics` for `SafeCLIPTrainer(compute_metrics=...)`, over the evaluation rows.

    Only embeddings arrive here, so that, unlike in `evaluate_quadruplets`, a caption that occurs twice
    has one right picture.
    """
    return quadruplet_metrics(*(torch.as_tensor(embeds) for embeds in prediction.predictions))
