"""Whether a CLIP is one that can be used: the values of its configuration, and what it makes of inputs."""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.activations import ACT2FN

from ..errors import UserError
from .families import family_of
from .tokens import two_captions, unset_padding

ALIKE = 1e-5  # 1 less the cosine of two embeddings of different inputs; of CLIPs, trained or not, it is over 1e-2


def check_config(config: PreTrainedConfig) -> None:
    """Checks a configuration's values, and has the model answer in what this package reads, not in tuples.

    Raises:
        UserError: a value is none that a CLIP can have; the message names the first.
    """
    family = family_of(config)
    config.return_dict = True
    for name in family.positive_ints:
        value = getattr(config, name)
        _require(isinstance(value, int) and value > 0, name, config, "over 0")
    for tower in family.towers.values():
        part, values = tower.sub_config or "", tower.config_of(config)
        values.return_dict = True
        for name in tower.positive_ints:
            value = getattr(values, name)
            _require(isinstance(value, int) and value > 0, name, values, "a whole number over 0", part)
        heads = values.num_attention_heads
        divides = values.hidden_size % heads == 0
        _require(divides, "num_attention_heads", values, f"a divisor of hidden_size {values.hidden_size}", part)
        _require(values.hidden_act in ACT2FN, "hidden_act", values, "an activation of transformers", part)
        _require(0 <= values.attention_dropout < 1, "attention_dropout", values, "from 0 to below 1", part)
        _require(0 < values.layer_norm_eps < 1, "layer_norm_eps", values, "over 0 and below 1", part)
    if wrong := family.check(config):
        raise UserError(f"config.json has {wrong}.")
    for name in family.log_settings:
        value = getattr(config, name)
        _require(math.isfinite(value) and abs(value) <= 10, name, config, "a logarithm, 4.6 at most")


def _require(holds: bool, name: str, values: object, allowed: str, part: str = "") -> None:
    if not holds:
        place = f"{part}.{name}" if part else name
        raise UserError(f"config.json has {place} {getattr(values, name)!r}, which must be {allowed}.")


@torch.no_grad()
def check_embeddings(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Embeds two captions that differ, and two images. Nothing is drawn from torch's generators.

    Raises:
        UserError: embeddings are not finite, or alike, so that there is nothing to compare with.
    """
    tokenizer = processor.tokenizer
    # One by one, so that captions need no padding but what the model is used to.
    family = family_of(model)
    captions = [family.tokenize(tokenizer, [each], model.config) for each in two_captions(tokenizer)]
    unset_padding(tokenizer)
    training = model.training
    model.eval()
    try:
        made = {
            "captions": torch.cat(
                [
                    family.text_features(
                        model, **{name: ids.to(model.device) for name, ids in each.items()}
                    ).pooler_output
                    for each in captions
                ]
            ),
        }
        if family.image is not None:
            pixels = processor.image_processor(_two_images(), return_tensors="pt")["pixel_values"]
            made["images"] = model.get_image_features(pixel_values=pixels.to(model.device, model.dtype)).pooler_output
    finally:
        model.train(training)
    for kind, embeddings in made.items():
        first, second = embeddings.double()
        if not torch.isfinite(embeddings).all():
            fault = f"its embeddings of {kind} are not finite numbers"
        elif not embeddings.any(dim=1).all():
            fault = f"it embeds {kind} as zeros"
        elif not 1 - cosine_similarity(first, second, dim=0) >= ALIKE:
            fault = f"it embeds different {kind} alike"
        else:
            continue
        raise UserError(
            f"the original itself gives no usable embeddings: {fault}. Its weights are damaged, or were never trained: "
            "download it anew, or take another one."
        )


def _two_images() -> list[Image.Image]:
    """Noise of coarse squares and a ramp."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None], (64, 1, 3))
    return [Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST), Image.fromarray(ramp)]
