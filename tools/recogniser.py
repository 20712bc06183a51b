"""Trains the bundled demo's recogniser anew, in minutes on a GPU: `python tools/recogniser.py`.

It prints how well it knows scenes that it was not trained on.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scenes import Scenes, draw_scenes
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    get_cosine_schedule_with_warmup,
)

from safe_clip.demo.recogniser import RECOGNISER_DIR, SURE, labels
from safe_clip.demo.vocabulary import load_vocabulary

IMAGE_SIZE = 32  # pixels, of the images that it is to judge
SEEN_SIZE = 64  # to which they are enlarged


def build_recogniser() -> ResNetForImageClassification:
    """One with random weights, about a million of them."""
    names = labels()
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=48,
            hidden_sizes=[48, 96, 192],
            depths=[2, 2, 1],
            layer_type="basic",
            problem_type="multi_label_classification",
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    )


def image_processor() -> ConvNextImageProcessor:
    """Enlarges images to `SEEN_SIZE` and brings their levels to -1..1."""
    size = {"shortest_edge": SEEN_SIZE}
    return ConvNextImageProcessor(size=size, crop_pct=1.0, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _pixels(images: Tensor) -> Tensor:
    pixels = images.float() / 127.5 - 1
    return F.interpolate(pixels, SEEN_SIZE, mode="bilinear", antialias=True)


def _roughened(pixels: Tensor) -> Tensor:
    """Half of the images a little blurred or noisy, as generated ones are."""
    few = (len(pixels), 1, 1, 1)
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(few, device=pixels.device) * (torch.rand(few, device=pixels.device) < 0.5)
    noise = 0.15 * torch.rand(few, device=pixels.device) * torch.randn_like(pixels)
    return torch.lerp(pixels, soft, share) + noise


@torch.no_grad()
def accuracy(model: nn.Module, scenes: Scenes, device: torch.device) -> dict[str, float]:
    """How well it knows scenes, in [0, 1].

    Returns:
        `recall` and `precision` over all things shown, and the same of unsafe stand-ins alone.
    """
    unsafe = torch.tensor([concept.category is not None for concept in load_vocabulary()])
    counts = torch.zeros(2, 3)  # of all things and of stand-ins: found rightly, there, found
    for rows in torch.arange(len(scenes)).split(500):
        logits = model(_pixels(scenes.images[rows].to(device))).logits
        found, there = logits.sigmoid().cpu() >= SURE, scenes.labels(rows).bool()
        for place, some in enumerate((slice(None), unsafe)):
            parts = (found & there, there, found)
            counts[place] += torch.tensor([part[:, some].sum() for part in parts])
    right, there, found = counts.T
    rates = {"recall": right / there, "precision": right / found}
    return {
        f"{name}{suffix}": rate[place].item()
        for place, suffix in enumerate(("", "_unsafe"))
        for name, rate in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=RECOGNISER_DIR)
    parser.add_argument("--scenes", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="measure the one in --output_dir; train nothing")
    args = parser.parse_args()

    accelerator = Accelerator(mixed_precision="bf16")
    if not args.measure:
        _train(args, accelerator)
    model = ResNetForImageClassification.from_pretrained(args.output_dir, dtype=torch.float32)
    model = model.to(accelerator.device).eval()
    unseen = draw_scenes(min(2000, args.scenes), "recogniser, unseen", IMAGE_SIZE)
    print({name: round(rate, 4) for name, rate in accuracy(model, unseen, accelerator.device).items()})


def _train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Trains one and saves it in `output_dir`."""
    scenes = draw_scenes(args.scenes, "recogniser", IMAGE_SIZE)
    torch.manual_seed(args.seed)
    model = build_recogniser()
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=0.05)
    scheduler = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in tqdm(range(args.steps), "Training the recogniser", mininterval=10):
        rows = torch.randint(len(scenes), (args.batch_size,))
        images = scenes.images[rows].to(accelerator.device, non_blocking=True)
        wanted = scenes.labels(rows).to(accelerator.device, non_blocking=True)
        logits = model(_roughened(_pixels(images))).logits.float()
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1).mean()
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    model.half().save_pretrained(args.output_dir)
    image_processor().save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
