"""SigLIP (Zhai et al., ICCV 2023) and SigLIP 2 (Tschannen et al., 2025) for images of one size.

Captions are padded to one length and pooled at their last position, padding or not; attention goes both ways; there are
no projections; images are pooled by attention; and a bias is added to the scaled cosines, of which training takes the
sigmoid of each, not a softmax over all.
"""

import functools
import logging

from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.modeling_siglip import SiglipOutput

from ...errors import UserError
from .. import open_clip_siglip
from ..family import LAYERS, Family, Tower
from ..tokens import CURE, fit_vocabulary

logger = logging.getLogger(__name__)
SHAPE = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act")


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, text: SiglipTextConfig) -> None:
    """Sets the length of captions, and that they come without a mask, with which no SigLIP was trained.

    Args:
        tokenizer: it is changed. On which side it pads, and with what, is left as it is: pooled is what comes last.
        text: the text encoder's configuration. Its special tokens, which SigLIP makes no use of, are changed to the
            tokenizer's: of most checkpoints they are none of its vocabulary, which transformers warns of.

    Raises:
        UserError: its tokens are not those of the model, or it has none to pad with.
    """
    fit_vocabulary(tokenizer, text)
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer has no token to pad captions with. {CURE}.")
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]  # the latter is saved
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, token, getattr(tokenizer, token))
    if tokenizer("A DOG")["input_ids"] != tokenizer("a dog")["input_ids"]:
        tell_of_capitals(type(tokenizer).__name__)


@functools.cache  # once
def tell_of_capitals(tokenizer: str) -> None:
    """Warns that a tokenizer makes tokens of captions that the model was not trained on."""
    logger.warning(
        "The tokenizer (%s) tells capitals from small letters, and SigLIP 2 was trained on small ones alone: its "
        "embeddings of captions with capitals are worse. They are left so, since your other embeddings by this "
        'model are too; with "tokenizer_class": "Siglip2Tokenizer" in tokenizer_config.json captions are lower-cased.',
        tokenizer,
    )


def dimension(config: SiglipConfig) -> int:
    """That of images, which the last layer of the text encoder is made to match."""
    return config.vision_config.hidden_size


def check(config: SiglipConfig) -> str | None:
    """What keeps the two encoders from giving embeddings of one length; `None` for nothing."""
    text, vision = config.text_config.projection_size, config.vision_config.hidden_size
    if text != vision:
        return f"text_config.projection_size {text}, which must be the hidden_size {vision} of vision_config"
    if not getattr(config.vision_config, "vision_use_head", True):
        return "vision_config.vision_use_head false, with which images have no embeddings"
    return None


def position_tables(encoder: nn.Module) -> list:
    """The embeddings of positions: there is none of a class."""
    return [encoder.embeddings.position_embedding.weight]


SIGLIP = Family(
    name="SigLIP",
    example="google/siglip2-base-patch16-224",
    model=SiglipModel,
    config=SiglipConfig,
    processor=SiglipProcessor,
    output=SiglipOutput,
    text=Tower(
        name="text_model",
        projection=None,
        sub_config="text_config",
        model_type=SiglipTextConfig.model_type,
        positive_ints=(*LAYERS, "vocab_size", "max_position_embeddings", "projection_size"),
        encoders=(SiglipTextModel,),
        shape=(*SHAPE, "vocab_size", "max_position_embeddings"),
        embedding_tables=lambda encoder: [encoder.embeddings.token_embedding.weight],
        states=lambda output: (output.last_hidden_state,),
        onnx_output="pooler_output",
        base_by=(),
        bases={},
        example=None,
    ),
    image=Tower(
        name="vision_model",
        projection=None,
        sub_config="vision_config",
        model_type=SiglipVisionConfig.model_type,
        positive_ints=(*LAYERS, "image_size", "patch_size", "num_channels"),
        encoders=(SiglipVisionModel,),
        shape=(*SHAPE, "num_hidden_layers", "image_size", "patch_size"),
        embedding_tables=position_tables,
        # What LLaVA-OneVision reads, and what PaliGemma and Idefics do.
        states=lambda output: (output.hidden_states[-1], output.last_hidden_state),
        onnx_output="pooler_output",
        base_by=("hidden_size", "patch_size", "image_size"),
        bases={(1152, 14, 384): "google/siglip-so400m-patch14-384"},
        example="llava-hf/llava-interleave-qwen-0.5b-hf",
    ),
    logit_scale="logit_scale",
    logit_bias="logit_bias",
    scalars=("logit_scale", "logit_bias"),
    dimension=dimension,
    check=check,
    text_inputs=("input_ids",),
    padding="max_length",
    fit_tokenizer=fit_tokenizer,
    lora_targets=("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"),
    lora_excluded=("head.attention.out_proj",),  # whose weight nn.MultiheadAttention takes past the adapter
    exports=("transformers", "open_clip", "onnx"),
    open_clip=open_clip_siglip,
)
