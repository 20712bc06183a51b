"""A SigLIP as open_clip stores it, whose image encoders are timm's: its configuration and the names of its weights."""

import re
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel, SiglipProcessor

from ..errors import UserError
from .open_clip_inputs import CONFIG_FILE, preprocess_cfg

# Image encoders of timm: by their width, the size in their name, number of layers, heads, and width of hidden layers.
ENCODERS = {
    768: ("base", 12, 12, 3072),
    1024: ("large", 24, 16, 4096),
    1152: ("so400m", 27, 16, 4304),
    1536: ("giantopt", 40, 16, 6144),
}
# Pixels on each side of the images that there are of each, by the patches.
SIZES = {
    ("base", 16): (224, 256, 384, 512),
    ("base", 32): (256,),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
EPSILON, ACTIVATION = 1e-6, "gelu_pytorch_tanh"
LAYERS = {"layer_norm1": "norm1", "self_attn.out_proj": "attn.proj", "layer_norm2": "norm2"}
LAYERS |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
TEXT_LAYERS = {"layer_norm1": "ln_1", "self_attn.out_proj": "attn.out_proj", "layer_norm2": "ln_2"}
TEXT_LAYERS |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
PARTS = {
    "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
    "vision_model.post_layernorm": "visual.trunk.norm",
    "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
    "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
    "vision_model.head.mlp.fc1": "visual.trunk.attn_pool.mlp.fc1",
    "vision_model.head.mlp.fc2": "visual.trunk.attn_pool.mlp.fc2",
    "text_model.final_layer_norm": "text.ln_final",
    "text_model.head": "text.text_projection",
}
# By tower: open_clip's layers, in each of which queries, keys and values are one tensor, and the names of the rest.
TOWERS = {
    "vision": ("visual.trunk.blocks", "attn.qkv.", LAYERS),
    "text": ("text.transformer.resblocks", "attn.in_proj_", TEXT_LAYERS),
}
SINGLE = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
}
# Of the pooling it is the other way round: there queries are apart from keys and values.
POOLING, THEIR_POOLING = "vision_model.head.attention.in_proj_{}", "visual.trunk.attn_pool"
KINDS = ("weight", "bias")
LOCAL = "local"  # as the name of a tokenizer: open_clip reads the folder's own under "local-dir:"


def open_clip_config(model: SiglipModel, processor: SiglipProcessor) -> dict[str, Any]:
    """The `open_clip_config.json` of a model.

    Raises:
        UserError: open_clip has no such architecture, or prepares images otherwise.
    """
    for part in ("text_config", "vision_config"):
        values = getattr(model.config, part)
        if (values.hidden_act, values.layer_norm_eps) != (ACTIVATION, EPSILON):
            raise UserError(
                f"open_clip has a SigLIP with hidden_act {ACTIVATION} and layer_norm_eps {EPSILON:g} alone, and {part} "
                f"says {values.hidden_act} and {values.layer_norm_eps:g}."
            )
    size = model.config.vision_config.image_size
    return {"model_cfg": _model_cfg(model.config), "preprocess_cfg": preprocess_cfg(processor.image_processor, size)}


def _model_cfg(config: SiglipConfig) -> dict[str, Any]:
    """What open_clip is told of the architecture."""
    text, vision = config.text_config, config.vision_config
    return {
        "embed_dim": text.projection_size,
        "init_logit_bias": -10,  # replaced by the stored one; that there is one is what this says
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": _encoder(vision),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": LOCAL,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            # Of which open_clip takes the whole part of a product, that must not fall short.
            "mlp_ratio": (text.intermediate_size + 0.1) / text.hidden_size,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": EPSILON},
            "act_kwargs": {"approximate": "tanh"},
        },
    }


