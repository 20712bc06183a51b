"""Rows to tensors."""

from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from transformers import CLIPProcessor

from .quadruplets import LABEL_COLUMNS

SIDES = ("safe", "unsafe")
MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values")


@dataclass
class QuadrupletCollator:
    """Turns quadruplets into the tensors of one batch of B rows.

    Captions are padded to the longest of the batch, not to the text encoder's maximum: CLIP's
    attention is causal and its pooled token precedes the padding, so the embedding is the same.

    Args:
        processor: the model's `CLIPProcessor`.
        max_length: tokens at which captions are cut, the end token kept.

    Returns:
        `safe_input_ids`, `unsafe_input_ids`, `safe_attention_mask`, `unsafe_attention_mask`
        (B x length, one length for both sides) and `safe_pixel_values`, `unsafe_pixel_values`
        (B x 3 x height x width); and of the rows that have them, `row` (B integers) and the labels
        `unsafe_caption_is_safe`, `unsafe_image_is_safe` (B booleans).
    """

    processor: CLIPProcessor
    max_length: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        captions = [row[f"{side}_caption"] for side in SIDES for row in rows]
        pictures = [row[f"{side}_image"] for side in SIDES for row in rows]
        text = self.processor.tokenizer(
            captions, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        pixels = self.processor.image_processor(pictures, return_tensors="pt")
        batch = {**text, **pixels}
        sides = {
            f"{side}_{name}": half
            for name, tensor in batch.items()
            for side, half in zip(SIDES, tensor.chunk(2), strict=True)
        }
        known = [column for column in ("row", *LABEL_COLUMNS) if all(column in row for row in rows)]
        return sides | {column: torch.tensor([row[column] for row in rows]) for column in known}


def model_inputs(batch: dict[str, torch.Tensor], sides: tuple[str, ...] = SIDES) -> dict[str, torch.Tensor]:
    """What a CLIP's `forward` takes, for the items of a batch of B rows, side after side: 2B for both sides."""
    return {name: torch.cat([batch[f"{side}_{name}"] for side in sides]) for name in MODEL_INPUTS}


def item_ids(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Numbers that are equal where the items of a batch are: B x 4 int64, in the order safe caption, unsafe caption,
    safe picture, unsafe picture. Captions that are the same once cut count as the same."""
    columns = [
        [
            content_id(tokens[mask.bool()].cpu().numpy().tobytes())
            for tokens, mask in zip(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"], strict=True)
        ]
        for side in ("safe", "unsafe")
    ] + [
        [content_id(pixels.float().cpu().numpy().tobytes()) for pixels in batch[f"{side}_pixel_values"]]
        for side in ("safe", "unsafe")
    ]
    return torch.tensor(columns).T.contiguous()


def content_id(*contents: bytes) -> int:
    """A signed 64-bit number that is the same for the same content."""
    digest = xxhash.xxh3_64()
    for content in contents:
        digest.update(content)
    return int.from_bytes(digest.digest(), "little", signed=True)
