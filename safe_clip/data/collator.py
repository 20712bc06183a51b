"""Rows to tensors."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ProcessorMixin

from ..errors import UserError
from ..items import Layout
from ..store.fingerprints import content_id, processor_settings, short_digest
from .beginnings import beginnings
from .items import CAPTION_COLUMNS, IMAGE_COLUMNS, ITEM_COLUMNS
from .pixels import from_levels


def check_sees(processor: ProcessorMixin) -> None:
    """Raises `UserError` where there are images, and a processor is that of a text encoder alone."""
    if processor.image_processor is None:
        raise UserError(
            "the model is a text encoder alone, which sees no images: leave them out with "
            """--column_mapping '{"safe_image": null, "unsafe_image": null}', in Python with rows.select_columns; of """
            "safe-clip eval leave out the --tasks unsafe_gallery and zero_shot too, if there are any."
        )


@dataclass
class QuadrupletCollator:
    """Turns quadruplets, of which any item may be missing, into the tensors of one batch of B rows.

    Captions are padded to the longest of the batch, not to the text encoder's maximum: CLIP's
    attention is causal and its pooled token precedes the padding, so the embedding is the same.
    For models whose text encoder also attends to padding, set `multiple` to `max_length`.

    Args:
        processor: the model's processor.
        max_length: tokens at which captions are cut, the end token kept.
        multiple: lengths are made multiples of this (or `max_length`), so that there are few of them.

    Returns:
        A dictionary of `row` (B row indices, if all rows have one), `layout` (the `Layout` of the batch), `input_ids`
        and `attention_mask` (T x length) of the T captions of the batch, safe ones first, and `pixel_values`
        (P x 3 x height x width) of the P images, safe ones first. Tensors of captions or images are left out if there
        are none.
    """

    processor: ProcessorMixin
    max_length: int
    multiple: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        if all("row" in row for row in rows):
            batch["row"] = torch.tensor([row["row"] for row in rows])
        present = np.array([[row.get(column) is not None for column in ITEM_COLUMNS] for row in rows])
        labelled = (
            np.array([bool(row.get(name)) for row in rows], dtype=bool) for name in ("relabelled", "half_unsafe")
        )
        batch["layout"] = Layout(present, *labelled)
        captions, images = (
            [row[column] for column in columns for row in rows if row.get(column) is not None]
            for columns in (CAPTION_COLUMNS, IMAGE_COLUMNS)
        )
        if captions:
            batch |= self._tokens(captions)
        if images:
            batch["pixel_values"] = self._pixels(images)
        return batch

    @property
    def fingerprint(self) -> str:
        """Changes with what it makes of rows, but for padding, which changes no embedding."""
        return short_digest(json.dumps([processor_settings(self.processor), self.max_length]))

    def _tokens(self, captions: list[str]) -> dict[str, Tensor]:
        tokenizer = self.processor.tokenizer
        tokens = tokenizer(
            beginnings(captions, tokenizer, self.max_length),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        longest = tokens["input_ids"].shape[1]
        more = min(-(-longest // self.multiple) * self.multiple, self.max_length) - longest
        fillers = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        sides = (more, 0) if tokenizer.padding_side == "left" else (0, more)
        return {name: F.pad(tokens[name], sides, value=filler) for name, filler in fillers.items()}

    def _pixels(self, images: list[Any]) -> Tensor:
        check_sees(self.processor)
        if isinstance(images[0], Tensor):
            return from_levels(images, self.processor.image_processor)
        return self.processor.image_processor(images, return_tensors="pt")["pixel_values"]


def model_inputs(batch: dict[str, Any], safe_only: bool = False) -> dict[str, Tensor]:
    """What a CLIP's `forward` takes, for the items of a batch that there are, or for those of its safe side.

    No mask: a CLIP's captions are padded on the right, after the token that is pooled, which sees only what is before
    it; and without one, attention is the fast, causal kind. SigLIP and its like see the padding, as they always did.
    """
    captions, images = batch["layout"].present.sum(axis=0)[::2].tolist() if safe_only else (None, None)
    ends = {"input_ids": captions, "pixel_values": images}
    inputs = {name: batch[name][:end] for name, end in ends.items() if name in batch}
    return {name: tensor for name, tensor in inputs.items() if len(tensor)}


def item_ids(batch: dict[str, Any]) -> Tensor:
    """Content ids of the items of a batch, equal for identical items: B x 4 int64, in the order of `ITEMS`, 0 for a
    missing item. Captions are compared after truncation."""
    there = torch.from_numpy(batch["layout"].present.T)
    ids = torch.zeros(there.shape, dtype=torch.int64)
    captions = [
        content_id(tokens[mask.bool()].cpu().numpy().tobytes())
        for tokens, mask in zip(batch.get("input_ids", ()), batch.get("attention_mask", ()), strict=True)
    ]
    images = [content_id(pixels.float().cpu().numpy().tobytes()) for pixels in batch.get("pixel_values", ())]
    ids[there] = torch.tensor(captions + images, dtype=torch.int64)
    return ids.T.contiguous()
