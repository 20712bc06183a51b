"""Preparing a CLIP for training."""

from typing import cast

import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from .families import CLIP, MODEL_NAMES, family_of
from .soundness import check_config
from .weights import broken_weights


def prepare_model(model: PreTrainedModel | PeftModel) -> tuple[PreTrainedModel | PeftModel, torch.dtype]:
    """Checks a model that was made elsewhere, and takes it to float32, in which it is trained.

    Args:
        model: it is changed; compiled, or wrapped for several devices, it is unwrapped.

    Returns:
        The model, and the type that its weights had.

    Raises:
        UserError: it is not a CLIP, or not one with all of its weights and nothing else.
    """
    if isinstance(model, nn.Module):
        model = cast(PreTrainedModel | PeftModel, extract_model_from_parallel(model, keep_torch_compile=False))
    clip = cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model
    family = family_of(clip)
    if clip is model and any(isinstance(module, BaseTunerLayer) for module in clip.modules()):
        raise UserError(
            f"the model is a {MODEL_NAMES} with an adapter in its layers: pass the PeftModel of it, or what its "
            "`merge_and_unload()` gives."
        )
    if isinstance(model, PeftModel) and len(model.active_adapters) != 1:
        raise UserError(
            f"the model has {len(model.active_adapters)} active adapters ({', '.join(model.active_adapters)}), of "
            "which one is trained and saved: merge the others into the model, or choose one with `set_adapter(name)`."
        )
    if getattr(clip.config, "quantization_config", None) or getattr(clip, "is_quantized", False):
        raise UserError("the model is quantised, and rounded weights cannot be trained: load it without quantisation.")
    empty = [name for name, weight in model.named_parameters() if weight.is_meta]
    if empty:
        raise UserError(
            f"{len(empty)} tensors of the model have no values (device 'meta'), such as {empty[0]}: load it with "
            "`from_pretrained` and without `device_map`."
        )
    if broken := broken_weights(clip):
        raise UserError(f"the model's {broken}. Whatever made it went wrong; take one from before.")
    check_config(clip.config)
    family.fix_projection_dim(clip)
    family.sync_eos_token(clip)  # what is saved says where captions are read
    types = {weight.dtype for name, weight in clip.named_parameters() if "lora_" not in name}
    return model.float(), types.pop() if len(types) == 1 else torch.float32


def check_adapters(model: PeftModel) -> None:
    """Raises `UserError` for an adapter on a weight that torch reads past it, so that it would get no gradient."""
    for name, module in model.named_modules():
        whole = name.endswith(".base_layer")  # adapted as one, which peft does in a way of its own
        if isinstance(module, nn.MultiheadAttention) and isinstance(module.out_proj, BaseTunerLayer) and not whole:
            place = f"{name}.out_proj".removeprefix("base_model.model.")
            raise UserError(
                f"the adapter is also in {place}, whose weight torch's MultiheadAttention takes past it, so that it "
                "would never be trained: name that in exclude_modules of its configuration, as "
                "lora_config(model=model) does."
            )


def lora_config(
    r: int = 16, lora_alpha: float = 32, lora_dropout: float = 0.0, model: PreTrainedModel | None = None
) -> LoraConfig:
    """LoRA on the modules of both encoders that the paper's script adapts (with rank 16, alpha 1, dropout 0.1).

    Args:
        r: rank.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        lora_dropout: share of adapter inputs dropped in training.
        model: whose modules are meant; a CLIP's by default.
    """
    family = CLIP if model is None else family_of(model)
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,  # pyrefly: ignore [bad-argument-type]: peft takes any number, and divides it
        lora_dropout=lora_dropout,
        target_modules=list(family.lora_targets),
        exclude_modules=list(family.lora_excluded) or None,
    )


def train_towers(model: nn.Module, text: bool, image: bool) -> None:
    """Holds the weights of a tower still that has nothing to be trained on.

    Args:
        model: a model of a known family, or a `PeftModel` of one.
        text, image: whether there are captions, and images.
    """
    family = family_of(model)
    trained = {"text": text, "image": image}
    held = [tower for name, tower in family.towers.items() if not trained[name]]
    for name, parameter in model.named_parameters():
        if any(tower.holds(name) for tower in held):
            parameter.requires_grad_(False)


def accept_sharding(model: PreTrainedModel) -> None:
    """Makes a model one that FSDP2 and DeepSpeed can cut into shards.

    They take no weight that is a single number, so the logit scale and bias, which are not trained, become buffers of
    the same names; and accelerate asks for input embeddings, of which a CLIP has none that are its own.
    """
    for name in family_of(model).scalars:
        if name in model._parameters:
            value = getattr(model, name).detach()
            delattr(model, name)
            model.register_buffer(name, value)
    # pyrefly: ignore [bad-assignment]: transformers declares that there are some
    model.get_input_embeddings = _no_embeddings


def _no_embeddings() -> None:
    return None
