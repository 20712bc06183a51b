"""What there is to know of each family of models with an encoder of text and one of images; all else asks here.

A further family is a further `Family` in `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
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

from ..data.beginnings import beginnings
from ..errors import UserError
from . import open_clip_format
from .tokens import fit_tokenizer

# Of a configuration: what says how large a layer is.
LAYERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower:
    """One of the two encoders of a family.

    Attributes:
        name: the attribute of a model that holds it.
        projection: the attribute of a model that holds the linear layer without bias after it; `None` where what the
            encoder pools is the embedding.
        sub_config: the attribute of a model's configuration that describes it.
        model_type: of the configuration of such an encoder alone.
        positive_ints: settings of `sub_config` that are whole numbers over 0.
        encoders: its classes in generators, the usual one first.
        shape: settings of `sub_config` in which a generator's encoder and one that takes its place must be equal.
        embedding_tables: weights of an encoder, N x `hidden_size` each, that fine-tuning hardly moves.
        states: the hidden states that generators read, N x length x `hidden_size` each, from an encoder's output,
            which has the last two of `hidden_states`.
        onnx_output: what transformers.js calls the embeddings in the graph of the encoder alone.
        base_by: settings of `sub_config` whose values are the keys of `bases`.
        bases: the checkpoint that most generators with these values were made with.
        example: a generator with such an encoder.
    """

    name: str
    projection: str | None
    sub_config: str
    model_type: str
    positive_ints: tuple[str, ...]
    encoders: tuple[type[PreTrainedModel], ...]
    shape: tuple[str, ...]
    embedding_tables: Callable[[nn.Module], list[Tensor]]
    states: Callable[[BaseModelOutputWithPooling], tuple[Tensor, ...]]
    onnx_output: str
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
        return getattr(config, self.sub_config)

    def holds(self, name: str) -> bool:
        """Whether a weight of a model, by its name, belongs to the encoder or its projection."""
        return not {self.name, self.projection}.isdisjoint(name.split("."))

    def base(self, config: PreTrainedConfig) -> str | None:
        """The model that an encoder's configuration most likely comes from."""
        return self.bases.get(tuple(getattr(config, name) for name in self.base_by))

    def map_embeddings(self, model: nn.Module, matrix: Tensor) -> None:
        """Has a model multiply this encoder's embeddings by a matrix before they are normalised."""
        projection = self.projection_of(model)
        if projection is not None:
            projection.weight.data = matrix.to(projection.weight) @ projection.weight.data
            return
        encoder = self.of(model)
        encoder.register_buffer("embedding_map", matrix.to(next(encoder.parameters())))
        encoder.register_forward_hook(_map_pooled)


def _change_nothing(model: PreTrainedModel) -> None:
    pass


