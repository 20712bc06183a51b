"""Pretrains the base of the second world, which knows English before it sees a scene.

    python tools/second_world/pretrain.py --output_dir FOLDER          after make.py has fetched and drawn; hours
    python tools/second_world/pretrain.py --output_dir FOLDER --smoke  a few steps of a tiny model, to try it

`english` regresses the text encoder on what a sentence encoder makes of words, of what they are said to mean, and of
captions. `images` shows the vision tower what each image and each of its patches means. `scenes` brings both together,
with each scene and its unsafe counterpart in one batch, and goes on with English beside. Like the web's CLIP, it sees
every stand-in there is. The same command goes on with a training that was interrupted; delete FOLDER/checkpoints to
start anew.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from learner import Learner
from lessons import English, EnglishCollator, SceneCollator, Scenes
from meanings import DIMENSIONS, Meanings, has_amx
from safetensors.torch import load_model, save_model
from scenery import IMAGE_SIZE, PATCH
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from safe_clip.errors import UserError, run

MAX_LENGTH = 77
LARGEST_FILE = 16e6  # bytes of weights


@dataclass(frozen=True)
class Shape:
    """How large the model is. `tokens` is of its vocabulary."""

    width: int = 192
    heads: int = 4
    text_layers: int = 4
    vision_layers: int = 6
    tokens: int = 8000


@dataclass(frozen=True)
class Stage:
    """A stretch of pretraining with a cosine schedule of its own; `batch` is of texts, or of scenes with both sides."""

    name: str
    steps: int
    batch: int
    rate: float


STAGES = (
    Stage("english", 3500, 256, 1e-3),
    Stage("images", 1500, 64, 1e-3),
    Stage("scenes", 5000, 64, 6e-4),
)
SMOKE = (Shape(32, 2, 1, 1, 600), tuple(replace(stage, steps=4, batch=8) for stage in STAGES))


def load_tokenizer(folder: Path, meanings: Meanings, tokens: int) -> CLIPTokenizer:
    """The tokenizer in a folder; where it is not there, one whose byte pairs are learnt from all that is taught.

    It is kept because training it anew would number tokens in another order.
    """
    if not (folder / "tokenizer.json").exists():
        made = CLIPTokenizer(model_max_length=MAX_LENGTH).train_new_from_iterator(
            iter(meanings.texts), vocab_size=tokens, show_progress=False
        )
        part = folder.with_name(f"{folder.name}.part")
        made.save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    sizes = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    return CLIPProcessor(CLIPImageProcessor(**sizes), tokenizer)


def build_model(tokenizer: CLIPTokenizer, shape: Shape) -> CLIPModel:
    """A `CLIPModel` with random weights, of about 6 million parameters in the shape that is the default."""
    tower = {
        "hidden_act": "gelu",
        "hidden_size": shape.width,
        "intermediate_size": 4 * shape.width,
        "num_attention_heads": shape.heads,
        "projection_dim": DIMENSIONS,
    }
    text = {
        **tower,
        "num_hidden_layers": shape.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "num_hidden_layers": shape.vision_layers, "image_size": IMAGE_SIZE, "patch_size": PATCH}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIMENSIONS))
    # In bfloat16 torch's own attention on CPUs takes more than half of a step, most of it backwards; this does not.
    clip.set_attn_implementation("eager")
    return clip


class PretrainingTrainer(Trainer):
    """Takes items in their order, which begins with what is easy, and logs the terms of the loss beside it."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= {name: round(value, 4) for name, value in self.model.parts.items()}
        super().log(logs, *args, **kwargs)


def run_stage(
    stage: Stage,
    learner: Learner,
    data: Dataset,
    collator: Callable,
    folder: Path,
    workers: int = 1,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Trains in place; goes on from the stage's last checkpoint, if it has one.

    Args:
        stage: how long, in what batches.
        learner: what is trained.
        data: at least as many items as all steps take.
        collator: makes batches of them.
        folder: for checkpoints.
        workers: processes that make batches.
        seed: of what chance there is; items follow from their numbers.
        callbacks: of the trainer.
    """
    trainer = PretrainingTrainer(
        learner,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=stage.steps,
            per_device_train_batch_size=stage.batch,
            learning_rate=stage.rate,
            lr_scheduler_type="cosine",
            warmup_steps=stage.steps // 20,
            weight_decay=0.1,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=has_amx(),
            use_cpu=True,
            logging_steps=min(50, max(1, stage.steps // 6)),
            save_steps=min(500, max(1, stage.steps // 2)),
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            dataloader_prefetch_factor=4 if workers else None,
            dataloader_pin_memory=False,
            report_to="none",
            seed=seed,
        ),
        data_collator=collator,
        train_dataset=data,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)


def pretrain(
    folder: Path, shape: Shape, stages: Sequence[Stage], workers: int = 1, seed: int = 0, into: Path | None = None
) -> None:
    """Trains a base and writes it.

    Args:
        folder: has `meanings.safetensors` and `sprites.parquet`.
        shape, stages: of the model, and how it is trained.
        workers: processes that make batches.
        seed: of its first weights.
        into: gets `base`, `tokenizer` and `checkpoints`; by default, `folder`.

    Raises:
        UserError: what is to be taught is missing.
    """
    into = into or folder
    for name in ("meanings.safetensors", "sprites.parquet"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing: python tools/second_world/make.py --output_dir {folder}")
    torch.manual_seed(seed)
    meanings = Meanings.load(folder / "meanings.safetensors")
    tokenizer = load_tokenizer(into / "tokenizer", meanings, shape.tokens)
    processor = build_processor(tokenizer)
    clip = build_model(tokenizer, shape)
    print(f"{clip.num_parameters():,} parameters, {len(tokenizer):,} tokens, {len(meanings.texts):,} texts", flush=True)
    learner = Learner(clip, meanings.things)
    for stage in stages:
        done = into / "checkpoints" / f"{stage.name}.safetensors"
        if done.exists():
            load_model(learner, done)
            continue
        print(f"Stage {stage.name}: {stage.steps:,} steps of {stage.batch}", flush=True)
        count, captions = stage.steps * stage.batch, stage.name == "scenes"
        if stage.name == "english":
            data, collator = English(count, stage.name, meanings), EnglishCollator(processor)
        else:
            data = Scenes(count, stage.name, meanings if captions else None)
            collator = SceneCollator(processor, folder / "sprites.parquet", captions)
        run_stage(stage, learner, data, collator, into / "checkpoints" / stage.name, workers, seed)
        save_model(learner, str(done.with_suffix(".part")))
        done.with_suffix(".part").rename(done)
    write(clip, processor, into / "base")


def write(clip: CLIPModel, processor: CLIPProcessor, folder: Path) -> None:
    """The base, an ordinary CLIP in half precision; whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    clip.half().save_pretrained(part)
    processor.save_pretrained(part)
    size = (part / "model.safetensors").stat().st_size
    assert size <= LARGEST_FILE, f"{size:,} bytes of weights; at most {LARGEST_FILE:,.0f}"
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    print(f"The base is in {folder}: {size / 1e6:.1f} MB of weights.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model, in FOLDER/smoke")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape, stages = SMOKE if args.smoke else (Shape(), STAGES)
    into = args.output_dir / "smoke" if args.smoke else None
    pretrain(args.output_dir, shape, stages, args.workers, args.seed, into)


if __name__ == "__main__":
    run(main)
