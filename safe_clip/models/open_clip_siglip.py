"""A SigLIP as open_clip stores it, whose image encoders are timm's: its configuration and the names of its weights."""

from typing import Any

import torch
from torch import Tensor
from transformers import SiglipModel, SiglipProcessor

from ..errors import UserError
from .open_clip_inputs import preprocess_cfg

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


def open_clip_config(model: SiglipModel, processor: SiglipProcessor) -> dict[str, Any]:
    """The `open_clip_config.json` of a model.

    Raises:
        UserError: open_clip has no such architecture, or prepares images otherwise.
    """
    text, vision = model.config.text_config, model.config.vision_config
    for part, values in (("text_config", text), ("vision_config", vision)):
        if (values.hidden_act, values.layer_norm_eps) != (ACTIVATION, EPSILON):
            raise UserError(
                f"open_clip has a SigLIP with hidden_act {ACTIVATION} and layer_norm_eps {EPSILON:g} alone, and {part} "
                f"says {values.hidden_act} and {values.layer_norm_eps:g}."
            )
    return {
        "model_cfg": {
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
                "hf_tokenizer_name": "local",  # open_clip reads the folder's own under "local-dir:"
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
        },
        "preprocess_cfg": preprocess_cfg(processor.image_processor, vision.image_size),
    }


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


def to_open_clip(model: SiglipModel) -> dict[str, Tensor]:
    """The weights under open_clip's names."""
    state = model.state_dict()
    weights = {
        "logit_scale": state["logit_scale"].squeeze(),
        "logit_bias": state["logit_bias"].squeeze(),
        "text.token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text.positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.trunk.pos_embed": state["vision_model.embeddings.position_embedding.weight"][None],
        "visual.trunk.attn_pool.latent": state["vision_model.head.probe"],
    }
    parts = dict(PARTS)
    towers = {"vision": ("visual.trunk.blocks", "attn.qkv.", LAYERS)}
    towers["text"] = ("text.transformer.resblocks", "attn.in_proj_", TEXT_LAYERS)
    for tower, (blocks, qkv, layers) in towers.items():
        for number in range(getattr(model.config, f"{tower}_config").num_hidden_layers):
            ours, theirs = f"{tower}_model.encoder.layers.{number}", f"{blocks}.{number}"
            parts |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in layers.items()}
            for kind in ("weight", "bias"):
                own = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                weights[f"{theirs}.{qkv}{kind}"] = torch.cat(own)
    for kind in ("weight", "bias"):
        query, *rest = state[f"vision_model.head.attention.in_proj_{kind}"].chunk(3)
        weights[f"visual.trunk.attn_pool.q.{kind}"] = query
        weights[f"visual.trunk.attn_pool.kv.{kind}"] = torch.cat(rest)
        weights |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for ours, theirs in parts.items()}
    return {name: weight.contiguous().clone() for name, weight in weights.items()}
