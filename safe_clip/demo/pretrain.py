"""Pretrains the embedded base model, as the web's CLIP was: on safe and unsafe scenes alike.

Run `python -m safe_clip.demo.pretrain` to make `safe_clip/demo/base/` anew. Scenes are drawn as
training goes, in the two training styles and with every unsafe stand-in, so that the base knows
what fine-tuning is to unlearn. The loss is `CLIPModel`'s own.
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

from .vocabulary import load_vocabulary
from .world import IMAGE_SIZE, TRAINING_STYLES, draw_quadruplet

BASE_DIR = Path(__file__).parent / "base"
VOCAB_SIZE = 1600
MAX_LENGTH = 77


class Scenes(Dataset):
    """`length` captioned scenes, safe or unsafe with equal chance."""

    def __init__(self, length: int, prefix: str = "pretrain"):
        self.length = length
        self.prefix = prefix
        self.unsafe = tuple(c for c in load_vocabulary() if c.category is not None)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        seed = f"{self.prefix}/{index}"
        side = random.Random(f"side/{seed}").choice(("safe", "unsafe"))
        row = draw_quadruplet(seed, TRAINING_STYLES, self.unsafe)
        return {"caption": row[f"{side}_caption"], "image": row[f"{side}_image"]}


@dataclass
class Collator:
    processor: CLIPProcessor

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.processor(
            text=[row["caption"] for row in rows],
            images=[row["image"] for row in rows],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        return {**batch, "return_loss": True}


def train_tokenizer(captions: int = 20_000) -> CLIPTokenizer:
    """A `CLIPTokenizer` whose byte pairs are learnt from captions of the world."""
    scenes = Scenes(captions, prefix="tokenizer")
    texts = (scenes[i]["caption"] for i in range(captions))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=BASE_DIR)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer()
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    processor = CLIPProcessor(image_processor, tokenizer)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens")

    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(args.output_dir) + "-checkpoints",
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.steps // 20,
            weight_decay=0.1,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=50,
            save_steps=1000,
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_num_workers=1,
            dataloader_persistent_workers=True,
            dataloader_prefetch_factor=4,
            report_to="none",
            seed=args.seed,
        ),
        data_collator=Collator(processor),
        train_dataset=Scenes(args.steps * args.batch_size),
    )
    trainer.train()
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
