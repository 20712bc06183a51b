"""CLIP as OpenAI, LAION, DataComp and others trained it."""

from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.models.clip.modeling_clip import CLIPOutput

from .. import open_clip_format
from ..family import LAYERS, Family, Tower
from ..tokens import fit_tokenizer


def fix_projection_dim(model: CLIPModel) -> None:
    """Some configurations say it at the top alone, and an encoder that is loaded on its own asks its own part."""
    config, dimension = model.config, model.text_projection.out_features
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = dimension


def sync_eos_token(model: CLIPModel) -> None:
    """A model has a copy of its own, from when it was made."""
    model.text_model.eos_token_id = model.config.text_config.eos_token_id


def image_tables(encoder: nn.Module) -> list[Tensor]:
    """The embeddings of positions and of the class."""
    return [encoder.embeddings.position_embedding.weight, encoder.embeddings.class_embedding[None]]


CLIP = Family(
    name="CLIP",
    example="openai/clip-vit-base-patch32",
    model=CLIPModel,
    config=CLIPConfig,
    processor=CLIPProcessor,
    output=CLIPOutput,
    text=Tower(
        name="text_model",
        projection="text_projection",
        sub_config="text_config",
        model_type=CLIPTextConfig.model_type,
        positive_ints=(*LAYERS, "vocab_size", "max_position_embeddings"),
        encoders=(CLIPTextModel, CLIPTextModelWithProjection),
        # Without the number of layers: a generator's encoder may have been cut off after some layer.
        shape=(
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "hidden_act",
            "vocab_size",
            "max_position_embeddings",
        ),
        embedding_tables=lambda encoder: [encoder.embeddings.token_embedding.weight],
        onnx_output="text_embeds",
        # SDXL reads the states before the last layer, Stable Diffusion the last ones, normalised.
        states=lambda output: (output.hidden_states[-2], output.last_hidden_state),
        base_by=("hidden_size",),
        bases={
            (768,): "openai/clip-vit-large-patch14",
            (1024,): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            (1280,): "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        },
        example="one of Stable Diffusion",
    ),
    image=Tower(
        name="vision_model",
        projection="visual_projection",
        sub_config="vision_config",
        model_type=CLIPVisionConfig.model_type,
        positive_ints=(*LAYERS, "image_size", "patch_size", "num_channels"),
        encoders=(CLIPVisionModel,),
        shape=(
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "hidden_act",
            "num_hidden_layers",
            "image_size",
            "patch_size",
        ),
        embedding_tables=image_tables,
        onnx_output="image_embeds",
        states=lambda output: (output.hidden_states[-2],),  # which LLaVA reads
        base_by=("hidden_size", "patch_size", "image_size"),
        bases={
            (1024, 14, 336): "openai/clip-vit-large-patch14-336",
            (1024, 14, 224): "openai/clip-vit-large-patch14",
        },
        example="llava-hf/llava-1.5-7b-hf",
    ),
    logit_scale="logit_scale",
    scalars=("logit_scale",),
    log_settings=("logit_scale_init_value",),
    positive_ints=("projection_dim",),
    dimension=lambda config: config.projection_dim,
    fix_projection_dim=fix_projection_dim,
    text_inputs=("input_ids", "attention_mask"),
    padding=True,  # attention is causal, and a caption is read at its end token, before the padding
    fit_tokenizer=fit_tokenizer,
    sync_eos_token=sync_eos_token,
    # Of both encoders, as in the paper's script.
    lora_targets=("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"),
    exports=("transformers", "open_clip", "onnx"),
    open_clip=open_clip_format,
)
