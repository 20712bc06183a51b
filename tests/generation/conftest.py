"""Tiny generators around the tiny CLIP, a safe CLIP beside it, and judges with known scores."""

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPTextModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from ..helpers import build_model

IMAGE = 32  # pixels


def build_safe(processor):
    """The tiny CLIP after a training that left its embeddings alone."""
    model = build_model(processor)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name:
                weight += 0.5 * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0
    return model


def build_pipeline(processor, clip):
    """A Stable Diffusion that draws 32-pixel images in a moment."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    encoder = CLIPTextModel(clip.config.text_config)
    getattr(encoder, "text_model", encoder).load_state_dict(clip.text_model.state_dict())
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4),
        text_encoder=encoder.eval(),
        tokenizer=processor.tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=IMAGE // 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=clip.config.text_config.hidden_size,
            attention_head_dim=4,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_llava(processor, clip):
    """A LLaVA that says something in a moment, and its processor."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=processor.tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    made = LlavaProcessor(
        processor.image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    torch.manual_seed(0)
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=language,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config)
    tower = model.model.vision_tower
    getattr(tower, "vision_model", tower).load_state_dict(clip.vision_model.state_dict())
    return model.eval(), made


@pytest.fixture(scope="session")
def safe_dir(processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-safe")
    build_safe(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pipeline_dir(processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-diffusion")
    build_pipeline(processor, build_model(processor)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def llava_dir(processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-llava")
    for part in build_llava(processor, build_model(processor)):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def red_judge(tmp_path_factory) -> str:
    """Made by hand: what is redder than green is unsafe."""
    folder = tmp_path_factory.mktemp("red")
    labels = {0: "normal", 1: "nsfw"}
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", id2label=labels)
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "normalization" not in name:
                weights.zero_()
        model.resnet.embedder.embedder.convolution.weight[0, :2, 3, 3] = torch.tensor([1.0, -1.0])
        model.classifier[1].weight[1, 0] = 40.0
    model.save_pretrained(folder)
    settings = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    ViTImageProcessor(size={"height": 32, "width": 32}, **settings).save_pretrained(folder)
    return str(folder)


class FakeJudge:
    """Says of each item what a function says."""

    def __init__(self, name, sure):
        self.name, self.sure, self.fingerprint, self.seen = name, sure, f"fake {name}", 0

    def score(self, items):
        self.seen += len(items)
        return [(self.sure(item), 0.0) for item in items]


def redness(image: Image.Image) -> float:
    """Of an image's first pixel, in [0, 1]."""
    return image.getpixel((0, 0))[0] / 255


@pytest.fixture(scope="session")
def word_judge(tmp_path_factory, processor) -> str:
    """Untrained: as sure of anything as chance has it."""
    folder = tmp_path_factory.mktemp("words")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(processor.tokenizer),
        dim=16,
        hidden_dim=16,
        n_layers=1,
        n_heads=2,
        id2label={0: "normal", 1: "nsfw"},
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return str(folder)
