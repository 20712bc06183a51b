"""A CLIP as open_clip stores it: its configuration and the names of its weights, there and back."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, MetaClip2Config, MetaClip2Model

from ..errors import UserError
from .open_clip_inputs import CONFIG_FILE, OPENAI_VOCABULARY, has_openai_tokens, preprocess_cfg
from .tokens import LARGEST

WEIGHTS_FILE = "open_clip_model.safetensors"
OPENAI_END = OPENAI_VOCABULARY - 1
EPSILON = 1e-5  # of open_clip's layer norms, unless a configuration says otherwise
LAYERS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# What else a configuration may say, of the architecture that a CLIPModel has; all other settings are of another one.
TOWER = {"layers", "width", "mlp_ratio", "norm_kwargs"}
KNOWN = {
    "model_cfg": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "init_logit_scale"},
    "vision_cfg": TOWER | {"image_size", "patch_size", "head_width", "patch_dropout"},
    "text_cfg": TOWER | {"context_length", "vocab_size", "heads", "pool_type", "eos_id", "pad_id"},
}
KNOWN["text_cfg"] |= {"hf_tokenizer_name", "tokenizer_kwargs"}  # which the folder's own tokenizer replaces
DEFAULTS = {"pool_type": "tok", "pos_embed_type": "learnable", "proj_type": "linear"}


class Place(NamedTuple):
    """What a tensor of open_clip's is made of: tensors of a `CLIPModel` one after another, perhaps transposed."""

    parts: tuple[str, ...]
    transposed: bool = False


def places(config: CLIPConfig | MetaClip2Config) -> dict[str, Place]:
    """For each of open_clip's names, the tensors that it stands for."""
    found = {
        "logit_scale": Place(("logit_scale",)),
        "text_projection": Place(("text_projection.weight",), transposed=True),
        "token_embedding.weight": Place(("text_model.embeddings.token_embedding.weight",)),
        "positional_embedding": Place(("text_model.embeddings.position_embedding.weight",)),
        "visual.proj": Place(("visual_projection.weight",), transposed=True),
        "visual.class_embedding": Place(("vision_model.embeddings.class_embedding",)),
        "visual.positional_embedding": Place(("vision_model.embeddings.position_embedding.weight",)),
        "visual.conv1.weight": Place(("vision_model.embeddings.patch_embedding.weight",)),
    }
    layers = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",  # sic
        "visual.ln_post": "vision_model.post_layernorm",
    }
    for tower, prefix in (("text", ""), ("vision", "visual.")):
        for number in range(getattr(config, f"{tower}_config").num_hidden_layers):
            ours, theirs = f"{tower}_model.encoder.layers.{number}", f"{prefix}transformer.resblocks.{number}"
            layers |= {f"{theirs}.{name}": f"{ours}.{other}" for name, other in LAYERS.items()}
            for kind in ("weight", "bias"):
                parts = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
                found[f"{theirs}.attn.in_proj_{kind}"] = Place(parts)
    for theirs, ours in layers.items():
        found |= {f"{theirs}.{kind}": Place((f"{ours}.{kind}",)) for kind in ("weight", "bias")}
    return found


def to_open_clip(model: CLIPModel | MetaClip2Model) -> dict[str, Tensor]:
    """The weights under open_clip's names."""
    state, weights = model.state_dict(), {}
    for name, place in places(model.config).items():
        whole = torch.cat([state[part] for part in place.parts]) if len(place.parts) > 1 else state[place.parts[0]]
        weights[name] = (whole.T if place.transposed else whole).contiguous()
    return weights


def from_open_clip(weights: dict[str, Tensor], config: CLIPConfig | MetaClip2Config) -> dict[str, Tensor]:
    """The weights under a `CLIPModel`'s names: what `to_open_clip` was given."""
    state = {}
    for name, place in places(config).items():
        whole = weights[name].T if place.transposed else weights[name]
        chunks = whole.chunk(len(place.parts)) if len(place.parts) > 1 else (whole,)
        state |= {part: chunk.contiguous() for part, chunk in zip(place.parts, chunks, strict=True)}
    return state


