"""The same arithmetic at less cost: what a CLIP is told before it is trained.

What is here was kept because `benchmarks/step.py` says that it pays; docs/scaling.md has the figures.
"""

import torch
import torch.nn.functional as F
from peft import PeftModel
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
        if isinstance(module, BaseTunerLayer):
            # Else inputs go to the adapter's float32 and, under autocast, back again.
            module.cast_input_dtype_enabled = False
    if device.type == "cpu":
        # The backward of the fused kernel takes several times as long there as that of plain matrix products.
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        base.set_attn_implementation("eager")
