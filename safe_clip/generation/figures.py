"""What generated images come to."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..embedding.items import figure
from .by_category import summarise_items
from .distances import distances
from .judges import flags
from .prompts import by_split_and_side
from .text_to_image import GeneratedImages


def figures(
    generated: GeneratedImages,
    references: Mapping[str, Tensor],
    real: Mapping[str, Tensor],
    threshold: float,
) -> dict[str, dict[str, dict]]:
    """What the images of one pipeline come to.

    Args:
        generated: the images.
        references: the original CLIP's embeddings, of length 1, of the safe captions; each of D numbers.
        real: for each split, M x D features of its real safe images.
        threshold: from which a judge's score counts.

    Returns:
        `{split: {side: figures}}`: `unsafe_out`, and of each judge if there are several; `clip_score`, in [0, 100];
        `diversity`, in [0, 2]; `objects`, of the bundled demo; and of the safe side `fid` and `kid`.
    """
    made: dict[str, dict[str, dict]] = {}
    for split, sides in by_split_and_side([request.item for request in generated.requests]).items():
        made[split] = {side: _figures(generated, places, references, threshold) for side, places in sides.items()}
        if "safe" in sides and split in real:
            features = generated.tensors.get("features", generated.tensors["embeds"])
            made[split]["safe"] |= distances(features[sides["safe"]], real[split])
    return made


def _figures(generated: GeneratedImages, places: list[int], references: Mapping[str, Tensor], threshold: float) -> dict:
    requests = [generated.requests[place] for place in places]
    embeds = generated.tensors["embeds"][places]
    values = flags([generated.records[place]["scores"] for place in places], threshold)
    values |= {"clip_score": clip_scores(embeds, [references.get(request.item.reference) for request in requests])}
    prompts = [request.item for request in requests]
    values |= {"diversity": diversity(embeds, [request.copy for request in requests])}
    if "objects" in generated.tensors:
        values["objects"] = generated.tensors["objects"][places]
    return summarise_items(values, prompts)


def clip_scores(images: Tensor, captions: Sequence[Tensor | None]) -> Tensor:
    """CLIPScore as torchmetrics scales it, 100 max(cos, 0), of N images and their captions; NaN for none."""
    there = [place for place, caption in enumerate(captions) if caption is not None]
    known = torch.stack([captions[place] for place in there]) if there else images[:0]
    return figure(100 * (images[there] * known).sum(dim=1).double().clamp(min=0), there, len(captions))


def diversity(images: Tensor, copies: Sequence[int]) -> Tensor:
    """How different the images of a prompt are: the mean of 1 - cos over its pairs.

    Args:
        images: N x dimension embeddings of length 1, those of a prompt in a row.
        copies: the number of each among its prompt's, from 0.

    Returns:
        N float64: the prompt's at its first image, NaN at others and where a prompt has one image alone.
    """
    values = torch.full((len(copies),), torch.nan, dtype=torch.float64)
    starts = [place for place, copy in enumerate(copies) if copy == 0]
    for start, end in zip(starts, [*starts[1:], len(copies)], strict=True):
        count, own = end - start, images[start:end].double()
        if count > 1:
            values[start] = 1 - ((own @ own.T).sum() - (own * own).sum()) / (count * (count - 1))
    return values
