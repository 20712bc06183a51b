"""The bundled base model, which tools/pretrain.py made."""

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModel

BASE_DIR = Path(__file__).parent / "base"


def text_tower() -> CLIPTextModel:
    """The bundled demo model's text encoder, in float32 and evaluation mode."""
    base = CLIPModel.from_pretrained(BASE_DIR, dtype=torch.float32)
    return _filled(CLIPTextModel(base.config.text_config), "text_model", base)


def vision_tower() -> CLIPVisionModel:
    """The bundled demo model's vision tower, in float32 and evaluation mode."""
    base = CLIPModel.from_pretrained(BASE_DIR, dtype=torch.float32)
    return _filled(CLIPVisionModel(base.config.vision_config), "vision_model", base)


def _filled(tower: nn.Module, name: str, base: CLIPModel) -> nn.Module:
    # Not by `from_pretrained`, which reports every weight of the other tower.
    getattr(tower, name, tower).load_state_dict(getattr(base, name).state_dict())
    return tower.eval()
