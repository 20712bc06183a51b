"""A small LLaVA of the world: tells from the patch states of the base's vision tower what an image shows.

`tools/captioner.py` trains it. The vision tower is the base's and is not trained, as LLaVA's is OpenAI's; the projector
and the small Llama behind it are. `load_captioner()` gives an
ordinary `LlavaForConditionalGeneration`.
"""

from pathlib import Path

from safetensors.torch import load_file
from tokenizers import decoders
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .towers import BASE_DIR, vision_tower

CAPTIONER_DIR = Path(__file__).parent / "models" / "captioner"
WEIGHTS_FILE = "captioner.safetensors"  # without those of the vision tower, which are the base's
IMAGE_TOKEN = "<image>"


def load_processor() -> LlavaProcessor:
    """Makes the captioner's inputs; the prompt is the image token alone."""
    # Captions begin and end by the tokens of the base; what is to be gone on with must not end.
    base = CLIPTokenizer.from_pretrained(BASE_DIR)
    backend = base.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{base.bos_token} $A", special_tokens=[(base.bos_token, base.bos_token_id)]
    )
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=base.bos_token,
        eos_token=base.eos_token,
        pad_token=base.pad_token,
        unk_token=base.unk_token,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )
    vision = CLIPConfig.from_pretrained(BASE_DIR).vision_config
    return LlavaProcessor(
        CLIPImageProcessor.from_pretrained(BASE_DIR),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def build_captioner(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The base's vision tower, and some 1.6 million random weights behind it."""
    tokenizer = processor.tokenizer
    width = 160
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPConfig.from_pretrained(BASE_DIR).vision_config
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
            vision_feature_layer=-2,  # as in LLaVA
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
        )
    )
    model.model.vision_tower = vision_tower().requires_grad_(False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def load_captioner() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The bundled captioner in float32 and evaluation mode, with the vision tower that it was trained on."""
    processor = load_processor()
    model = build_captioner(processor)
    trained = {name: weight.float() for name, weight in load_file(CAPTIONER_DIR / WEIGHTS_FILE).items()}
    missing, unexpected = model.load_state_dict(trained, strict=False)
    left = [name for name in missing if "vision_tower" not in name and name != "lm_head.weight"]
    if left or unexpected:
        raise OSError(f"{CAPTIONER_DIR / WEIGHTS_FILE} does not fit the captioner: {left or unexpected}")
    return model.eval(), processor
