"""CLIPs of real sizes with random weights, and rows for them: for measuring speed, which weights do not change."""

import warnings

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from safe_clip import load_processor, load_quadruplets

PIXELS = 224
TOKENS = (13, 20)  # of captions of natural length
# Of OpenAI's models, and one to try a benchmark with.
SHAPES = {  # width, heads, layers of the text encoder; the same and patch of the vision encoder
    "ViT-B/32": ((512, 8, 12), (768, 12, 12, 32), 512),
    "ViT-L/14": ((768, 12, 12), (1024, 16, 24, 14), 768),
    "tiny": ((64, 2, 2), (64, 2, 2, 56), 32),
}


def build_processor() -> CLIPProcessor:
    """The bundled tokenizer, and images of 224 pixels."""
    return CLIPProcessor(CLIPImageProcessor(), load_processor("demo").tokenizer)


def build_clip(shape: str, tokenizer) -> CLIPModel:
    """A CLIP of a shape with random weights."""
    (width, heads, layers), (vision_width, vision_heads, vision_layers, patch), dimension = SHAPES[shape]
    torch.manual_seed(0)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers, **ends}
    text |= {"intermediate_size": 4 * width, "vocab_size": len(tokenizer)}
    vision = {"hidden_size": vision_width, "num_attention_heads": vision_heads, "num_hidden_layers": vision_layers}
    vision |= {"intermediate_size": 4 * vision_width, "patch_size": patch, "image_size": PIXELS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=dimension)
    for part in (config.text_config, config.vision_config):
        part.projection_dim = dimension
    return CLIPModel(config)


def make_rows(count: int, tokenizer, noise: bool = True) -> Dataset:
    """Quadruplets of captions of natural length and images of noise, or of one colour, which take no room."""
    captions = list(load_quadruplets("demo")["train"]["safe_caption"])
    lengths = map(len, tokenizer(captions)["input_ids"])
    captions = [caption for caption, length in zip(captions, lengths, strict=True) if TOKENS[0] <= length <= TOKENS[1]]
    random = np.random.default_rng(0)
    shape = (PIXELS, PIXELS, 3)
    image = PILImage.fromarray(random.integers(0, 256 if noise else 1, shape, dtype=np.uint8))
    features = Features(
        {f"{side}_{kind}": feature for side in ("safe", "unsafe") for kind, feature in
         (("caption", Value("string")), ("image", Image()))}
    )  # fmt: skip
    drawn = random.choice(len(captions), 2 * count)
    return Dataset.from_dict(
        {
            "safe_caption": [captions[index] for index in drawn[:count]],
            "safe_image": [image] * count,
            "unsafe_caption": [captions[index] for index in drawn[count:]],
            "unsafe_image": [image] * count,
        },
        features=features,
    )
