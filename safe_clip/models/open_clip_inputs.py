"""How open_clip makes tokens and pixels, and what it has to be told for them to be those of a processor."""

import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from ..errors import UserError
from ..store.fingerprints import secure_digest

CONFIG_FILE = "open_clip_config.json"
OPENAI_VOCABULARY = 49408  # of the tokenizer that open_clip brings along
OPENAI_TOKENS = "f3a512563cbc8e56c4c12aaed70f117e14aaf4753c84e7a56ae7c473d8bdbec7"
INTERPOLATIONS = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
ALIKE = 0.02  # of the range from black to white: what ways of rounding make of a pixel is less


def has_openai_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer cuts captions as the one that open_clip brings along: the same tokens, numbers and merges."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if len(tokenizer) != OPENAI_VOCABULARY or not model.get("merges"):
        return False
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    known = secure_digest(json.dumps([tokens, merges])) == OPENAI_TOKENS
    return known and tokenizer("A DOG")["input_ids"] == tokenizer("a dog")["input_ids"]


def preprocess_cfg(images: BaseImageProcessor, side: int) -> dict[str, Any]:
    """What open_clip is told of images: that they become the pixels that an image processor makes.

    Args:
        images: the image processor.
        side: of the square that the model takes, in pixels.

    Raises:
        UserError: open_clip cannot make them.
    """
    if images.do_resize and images.resample not in INTERPOLATIONS:
        raise UserError(
            f"open_clip resizes images by {' or '.join(INTERPOLATIONS.values())}, but the image processor by "
            f"{Image.Resampling(images.resample).name.lower()} (its `resample`)."
        )
    # open_clip divides by 255, and always normalises.
    factor = 255 * (images.rescale_factor if images.do_rescale else 1)
    factor = 1 if abs(factor - 1) < 1e-6 else factor
    mean, std = (images.image_mean, images.image_std) if images.do_normalize else (0.0, 1.0)
    cfg = {
        "mean": [value / factor for value in _three(mean)],
        "std": [value / factor for value in _three(std)],
        "interpolation": INTERPOLATIONS.get(images.resample, "bicubic"),
        "resize_mode": "shortest" if "shortest_edge" in images.size else "squash",
    }
    image = _example(side)
    ours, theirs = images(image, return_tensors="pt")["pixel_values"][0], _pixels(image, side, cfg)
    sides = [_sides(images.size), *([_sides(images.crop_size)] if images.do_center_crop else [])]
    # A pixel more or less hardly shows in an example.
    same = ours.shape == theirs.shape and {length for size in sides for length in size.values()} == {side}
    if not same or not ((ours - theirs).abs() * torch.tensor(cfg["std"])[:, None, None]).max() < ALIKE:
        names = ("do_resize", "do_center_crop", "rescale_factor", "image_mean", "image_std")
        settings = ", ".join(f"{name} {getattr(images, name, None)}" for name in names)
        settings = f"size {sides[0]}, crop_size {sides[-1]}, {settings}"
        raise UserError(
            f"open_clip resizes images to {side} pixels and crops them to {side}x{side}, or squashes them to that, "
            f"which gives other pixels than the image processor with {settings}."
        )
    return cfg


def _sides(size: Any) -> dict[str, int]:
    """What a size says, without what it leaves open."""
    return {name: side for name, side in dict(size).items() if side}


def _three(values: float | list[float]) -> list[float]:
    return list(values) if isinstance(values, list | tuple) else [values] * 3


def _example(side: int) -> Image.Image:
    """An image three times as wide as high, so large that nothing of what is cropped lies between pixels."""
    high, wide = 2 * side, 6 * side
    down, right = np.mgrid[0 : 1 : high * 1j, 0 : 1 : wide * 1j]
    # Slow changes, so that ways of interpolating agree, and other sizes or places do not.
    waves = [np.sin(9 * right + 2 * down), np.cos(12 * right - 3 * down), np.sin(4 * down + 15 * right)]
    return Image.fromarray(np.uint8(np.round(127.5 + 127.5 * np.stack(waves, axis=-1))))


def _pixels(image: Image.Image, side: int, cfg: dict[str, Any]) -> Tensor:
    """3 x side x side pixels as open_clip makes them."""
    wide, high = image.size
    short = min(wide, high)
    size = (side, side) if cfg["resize_mode"] == "squash" else (side * wide // short, side * high // short)
    image = image.resize(size, Image.Resampling[cfg["interpolation"].upper()])
    left, top = (round((length - side) / 2) for length in size)
    image = image.crop((left, top, left + side, top + side))
    raw = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(cfg[name])[:, None, None] for name in ("mean", "std"))
    return (raw - mean) / std
