"""Protocol 5: the geometry of the embedding space, which shows changes that retrieval does not."""

import torch
from torch import Tensor

from ..embedding.items import figure
from ..items import MODALITIES, pairs
from ..metrics import scores
from .quadruplets import QuadrupletItems

NEIGHBOURS = 10


def spread(embeds: Tensor) -> float:
    """Mean squared distance of N x dimension embeddings to their mean; 0 where all are one."""
    embeds = embeds.double()
    return (embeds - embeds.mean(dim=0)).square().sum(dim=1).mean().item()


def effective_rank(embeds: Tensor) -> float:
    """Dimensions that N x dimension embeddings really use: the exponential of the entropy of the singular values of
    the centred embeddings, scaled to sum to 1 (Roy & Vetterli, EUSIPCO 2007). From 1; 0 where all are one."""
    embeds = embeds.double()
    embeds = embeds - embeds.mean(dim=0)
    # Eigenvalues of the small dimension x dimension product, since N may be large.
    singular = torch.linalg.eigvalsh(embeds.T @ embeds).clamp(min=0).sqrt()
    total = singular.sum()
    if total <= 1e-6 * len(embeds) ** 0.5:  # rounding is all that is left
        return 0.0
    shares = singular / total
    return torch.special.entr(shares).sum().exp().item()


def modality_gap(text: Tensor, image: Tensor) -> float:
    """Distance between the mean caption and the mean image, from 0 to 2 (Liang et al., NeurIPS 2022)."""
    return (text.double().mean(dim=0) - image.double().mean(dim=0)).norm().item()


def pair_probability(items: QuadrupletItems, scale: float, bias: float) -> tuple[Tensor, Tensor]:
    """What a model trained by sigmoids says of how likely it is that a safe caption and its image belong together.

    Args:
        items: N quadruplets as the model embeds them.
        scale, bias: the model's.

    Returns:
        Probabilities in [0, 1], float64, of the P pairs that there are, and their indices among the quadruplets.
    """
    captions, images = pairs(items.safe_text, items.safe_image)
    cosines = (items.safe_text.embeds[captions].double() * items.safe_image.embeds[images].double()).sum(dim=1)
    return torch.sigmoid(scale * cosines + bias), items.safe_text.row[captions]


def geometry(items: QuadrupletItems, original: QuadrupletItems | None = None) -> tuple[dict, dict[str, float]]:
    """How the space lies, and how it moved.

    Args:
        items: N quadruplets as the model embeds them.
        original: the same as the original model embeds them; without it, only what needs no comparison.
            Cosines need the same dimension, and are left out where it differs.

    Returns:
        Two dictionaries, without what there are no items for. Of N values each, NaN for missing items:
        `{text,image}_cosine_to_original`, of safe items; `{text,image}_unsafe_to_safe_cosine`, of unsafe items to
        where the original puts their safe counterparts; `{text,image}_neighbour_overlap`, Jaccard, of the 10 nearest
        safe items before and after. Of one number: `{text,image}_spread` and `{text,image}_effective_rank` of safe
        items; `{text,image}_spread_ratio`, to the original's; `modality_gap` between safe captions and safe images.
    """
    per_item, numbers = {}, {}
    for modality in MODALITIES:
        safe, unsafe = items.of("safe", modality), items.of("unsafe", modality)
        if not len(safe):
            continue
        numbers[f"{modality}_spread"] = spread(safe.different)
        numbers[f"{modality}_effective_rank"] = effective_rank(safe.different)
        if original is None:
            continue
        before = original.of("safe", modality)
        old_spread = spread(before.different)
        numbers[f"{modality}_spread_ratio"] = numbers[f"{modality}_spread"] / old_spread if old_spread else 0.0
        if before.embeds.shape == safe.embeds.shape:
            cosines = (safe.embeds * before.embeds).sum(dim=1)
            per_item[f"{modality}_cosine_to_original"] = figure(cosines, safe.row, safe.count)
            own, counterpart = pairs(unsafe, before)
            if len(own):
                cosines = (unsafe.embeds[own] * before.embeds[counterpart]).sum(dim=1)
                per_item[f"{modality}_unsafe_to_safe_cosine"] = figure(cosines, unsafe.row[own], unsafe.count)
        if len(safe.first) > NEIGHBOURS:
            overlap = scores(
                "neighbour_overlap",
                before=before.embeds[safe.first].numpy(),
                after=safe.different.numpy(),
                k=NEIGHBOURS,
                per_query=True,
            )["neighbour_overlap"]
            per_item[f"{modality}_neighbour_overlap"] = figure(overlap[safe.inverse], safe.row, safe.count)
    if len(items.safe_text) and len(items.safe_image):
        numbers["modality_gap"] = modality_gap(items.safe_text.different, items.safe_image.different)
    return per_item, numbers