def read_config(settings: dict[str, Any]) -> SiglipConfig:
    """The configuration of the model that an `open_clip_config.json` describes: what `open_clip_config` was given.

    Raises:
        UserError: it describes another architecture, or makes tokens by another repository's tokenizer, as those that
            timm published do.
    """
    try:
        model = settings["model_cfg"]
        text, vision = model["text_cfg"], model["vision_cfg"]
        if text["hf_tokenizer_name"] != LOCAL:
            raise UserError(
                f"its {CONFIG_FILE} describes a SigLIP whose tokenizer lies elsewhere ({text['hf_tokenizer_name']}): "
                "name the same model in transformers' format, such as google/siglip2-base-patch16-224"
            )
        size, patch = re.fullmatch(r"vit_(\w+)_patch(\d+)_siglip_\d+", vision["timm_model_name"]).groups()
        width, layers, heads, hidden = next(
            (width, *shape) for width, (name, *shape) in ENCODERS.items() if name == size
        )
        config = SiglipConfig(
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": int(text["width"] * text["mlp_ratio"]),
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "max_position_embeddings": text["context_length"],
                "vocab_size": text["vocab_size"],
                "projection_size": model["embed_dim"],
                "hidden_act": ACTIVATION,
                "layer_norm_eps": EPSILON,
            },
            vision_config={
                "hidden_size": width,
                "intermediate_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "image_size": vision["image_size"],
                "patch_size": int(patch),
                "hidden_act": ACTIVATION,
                "layer_norm_eps": EPSILON,
            },
        )
        meant = _model_cfg(config)
    except UserError:
        raise
    except Exception as error:  # of a part that is missing or of another type: each its own
        raise UserError(f"its {CONFIG_FILE} does not describe a SigLIP ({type(error).__name__}: {error})") from error
    if model != meant:
        parts = ((model, meant), (vision, meant["vision_cfg"]), (text, meant["text_cfg"]))
        changed = [name for said, own in parts for name in own.keys() | said.keys() if said.get(name) != own.get(name)]
        names = ", ".join(sorted({*changed} - {"vision_cfg", "text_cfg"}))
        raise UserError(f"its {CONFIG_FILE} describes a SigLIP that a SiglipModel is not: {names}")
    return config


def _encoder(vision: Any) -> str:
    """The name of timm's image encoder of the same architecture; raises `UserError` where there is none."""
    size, *shape = ENCODERS.get(vision.hidden_size, (None,))
    ours = [vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size]
    if shape != ours or vision.image_size not in SIZES.get((size, vision.patch_size), ()):
        raise UserError(
            f"open_clip has no SigLIP whose image encoder has hidden_size {vision.hidden_size}, {ours[0]} layers, "
            f"{ours[1]} heads, intermediate_size {ours[2]}, patches of {vision.patch_size} and images of "
            f"{vision.image_size} pixels."
        )
    return f"vit_{size}_patch{vision.patch_size}_siglip_{vision.image_size}"


def _joined(config: SiglipConfig) -> dict[str, tuple[str, ...]]:
    """For open_clip's names of what it keeps in one tensor, ours of the parts."""
    found = {}
    for tower, (blocks, qkv, _) in TOWERS.items():
        for number in range(getattr(config, f"{tower}_config").num_hidden_layers):
            for kind in KINDS:
                parts = tuple(f"{tower}_model.encoder.layers.{number}.self_attn.{part}_proj.{kind}" for part in "qkv")
                found[f"{blocks}.{number}.{qkv}{kind}"] = parts
    return found


def _renamed(config: SiglipConfig) -> dict[str, str]:
    """For our names of the other tensors, open_clip's."""
    parts = dict(PARTS)
    for tower, (blocks, _, layers) in TOWERS.items():
        for number in range(getattr(config, f"{tower}_config").num_hidden_layers):
            ours, theirs = f"{tower}_model.encoder.layers.{number}", f"{blocks}.{number}"
            parts |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in layers.items()}
    return SINGLE | {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in KINDS}


def to_open_clip(model: SiglipModel) -> dict[str, Tensor]:
    """The weights under open_clip's names."""
    state = model.state_dict()
    weights = {theirs: state[ours] for ours, theirs in _renamed(model.config).items()}
    weights |= {theirs: torch.cat([state[part] for part in parts]) for theirs, parts in _joined(model.config).items()}
    for kind in KINDS:
        query, *rest = state[POOLING.format(kind)].chunk(3)
        weights |= {f"{THEIR_POOLING}.q.{kind}": query, f"{THEIR_POOLING}.kv.{kind}": torch.cat(rest)}
    weights |= {name: weights[name].squeeze() for name in ("logit_scale", "logit_bias")}
    weights["visual.trunk.pos_embed"] = weights["visual.trunk.pos_embed"][None]
    return {name: weight.contiguous().clone() for name, weight in weights.items()}


def from_open_clip(weights: dict[str, Tensor], config: SiglipConfig) -> dict[str, Tensor]:
    """The weights under a `SiglipModel`'s names: what `to_open_clip` was given."""
    state = {ours: weights[theirs] for ours, theirs in _renamed(config).items()}
    for theirs, parts in _joined(config).items():
        state |= dict(zip(parts, weights[theirs].chunk(len(parts)), strict=True))
    for kind in KINDS:
        state[POOLING.format(kind)] = torch.cat([weights[f"{THEIR_POOLING}.{part}.{kind}"] for part in ("q", "kv")])
    state |= {name: state[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    positions = "vision_model.embeddings.position_embedding.weight"
    state[positions] = state[positions].squeeze(0)
    return {name: weight.contiguous() for name, weight in state.items()}
