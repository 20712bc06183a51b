"""How far a safe CLIP moves what generators read of it: the states of tokens and patches."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..models.families import family_of
from ..objectives.hidden_states import relative_error
from .prompts import Item

BATCH = 64


@torch.inference_mode()
def state_drift(
    original: PreTrainedModel,
    safe: PreTrainedModel,
    processor: PreTrainedTokenizerBase | BaseImageProcessor,
    items: Sequence[Item],
    by_caption: bool,
) -> Tensor:
    """Of the captions of N items, or of their images.

    Args:
        original, safe: both on one device.
        processor: the generator's tokenizer, which may pad otherwise than the CLIP's; or an image processor.
        items: whose.
        by_caption: of captions, which are padded to the longest that the text encoder takes, as diffusion models
            require it; else of images.

    Returns:
        N float64 of at least 0, in shares of the states' length: 0 where nothing moved, 1 where all is lost. The mean
        over positions, and for captions over the layers that Stable Diffusion and SDXL read.
    """
    values = []
    for first in range(0, len(items), BATCH):
        some = items[first : first + BATCH]
        before, after = (_states(clip, processor, some, by_caption) for clip in (original, safe))
        pairs = zip(after, before, strict=True)
        values.append(torch.stack([relative_error(*pair) for pair in pairs]).mean(0).double().cpu())
    return torch.cat(values)


def _states(
    clip: PreTrainedModel,
    processor: PreTrainedTokenizerBase | BaseImageProcessor,
    items: Sequence[Item],
    by_caption: bool,
) -> tuple[Tensor, ...]:
    family = family_of(clip)
    if by_caption:
        length = family.max_length(clip.config)
        tokens = processor(
            [item.prompt for item in items],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        read = family.text.of(clip)(input_ids=tokens["input_ids"].to(clip.device), output_hidden_states=True)
        return family.text.states(read)
    pixels = processor([item.image.open() for item in items], return_tensors="pt")["pixel_values"]
    read = family.image_tower.of(clip)(pixel_values=pixels.to(clip.device), output_hidden_states=True)
    return family.image_tower.states(read)
