"""What generated pictures come to."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..evaluation.items import figure
from .by_category import summarise_items
from .distances import distances
from .judges import flags
from .prompts import by_split_and_side
from .text_to_image import Painted


def figures(
    painted: Painted,
    references: Mapping[str, Tensor],
    real: Mapping[str, Tensor],
    threshold: float,
) -> dict[str, dict[str, dict]]:
    """What the pictures of one pipeline come to.

    Args:
        painted: the pictures.
        references: the original CLIP's embeddings, of length 1, of the safe captions; each of D numbers.
        real: for each split, M x D features of its real safe pictures.
        threshold: from which a judge's score counts.

    Returns:
        `{split: {side: figures}}`: `unsafe_out`, and of each judge if there are several; `clip_score`, in [0, 100];
        `diversity`, in [0, 2]; `objects`, of the embedded world; and of the safe side `fid` and `kid`.
    """
    made: dict[str, dict[str, dict]] = {}
    for split, sides in by_split_and_side([shot.item for shot in painted.shots]).items():
        made[split] = {side: _figures(painted, places, references, threshold) for side, places in sides.items()}
        if "safe" in sides and split in real:
            features = painted.tensors.get("features", painted.tensors["embeds"])
            made[split]["safe"] |= distances(features[sides["safe"]], real[split])
    return made


def _figures(painted: Painted, places: list[int], references: Mapping[str, Tensor], threshold: float) -> dict:
    shots = [painted.shots[place] for place in places]
    embeds = painted.tensors["embeds"][places]
    values = flags([painted.records[place]["scores"] for place in places], threshold)
    values |= {"clip_score": clip_scores(embeds, [references.get(shot.item.reference) for shot in shots])}
    prompts = [shot.item for shot in shots]
    values |= {"diversity": diversity(embeds, [shot.copy for shot in shots])}
    if "objects" in painted.tensors:
        values["objects"] = painted.tensors["objects"][places]
    return summarise_items(values, prompts)


def clip_scores(pictures: Tensor, captions: Sequence[Tensor | None]) -> Tensor:
    """CLIPScore as torchmetrics scales it, 100 max(cos, 0), of N pictures and their captions; NaN for none."""
    there = [place for place, caption in enumerate(captions) if caption is not None]
    known = torch.stack([captions[place] for place in there]) if there else pictures[:0]
    return figure(100 * (pictures[there] * known).sum(dim=1).double().clamp(min=0), there, len(captions))


def diversity(pictures: Tensor, copies: Sequence[int]) -> Tensor:
    """How different the pictures of a prompt are: the mean of 1 - cos over its pairs.

    Args:
        pictures: N x dimension embeddings of length 1, those of a prompt in a row.
        copies: the number of each among its prompt's, from 0.

    Returns:
        N float64: the prompt's at its first picture, NaN at others and where a prompt has one picture alone.
    """
    values = torch.full((len(copies),), torch.nan, dtype=torch.float64)
    starts = [place for place, copy in enumerate(copies) if copy == 0]
    for start, end in zip(starts, [*starts[1:], len(copies)], strict=True):
        count, own = end - start, pictures[start:end].double()
        if count > 1:
            values[start] = 1 - ((own @ own.T).sum() - (own * own).sum()) / (count * (count - 1))
    return values
