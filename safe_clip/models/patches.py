"""The same arithmetic at less cost: what a model is told before it is trained.

What is here was kept because `benchmarks/step.py` says that it pays; docs/scaling.md has the figures.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel
from transformers.activations import QuickGELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .families import family_of
from .family import Family

STEEPNESS = 1.702
TRAINERS = ("bos_token_id", "eos_token_id", "pad_token_id")  # settings that the Trainer takes from the tokenizer


class QuickGELU(nn.Module):
    """OpenAI's `x * sigmoid(1.702 x)`, by the kernel of SiLU, which needs fewer passes over memory."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.silu(STEEPNESS * inputs) / STEEPNESS


class Patches:
    """What a model computes with while this is entered; on leaving it has its own ways again. It may be nested.

    What others put in the same place meanwhile, such as accelerate's autocast around `forward`, leaves with it, and is
    there again when it is entered again.

    Args:
        *changes: the object, the name of its attribute, and the value to be there, or `MISSING` for what it has.
        attention: a model whose layers are to attend in another way.
        implementation: that way, as for `set_attn_implementation`.
    """

    MISSING = object()

    def __init__(
        self,
        *changes: tuple[Any, str, Any],
        attention: PreTrainedModel | None = None,
        implementation: str | dict[str, str] = "eager",
    ):
        self._changes, self._attention, self._implementation = list(changes), attention, implementation
        self._depth = 0

    def __enter__(self) -> "Patches":
        self._depth += 1
        if self._depth == 1:
            self._swap()
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._swap()

    def _swap(self) -> None:
        for index, (owner, name, value) in enumerate(self._changes):
            own = vars(owner).get(name, getattr(owner, "_modules", {}).get(name, self.MISSING))
            if value is not self.MISSING:
                setattr(owner, name, value)
            elif own is not self.MISSING:
                delattr(owner, name)
            self._changes[index] = owner, name, own
        if self._attention is not None:
            config = self._attention.config
            own = {"": config._attn_implementation}
            own |= {part: getattr(config, part)._attn_implementation for part in config.sub_configs}
            self._attention.set_attn_implementation(self._implementation)
            self._implementation = own


def accept_one_modality(model: PreTrainedModel) -> Patches:
    """Lets a model's `forward` take captions alone, or images alone, of which it then gives the embeddings.

    The other tower is not run. With both, `forward` is what it was.

    Args:
        model: of a known family, without what wraps it.
    """
    return Patches((model, "forward", MethodType(_forward(family_of(model)), model)))


@functools.cache
def _forward(family: Family) -> Callable[..., ModelOutput]:
    def forward(
        self: PreTrainedModel,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        if pixel_values is None:
            features = family.text_features(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            _keep_last(features)
            return family.output(text_embeds=_normalized(features), text_model_output=features)
        if input_ids is None:
            features = self.get_image_features(pixel_values=pixel_values, **kwargs)
            _keep_last(features)
            return family.output(image_embeds=_normalized(features), vision_model_output=features)
        output = family.model.forward(
            self, input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, **kwargs
        )
        for part in (output.text_model_output, output.vision_model_output):
            _keep_last(part)
        return output

    return forward


def _normalized(features: BaseModelOutputWithPooling) -> Tensor:
    """Embeddings of length 1, to the precision of float32."""
    return normalize(features.pooler_output.float(), dim=-1)


def _keep_last(output: BaseModelOutputWithPooling) -> None:
    """Lets go of the states of all layers but the last two, of which others would make copies in float32."""
    if output.hidden_states is not None:
        output.hidden_states = output.hidden_states[-2:]


def training_patches(model: nn.Module, device: torch.device) -> Patches:
    """How a model computes while it is trained: faster, and with one modality alone too; what it computes stays.

    Args:
        model: a model of a known family, or a `PeftModel` of one.
        device: where it is trained.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    changes: list[tuple[Any, str, Any]] = [(base, "forward", MethodType(_forward(family_of(base)), base))]
    # Where mixed precision is put around a model, there are these two.
    changes += [(model, "forward", Patches.MISSING)] if model is not base else []
    changes += [(model, "_original_forward", Patches.MISSING)]
    # With which a text encoder does nothing, and which are to be in the end what they were.
    text = family_of(base).text.config_of(base.config)
    changes += [(text, name, vars(text).get(name, Patches.MISSING)) for name in TRAINERS]
    for module in model.modules():
        if isinstance(getattr(module, "activation_fn", None), QuickGELUActivation):
            changes.append((module, "activation_fn", QuickGELU()))
        if isinstance(module, BaseTunerLayer) and len({weight.dtype for weight in module.parameters()}) == 1:
            # Else inputs go to the adapter's float32 and, under autocast, back again.
            changes.append((module, "cast_input_dtype_enabled", False))
            if type(module) is Linear:
                changes.append((module, "forward", MethodType(_lora_forward, module)))
    # The backward of the fused kernel takes several times as long on a CPU as that of plain matrix products.
    return Patches(*changes, attention=base if device.type == "cpu" else None)


def _lora_forward(self: Linear, x: Tensor, *args, **kwargs) -> Tensor:
    """That of PEFT's plain LoRA; the update is scaled while it is narrow, and added by the product that makes it."""
    name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
    plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
    if self.disable_adapters or self.merged or not plain or args or kwargs:
        return Linear.forward(self, x, *args, **kwargs)
    result = self.base_layer(x)
    narrow = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
    return torch.addmm(result.flatten(0, -2), narrow.flatten(0, -2), self.lora_B[name].weight.T).view_as(result)


@contextlib.contextmanager
def cached_casts(model: nn.Module) -> Iterator[None]:
    """While this lasts, weights that are not trained are cast to the type of autocast once, and not at every step.

    Takes half of their memory more. They must not be changed meanwhile, nor cut into shards.
    """
    frozen = [module for module in model.modules() if type(module) is nn.Linear and not module.weight.requires_grad]
    frozen = [module for module in frozen if "forward" not in vars(module)]  # what others made of it is theirs
    for module in frozen:
        module.forward = MethodType(_frozen_linear, module)
    try:
        yield
    finally:
        for module in frozen:
            del module.forward
            module.__dict__.pop("_cast", None)


def _frozen_linear(self: nn.Linear, x: Tensor) -> Tensor:
    if not torch.is_autocast_enabled(x.device.type):
        return F.linear(x, self.weight, self.bias)
    dtype = torch.get_autocast_dtype(x.device.type)
    kept = self.__dict__.get("_cast")
    if kept is None or kept[0].dtype != dtype or kept[0].device != x.device:
        with torch.inference_mode(False), torch.no_grad():  # for training, though others may come first
            bias = None if self.bias is None else self.bias.to(dtype)
            kept = self.__dict__["_cast"] = self.weight.to(dtype), bias
    return F.linear(x, *kept)
