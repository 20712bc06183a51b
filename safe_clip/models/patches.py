"""The same arithmetic at less cost: what a CLIP is told before it is trained.

What is here was kept because `benchmarks/step.py` says that it pays; docs/scaling.md has the figures.
"""

import contextlib
from collections.abc import Iterator
from types import MethodType

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

STEEPNESS = 1.702


class QuickGELU(nn.Module):
    """OpenAI's `x * sigmoid(1.702 x)`, by the kernel of SiLU, which needs fewer passes over memory."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.silu(STEEPNESS * inputs) / STEEPNESS


def make_fast(model: nn.Module, device: torch.device) -> None:
    """Changes how a model computes, in place, and not what; nothing of this is saved.

    Args:
        model: a `CLIPModel`, or a `PeftModel` of one.
        device: where it is trained.
    """
    for module in list(model.modules()):
        if isinstance(getattr(module, "activation_fn", None), QuickGELUActivation):
            module.activation_fn = QuickGELU()
        if isinstance(module, BaseTunerLayer) and len({weight.dtype for weight in module.parameters()}) == 1:
            # Else inputs go to the adapter's float32 and, under autocast, back again.
            module.cast_input_dtype_enabled = False
            if type(module) is Linear:
                module.forward = MethodType(_lora_forward, module)
    if device.type == "cpu":
        # The backward of the fused kernel takes several times as long there as that of plain matrix products.
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        base.set_attn_implementation("eager")


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
def casts_kept(model: nn.Module) -> Iterator[None]:
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
