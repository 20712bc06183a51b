"""What there is to know of a family of models with an encoder of text, and mostly one of images; all else asks here.

The families that there are stand in `families/`, one a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from ..data.beginnings import beginnings
from ..errors import UserError

# Of a configuration: what says how large a layer is.
LAYERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
USUAL_SCALE = 100.0  # to which CLIPs learn to scale cosines, and where it is held


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower:
    """One of the two encoders of a family.

    Attributes:
        name: the attribute of a model that holds it.
        projection: the attribute of a model that holds the linear layer without bias after it; `None` where what the
            encoder pools is the embedding.
        sub_config: the attribute of a model's configuration that describes it; `None` where all of it does.
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
        example: a generator with such an encoder; `None` where none is known, and its hidden states are not trained.
    """

    name: str
    projection: str | None
    sub_config: str | None
    model_type: str
    positive_ints: tuple[str, ...]
    encoders: tuple[type[PreTrainedModel], ...]
    shape: tuple[str, ...]
    embedding_tables: Callable[[nn.Module], list[Tensor]]
    states: Callable[[BaseModelOutputWithPooling], tuple[Tensor, ...]]
    onnx_output: str
    base_by: tuple[str, ...]
    bases: Mapping[tuple[int, ...], str]
    example: str | None

    def of(self, model: nn.Module) -> nn.Module:
        """A model's encoder; of an encoder alone what holds its weights, which depends on its class."""
        return getattr(model, self.name, model)

    def projection_of(self, model: nn.Module) -> nn.Module | None:
        """The projection of a model, or of an encoder alone, if it has one."""
        return None if self.projection is None else getattr(model, self.projection, None)

    def config_of(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The part of a model's configuration that describes the encoder."""
        return config if self.sub_config is None else getattr(config, self.sub_config)

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


def _text_features(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    return model.get_text_features(**inputs)


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
        model, config, processor: the classes of transformers.
        output: what `model.forward` gives: `text_embeds`, `image_embeds`, `text_model_output`, `vision_model_output`.
        further_models: other classes that models with the same configuration may be of.
        text, image: the two encoders; `image` is `None` for text encoders alone.
        logit_scale: the attribute of a model that holds the logarithm of the factor before cosines; `None` where only
            the whole model had one, which was 100 then.
        logit_bias: the attribute that holds what is added to scaled cosines before the sigmoid; `None` for models
            with a softmax over all.
        scalars: attributes that hold single weights, which objectives do not train, and which cannot be sharded.
        log_settings: settings of a configuration that are logarithms of factors.
        positive_ints: settings of a configuration, not of its two parts, that are whole numbers over 0.
        dimension: the length of an embedding, by a model's configuration.
        check: what is wrong with a model's configuration that no single value says; `None` for nothing.
        text_inputs: of what a tokenizer makes of captions, what the text encoder takes.
        padding: of captions, as tokenizers take it: `True` to the longest, `"max_length"` where all have that length.
        fit_tokenizer: has a tokenizer end and pad captions as the text encoder reads them, whose configuration is the
            second argument; raises `UserError` where it cannot.
        fix_projection_dim: corrects a model's configuration where it does not say the true length of embeddings.
        text_features: embeds captions, not yet at length 1, as `pooler_output`.
        sync_eos_token: has a model pool captions at the end token that its configuration names.
        lora_targets: `target_modules` of peft's `LoraConfig`.
        lora_excluded: `exclude_modules` likewise.
        exports: formats of `export.py` that models can be written in.
        open_clip: where `exports` says open_clip, a module with `open_clip_config` and `to_open_clip`,
            and what reads these, `read_config` and `from_open_clip`.
    """

    name: str
    example: str
    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    processor: type[ProcessorMixin]
    output: type[ModelOutput]
    further_models: tuple[type[PreTrainedModel], ...] = ()
    text: Tower
    image: Tower | None
    logit_scale: str | None
    logit_bias: str | None = None
    scalars: tuple[str, ...]
    log_settings: tuple[str, ...] = ()
    positive_ints: tuple[str, ...] = ()
    dimension: Callable[[PreTrainedConfig], int]
    check: Callable[[PreTrainedConfig], str | None] = lambda config: None
    text_inputs: tuple[str, ...]
    padding: bool | str
    fit_tokenizer: Callable[[PreTrainedTokenizerBase, PreTrainedConfig], None]
    fix_projection_dim: Callable[[PreTrainedModel], None] = _change_nothing
    sync_eos_token: Callable[[PreTrainedModel], None] = _change_nothing
    text_features: Callable[..., BaseModelOutputWithPooling] = _text_features
    lora_targets: tuple[str, ...]
    lora_excluded: tuple[str, ...] = ()
    exports: tuple[str, ...]
    open_clip: ModuleType | None = None

    @property
    def towers(self) -> dict[str, Tower]:
        """The encoders by modality."""
        return {"text": self.text} | ({} if self.image is None else {"image": self.image})

    @property
    def image_tower(self) -> Tower:
        """The encoder of images.

        Raises:
            UserError: there is none.
        """
        if self.image is None:
            raise UserError(f"the model is a {self.name} alone, which sees no images; that requires a whole CLIP.")
        return self.image

    @property
    def models(self) -> tuple[type[PreTrainedModel], ...]:
        """All classes of transformers that models are of."""
        return self.model, *self.further_models

    def class_of(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The class of a model, by its configuration."""
        names = config.architectures or ()
        return next((each for each in self.further_models if each.__name__ in names), self.model)

    def max_length(self, config: PreTrainedConfig) -> int:
        """Tokens that the text encoder takes, special ones included."""
        return self.text.config_of(config).max_position_embeddings

    def padded_length(self, config: PreTrainedConfig) -> int | None:
        """The length that all captions are padded to; `None` where they are padded to the longest."""
        return self.max_length(config) if self.padding == "max_length" else None

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
        return self.image_tower.config_of(config).image_size

    def scale_of(self, model: PreTrainedModel) -> float:
        """What a model learned to multiply cosines by."""
        return USUAL_SCALE if self.logit_scale is None else getattr(model, self.logit_scale).exp().item()

    def bias_of(self, model: PreTrainedModel) -> float | None:
        """What a model learned to add to scaled cosines; `None` where it adds nothing."""
        return None if self.logit_bias is None else getattr(model, self.logit_bias).item()

    def hidden_states(self, output: ModelOutput) -> dict[str, tuple[Tensor, ...]]:
        """What generators read, by modality, of the output of `model.forward` with `output_hidden_states`."""
        outputs = {"text": output.text_model_output, "image": output.vision_model_output}
        return {name: self.towers[name].states(each) for name, each in outputs.items() if each is not None}