def _map_pooled(encoder: nn.Module, inputs: tuple, output: BaseModelOutputWithPooling) -> None:
    output.pooler_output = output.pooler_output @ encoder.embedding_map.T.to(output.pooler_output)


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """Models of one architecture, which differ in size and weights alone.

    Attributes:
        name: what messages call one.
        example: a checkpoint.
        model, config, processor, tokenizer: the classes of transformers.
        output: what `model.forward` gives: `text_embeds`, `image_embeds`, `text_model_output`, `vision_model_output`.
        text, image: the two encoders.
        logit_scale: the attribute of a model that holds the logarithm of the factor before cosines.
        scalars: attributes that hold single weights, which objectives do not train, and which cannot be sharded.
        log_settings: settings of a configuration that are logarithms of factors.
        positive_ints: settings of a configuration, not of its two parts, that are whole numbers over 0.
        dimension: the length of an embedding, by a model's configuration.
        text_inputs: of what a tokenizer makes of captions, what the text encoder takes.
        padding: of captions, as tokenizers take it: `True` to the longest, `"max_length"` where all have that length.
        fit_tokenizer: has a tokenizer end and pad captions as the text encoder reads them, whose configuration is the
            second argument; raises `UserError` where it cannot.
        fix_projection_dim: corrects a model's configuration where it does not say the true length of embeddings.
        sync_eos_token: has a model pool captions at the end token that its configuration names.
        lora_targets: `target_modules` of peft's `LoraConfig`.
        lora_excluded: `exclude_modules` likewise.
        exports: formats of `export.py` that models can be written in.
        open_clip: where `exports` says open_clip, a module with the functions of `open_clip_format`.
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
    logit_scale: str
    scalars: tuple[str, ...]
    log_settings: tuple[str, ...] = ()
    positive_ints: tuple[str, ...] = ()
    dimension: Callable[[PreTrainedConfig], int]
    text_inputs: tuple[str, ...]
    padding: bool | str
    fit_tokenizer: Callable[[PreTrainedTokenizerBase, PreTrainedConfig], None]
    fix_projection_dim: Callable[[PreTrainedModel], None] = _change_nothing
    sync_eos_token: Callable[[PreTrainedModel], None] = _change_nothing
    lora_targets: tuple[str, ...]
    lora_excluded: tuple[str, ...] = ()
    exports: tuple[str, ...]
    open_clip: ModuleType | None = None

    @property
    def towers(self) -> dict[str, Tower]:
        """The encoders by modality."""
        return {"text": self.text, "image": self.image}

    def max_length(self, config: PreTrainedConfig) -> int:
        """Tokens that the text encoder takes, special ones included."""
        return self.text.config_of(config).max_position_embeddings

    def pad_to_multiple_of(self, config: PreTrainedConfig) -> int:
        """What the lengths of padded captions are multiples of."""
        return self.max_length(config) if self.padding == "max_length" else 1

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, captions: list[str], config: PreTrainedConfig
    ) -> dict[str, Tensor]:
        """What `get_text_features` takes for N captions, cut and padded: N x length each."""
        length = self.max_length(config)
        tokens = tokenizer(
            beginnings(captions, tokenizer, length),
            padding=self.padding,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return {name: tokens[name] for name in self.text_inputs if name in tokens}

    def image_size(self, config: PreTrainedConfig) -> int:
        """Pixels on each side of the images that a model takes."""
        return self.image.config_of(config).image_size

    def scale_of(self, model: PreTrainedModel) -> float:
        """What a model learned to multiply cosines by."""
        return getattr(model, self.logit_scale).exp().item()

    def hidden_states(self, output: ModelOutput) -> dict[str, tuple[Tensor, ...]]:
        """What generators read, by modality, of the output of `model.forward` with `output_hidden_states`."""
        outputs = {"text": output.text_model_output, "image": output.vision_model_output}
        return {name: self.towers[name].states(each) for name, each in outputs.items() if each is not None}


def _fix_clip_projection_dim(model: CLIPModel) -> None:
    """Some configurations say it at the top alone, and an encoder that is loaded on its own asks its own part."""
    config, dimension = model.config, model.text_projection.out_features
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = dimension


def _sync_clip_eos_token(model: CLIPModel) -> None:
    """A model has a copy of its own, from when it was made."""
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
        embedding_tables=_clip_image_tables,
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
    fix_projection_dim=_fix_clip_projection_dim,
    text_inputs=("input_ids", "attention_mask"),
    padding=True,  # attention is causal, and a caption is read at its end token, before the padding
    fit_tokenizer=fit_tokenizer,
    sync_eos_token=_sync_clip_eos_token,
    # Of both encoders, as in the paper's script.
    lora_targets=("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"),
    exports=("transformers", "open_clip", "onnx"),
    open_clip=open_clip_format,
)
# By the model_type of their configurations.
FAMILIES = {family.config.model_type: family for family in (CLIP,)}


def _either(words: list[str]) -> str:
    return " or ".join(words)


MODEL_NAMES = _either([family.model.__name__ for family in FAMILIES.values()])
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
