"""MetaCLIP 2 (Chuang et al., 2025): a CLIP of 300 languages, with another tokenizer."""

from dataclasses import replace

from transformers import (
    MetaClip2Config,
    MetaClip2Model,
    MetaClip2TextConfig,
    MetaClip2TextModel,
    MetaClip2TextModelWithProjection,
    MetaClip2VisionConfig,
    MetaClip2VisionModel,
    PreTrainedTokenizerBase,
)
from transformers.models.metaclip_2.modeling_metaclip_2 import MetaClip2Output

from ..family import Family
from ..tokens import fit_tokenizer
from .clip import CLIP


def fit_literal_tokenizer(tokenizer: PreTrainedTokenizerBase, text: MetaClip2TextConfig) -> None:
    """As for a CLIP, but 2 as the end token is that token, never the largest."""
    fit_tokenizer(tokenizer, text, literal=True)


METACLIP_2: Family = replace(
    CLIP,
    name="MetaCLIP 2",
    example="facebook/metaclip-2-worldwide-b32",
    model=MetaClip2Model,
    config=MetaClip2Config,
    output=MetaClip2Output,
    text=replace(
        CLIP.text,
        model_type=MetaClip2TextConfig.model_type,
        encoders=(MetaClip2TextModel, MetaClip2TextModelWithProjection),
        bases={},
        example=None,
    ),
    image=replace(
        CLIP.image,
        model_type=MetaClip2VisionConfig.model_type,
        encoders=(MetaClip2VisionModel,),
        bases={},
        example=None,
    ),
    fit_tokenizer=fit_literal_tokenizer,
)
