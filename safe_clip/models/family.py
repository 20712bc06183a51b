"""What there is to know of each family of models with an encoder of text and one of images; all else asks here.

A further family is a further `Family` in `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import ModelOutput

from ..errors import UserError
from .tokens import fit_tokenizer

# Of a configuration: what says how large a layer is.
LAYERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, eq=False)
class Tower:
    """One of the two encoders of a family.

    Attributes:
        name: the attribute of a model that holds it.
        projection: the attribute of a model that holds its projection into the common space; `None` for none.
        part: the attribute of a model's configuration that describes it.
        model_type: what the configuration of such an encoder alone calls itself.
        counts: settings of `part` that are whole numbers over 0.
        encoders: its classes in generators, the usual one first.
        shape: settings of `part` that a generator's encoder and one that takes its place have to agree on.
        tables: the embeddings of an encoder, N x width each, that fine-tuning hardly moves.
        states: what generators read of an encoder's output, which has the last two `hidden_states`: N x length x
            width of each layer.
        base_by: settings of a configuration whose values are the keys of `bases`.
        bases: the checkpoint that most generators with these values were made with.
        example: of generators with such an encoder.
    """

    name: str
    projection: str | None
    part: str
    model_type: str
    counts: tuple[str, ...]
    encoders: tuple[type[PreTrainedModel], ...]
    shape: tuple[str, ...]
    tables: Callable[[nn.Module], list[Tensor]]
    states: Callable[[BaseModelOutputWithPooling], tuple[Tensor, ...]]
    base_by: tuple[str, ...]
    bases: Mapping[tuple[int, ...], str]
    example: str

    def of(self, model: nn.Module) -> nn.Module:
        """A model's encoder; of an encoder alone what holds its weights, which depends on its class."""
        return getattr(model, self.name, model)

    def projection_of(self, model: nn.Module) -> nn.Module | None:
        """The projection of a model, or of an encoder alone, if it has one."""
        return None if self.projection is None else getattr(model, self.projection, None)

    def config_of(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The part of a model's configuration that describes the encoder."""
        return getattr(config, self.part)

    def holds(self, name: str) -> bool:
        """Whether a weight of a model, by its name, belongs to the encoder or its projection."""
        return not {self.name, self.projection}.isdisjoint(name.split("."))

    def base(self, config: PreTrainedConfig) -> str | None:
        """The model that an encoder's configuration most likely comes from."""
        return self.bases.get(tuple(getattr(config, name) for name in self.base_by))


@dataclass(frozen=True, eq=False)
class Family:
    """Models that differ in size and weights alone.

    Attributes:
        name: what messages call one.
        example: a checkpoint.
        model, config, processor, tokenizer: the classes of transformers.
        output: what `model.forward` gives: `text_embeds`, `image_embeds`, `text_model_output`, `vision_model_output`.
        text, image: the two encoders.
        scale: the attribute of a model that holds the logarithm of the factor before cosines.
        scalars: attributes that hold single weights, which objectives do not train, and which cannot be sharded.
        log_settings: settings of a configuration that are logarithms of factors.
        counts: settings of a configuration's top that are whole numbers over 0.
        dimension: the length of an embedding, by a model's configuration.
        state_dimension: has a model's configuration say the true length in all places that encoders look at.
        padding: of captions, as tokenizers take it: `True` to the longest, `"max_length"` where all have that length.
        fit_tokenizer: has a tokenizer end and pad captions as the text encoder reads them, whose configuration is the
            second argument; raises `UserError` where it cannot.
        set_pooling: has a model pool captions where its configuration says.
        lora_targets: suffixes of names for peft's `target_modules`, in every layer.
        lora_excluded: suffixes for peft's `exclude_modules`.
        exports: formats of `export.py` that models can be written in.
    """

    name: str
    example: str
    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    processor: type[ProcessorMixin]
    tokenizer: type[PreTrainedTokenizerBase]
    output: type[ModelOutput]
    text: Tower
    image: Tower
    scale: str
    scalars: tuple[str, ...]
    log_settings: tuple[str, ...]
    counts: tuple[str, ...]
    dimension: Callable[[PreTrainedConfig], int]
    state_dimension: Callable[[PreTrainedModel], None]
    padding: bool | str
    fit_tokenizer: Callable[[PreTrainedTokenizerBase, PreTrainedConfig], None]
    set_pooling: Callable[[PreTrainedModel], None]
    lora_targets: tuple[str, ...]
    lora_excluded: tuple[str, ...]
    exports: tuple[str, ...]

    @property
    def towers(self) -> dict[str, Tower]:
        """The encoders by modality."""
        return {"text": self.text, "image": self.image}

    def max_length(self, config: PreTrainedConfig) -> int:
        """Tokens that the text encoder takes, special ones included."""
        return self.text.config_of(config).max_position_embeddings

    def image_size(self, config: PreTrainedConfig) -> int:
        """Pixels on each side of the images that a model takes."""
        return self.image.config_of(config).image_size

    def factor(self, model: PreTrainedModel) -> float:
        """What a model learned to multiply cosines by."""
        return getattr(model, self.scale).exp().item()

    def hidden_states(self, output: ModelOutput) -> dict[str, tuple[Tensor, ...]]:
        """What generators read, by modality, of the output of `model.forward` with `output_hidden_states`."""
        outputs = {"text": output.text_model_output, "image": output.vision_model_output}
        return {name: self.towers[name].states(each) for name, each in outputs.items() if each is not None}


def _state_clip_dimension(model: CLIPModel) -> None:
    """Some configurations say it at the top alone, and an encoder that is loaded on its own asks its own part."""
    config, dimension = model.config, model.text_projection.out_features
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = dimension


def _set_clip_pooling(model: CLIPModel) -> None:
    """Which a model keeps for itself when it is made."""
    model.text_model.eos_token_id = model.config.text_config.eos_token_id


def _clip_image_tables(encoder: nn.Module) -> list[Tensor]:
    """The embeddings of positions and of the class."""
    return [encoder.embeddings.position_embedding.weight, encoder.embeddings.class_embedding[None]]


CLIP = Family(
    name="CLIP",
    example="openai/clip-vit-base-patch32",
    model=CLIPModel,
    config=CLIPConfig,
    processor=CLIPProcessor,
    tokenizer=CLIPTokenizer,
    output=CLIPOutput,
    text=Tower(
        name="text_model",
        projection="text_projection",
        part="text_config",
        model_type=CLIPTextConfig.model_type,
        counts=(*LAYERS, "vocab_size", "max_position_embeddings"),
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
        tables=lambda encoder: [encoder.embeddings.token_embedding.weight],
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
        part="vision_config",
        model_type=CLIPVisionConfig.model_type,
        counts=(*LAYERS, "image_size", "patch_size", "num_channels"),
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
        tables=_clip_image_tables,
        states=lambda output: (output.hidden_states[-2],),  # which LLaVA reads
        base_by=("hidden_size", "patch_size", "image_size"),
        bases={
            (1024, 14, 336): "openai/clip-vit-large-patch14-336",
            (1024, 14, 224): "openai/clip-vit-large-patch14",
        },
        example="llava-hf/llava-1.5-7b-hf",
    ),
    scale="logit_scale",
    scalars=("logit_scale",),
    log_settings=("logit_scale_init_value",),
    counts=("projection_dim",),
    dimension=lambda config: config.projection_dim,
    state_dimension=_state_clip_dimension,
    padding=True,  # attention is causal, and a caption is read at its end token, before the padding
    fit_tokenizer=fit_tokenizer,
    set_pooling=_set_clip_pooling,
    # Of both encoders, as in the paper's script.
    lora_targets=("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"),
    lora_excluded=(),
    exports=("transformers", "open_clip", "onnx"),
)
# By the model_type of their configurations.
FAMILIES = {family.config.model_type: family for family in (CLIP,)}


def _either(words: list[str]) -> str:
    return " or ".join(words)


MODELS = tuple(family.model for family in FAMILIES.values())
MODEL_NAMES = _either([model.__name__ for model in MODELS])
PROCESSOR_NAMES = _either([family.processor.__name__ for family in FAMILIES.values()])


def family_of(model: Any) -> Family:
    """The family of a model, of a `PeftModel` of one, or of a configuration.

    Raises:
        UserError: it is of none.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    family = FAMILIES.get(getattr(getattr(model, "config", model), "model_type", None))
    if family is None or (isinstance(model, PreTrainedModel) and not isinstance(model, family.model)):
        raise UserError(
            f"the model is a {type(model).__name__}, not a {MODEL_NAMES} (both encoders in one). "
            f"Pass a {MODEL_NAMES}, a PeftModel of one, a folder or a Hub id."
        )
    return family


def family_named(model_type: str) -> Family:
    """The family that a `config.json` names.

    Raises:
        UserError: there is no such family; the message goes on after the name of the checkpoint.
    """
    if model_type not in FAMILIES:
        families = FAMILIES.values()
        encoders = [tower.model_type for family in families for tower in family.towers.values()]
        part = ", but one encoder of it" if model_type in encoders else ""
        raise UserError(
            f"is a '{model_type}' model, not a {_either([family.name for family in families])}{part}. "
            f"Name a checkpoint of the {MODEL_NAMES} class, such as {_either([family.example for family in families])}."
        )
    return FAMILIES[model_type]