def open_clip_config(model: CLIPModel | MetaClip2Model, processor: CLIPProcessor) -> dict:
    """The `open_clip_config.json` of a model.

    Raises:
        UserError: open_clip has no such architecture, or prepares images otherwise.
    """
    text, vision = model.config.text_config, model.config.vision_config
    activations = {text.hidden_act, vision.hidden_act}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise UserError(f"open_clip knows quick_gelu and gelu, for both encoders alike, not {sorted(activations)}.")
    # transformers reads the caption's last word at the first end token, in old configurations at the largest. Where
    # they are the same token it is the latter that is written, which older versions of open_clip know too.
    largest = max(processor.tokenizer.get_vocab().values())
    pooling = {"pool_type": "argmax"}
    if text.eos_token_id != largest and (text.eos_token_id != LARGEST or isinstance(model, MetaClip2Model)):
        pooling = {"pool_type": "eos", "eos_id": text.eos_token_id}
    if text.vocab_size != OPENAI_VOCABULARY or not has_openai_tokens(processor.tokenizer):
        pooling["hf_tokenizer_name"] = "local"  # open_clip reads the folder's own under "local-dir:"
    return {
        "model_cfg": {
            "embed_dim": model.config.projection_dim,
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
                **_norm(vision.layer_norm_eps),
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "layers": text.num_hidden_layers,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                **_norm(text.layer_norm_eps),
                **pooling,
            },
        },
        "preprocess_cfg": preprocess_cfg(processor.image_processor, vision.image_size),
    }


def read_config(settings: dict[str, Any]) -> CLIPConfig | MetaClip2Config:
    """The configuration of the model that an `open_clip_config.json` describes: what `open_clip_config` was given.

    Raises:
        UserError: it describes another architecture, or does not say which.
    """
    try:
        model = settings["model_cfg"]
        vision, text = model["vision_cfg"], model["text_cfg"]
        for place, values in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
            for name, value in values.items():
                if value and name not in KNOWN[place] and value != DEFAULTS.get(name):
                    raise UserError(f"its {CONFIG_FILE} says {name} {value!r} in {place}, which a CLIPModel has not")
        pooling = text.get("pool_type", "argmax")
        if pooling not in ("argmax", "eos"):
            raise UserError(f"its {CONFIG_FILE} says pool_type {pooling!r} in text_cfg, which a CLIPModel has not")
        vocabulary = text.get("vocab_size", OPENAI_VOCABULARY)
        openai = vocabulary == OPENAI_VOCABULARY and not text.get("hf_tokenizer_name")
        end = (OPENAI_END if openai else LARGEST) if pooling == "argmax" else text.get("eos_id", 2)
        # To a CLIPModel, LARGEST as its end token says something else.
        kind = MetaClip2Config if pooling == "eos" and end == LARGEST else CLIPConfig
        size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
        return kind(
            projection_dim=model["embed_dim"],
            text_config={
                **_tower(text, model, width=512),
                "num_attention_heads": text.get("heads", 8),
                "max_position_embeddings": text.get("context_length", 77),
                "vocab_size": vocabulary,
                "eos_token_id": end,
            },
            vision_config={
                **_tower(vision, model, width=768),
                "num_attention_heads": vision.get("width", 768) // vision.get("head_width", 64),
                "image_size": size[0] if isinstance(size, list) and len(set(size)) == 1 else size,
                "patch_size": patch,
            },
        )
    except UserError:
        raise
    except Exception as error:  # of a part that is missing or of another type: each its own
        raise UserError(f"its {CONFIG_FILE} does not describe a CLIP ({type(error).__name__}: {error})") from error


def _tower(settings: dict[str, Any], model: dict[str, Any], width: int) -> dict[str, Any]:
    width = settings.get("width", width)
    return {
        "hidden_size": width,
        "intermediate_size": round(width * settings.get("mlp_ratio", 4.0)),
        "num_hidden_layers": settings.get("layers", 12),
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "layer_norm_eps": (settings.get("norm_kwargs") or {}).get("eps", EPSILON),
        "projection_dim": model["embed_dim"],
    }


def _norm(epsilon: float) -> dict[str, Any]:
    return {} if epsilon == EPSILON else {"norm_kwargs": {"eps": epsilon}}
