"""Pretrains the bundled demo model, as the web's CLIP was: on safe and unsafe scenes alike.

Run `python tools/pretrain.py` to make `safe_clip/demo/base/` anew, in about 90 minutes on
two cores. Scenes are drawn as training goes, in the two training styles and with every unsafe
stand-in, so that the base knows what fine-tuning is to unlearn; the loss is `CLIPModel`'s own. The
later stages put each scene and its unsafe counterpart into one batch, so that the base tells them
apart well. An interrupted run goes on from its last checkpoint when started again; delete
`safe_clip/demo/base-checkpoints/` to start anew.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from safe_clip.demo.towers import BASE_DIR
from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.demo.world import IMAGE_SIZE, TRAINING_STYLES, draw_quadruplet

VOCAB_SIZE = 1600
MAX_LENGTH = 77


@dataclass(frozen=True)
class Stage:
    """A stretch of pretraining with a cosine schedule of its own."""

    name: str
    steps: int
    both_sides: bool  # whether a scene and its unsafe counterpart meet in one batch, as hard negatives


STAGES = (
    Stage("pretrain", 3600, both_sides=False),
    Stage("pretrain-pairs", 2400, both_sides=True),
    Stage("pretrain-pairs-again", 1500, both_sides=True),
)


class Scenes(Dataset):
    """`length` scenes, each a list of captioned images: one side by the toss of a coin, or both."""

    def __init__(self, length: int, prefix: str, both_sides: bool):
        self.length = length
        self.prefix = prefix
        self.both_sides = both_sides
        self.unsafe = tuple(c for c in load_vocabulary() if c.category is not None)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[dict]:
        seed = f"{self.prefix}/{index}"
        row = draw_quadruplet(seed, TRAINING_STYLES, self.unsafe)
        sides = ("safe", "unsafe") if self.both_sides else (random.Random(f"side/{seed}").choice(("safe", "unsafe")),)
        return [{"caption": row[f"{side}_caption"], "image": row[f"{side}_image"]} for side in sides]


@dataclass
class Collator:
    processor: CLIPProcessor

    def __call__(self, scenes: list[list[dict]]) -> dict:
        items = [item for scene in scenes for item in scene]
        batch = self.processor(
            text=[item["caption"] for item in items],
            images=[item["image"] for item in items],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        return {**batch, "return_loss": True}


def load_tokenizer(captions: int = 20_000) -> CLIPTokenizer:
    """The bundled tokenizer; where it is not there, one whose byte pairs are learnt from captions of the world.

    It is kept because training it anew numbers the single letters in another order each time, which
    would make every pretraining a different one.
    """
    if (BASE_DIR / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(BASE_DIR)
    scenes = Scenes(captions, "tokenizer", both_sides=False)
    texts = (scenes[i][0]["caption"] for i in range(captions))
    return CLIPTokenizer(model_max_length=MAX_LENGTH).train_new_from_iterator(
        texts, vocab_size=VOCAB_SIZE, show_progress=False
    )


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A `CLIPModel` of about 1.5 million parameters with random weights."""
    width = 128
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4, "projection_dim": width}
    text = {
        **tower,
        "num_hidden_layers": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def run_stage(stage: Stage, model: CLIPModel, processor: CLIPProcessor, args: argparse.Namespace) -> None:
    """Trains the model in place; goes on from the stage's last checkpoint, if it has one."""
    scenes = args.batch_size // (2 if stage.both_sides else 1)
    folder = Path(f"{args.output_dir}-checkpoints") / stage.name
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=stage.steps,
            per_device_train_batch_size=scenes,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=stage.steps // 20,
            weight_decay=0.1,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=50,
            save_steps=600,
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_num_workers=1,
            dataloader_persistent_workers=True,
            dataloader_prefetch_factor=4,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            seed=args.seed,
        ),
        data_collator=Collator(processor),
        train_dataset=Scenes(stage.steps * scenes, stage.name, stage.both_sides),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=BASE_DIR)
    parser.add_argument("--batch_size", type=int, default=128, help="captioned images a step")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer()
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    processor = CLIPProcessor(image_processor, tokenizer)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
    for stage in STAGES:
        run_stage(stage, model, processor, args)
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
