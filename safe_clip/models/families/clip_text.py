"""The text encoder of a CLIP alone, as it lies in the pipelines of diffusers: captions, and nothing to see with."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..family import Family
from .clip import CLIP


class CaptionProcessor(ProcessorMixin):
    """A tokenizer in the place of a processor; it is saved as that tokenizer."""

    image_processor = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)

    @classmethod
    def from_pretrained(cls, path: str, **where: Any) -> "CaptionProcessor":
        """That of a folder or Hub repository with a CLIP's tokenizer; arguments as for any tokenizer."""
        return cls(CLIPTokenizer.from_pretrained(path, **where))

    @classmethod
    def get_processor_dict(cls, path: str, **where: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """No settings, since there are none besides the tokenizer's own."""
        return {}, where

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> tuple[str, ...]:
        """Writes the tokenizer's own files, and none that name this class."""
        return self.tokenizer.save_pretrained(save_directory)


def embed_captions(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    """As `CLIPModel.get_text_features`; without a projection, what is pooled is the embedding."""
    output = type(model).forward(model, **inputs)  # its class's: in training its own calls this
    if isinstance(output, BaseModelOutputWithPooling):
        return output
    return BaseModelOutputWithPooling(
        last_hidden_state=output.last_hidden_state,
        pooler_output=output.text_embeds,
        hidden_states=output.hidden_states,
    )


def name_class(model: PreTrainedModel) -> None:
    """Both classes have one kind of configuration, and a new model's does not say which it is of."""
    model.config.architectures = [type(model).__name__]


def sync_eos_token(model: PreTrainedModel) -> None:
    """What reads captions has a copy of its own, from when it was made."""
    name_class(model)
    CLIP_TEXT.text.of(model).eos_token_id = model.config.eos_token_id


def dimension(config: CLIPTextConfig) -> int:
    """Of the projection, where there is one."""
    projected = CLIP_TEXT.class_of(config) is CLIPTextModelWithProjection
    return config.projection_dim if projected else config.hidden_size


CLIP_TEXT: Family = replace(
    CLIP,
    name="CLIP text encoder",
    example="stable-diffusion-v1-5/stable-diffusion-v1-5:text_encoder",
    model=CLIPTextModel,
    further_models=(CLIPTextModelWithProjection,),
    config=CLIPTextConfig,
    processor=CaptionProcessor,
    text=replace(CLIP.text, sub_config=None),
    image=None,
    logit_scale=None,
    scalars=(),
    log_settings=(),
    positive_ints=(),
    dimension=dimension,
    fix_projection_dim=name_class,
    sync_eos_token=sync_eos_token,
    text_features=embed_captions,
    lora_targets=("k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    exports=("transformers",),
    open_clip=None,
)
