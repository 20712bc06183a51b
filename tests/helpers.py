"""What tests share: a tiny CLIP, tiny quadruplets, a trainer of both, and how its weights are compared."""

import importlib.util
import sys
from pathlib import Path

import torch
from datasets import Features, Image, Value
from PIL import Image as PILImage
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, lora_config

ROOT = Path(__file__).parent.parent
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white"]
FEATURES = Features(
    {
        "safe_caption": Value("string"),
        "safe_image": Image(),
        "unsafe_caption": Value("string"),
        "unsafe_image": Image(),
    }
)
NO_DROPOUT = lora_config(lora_alpha=16, lora_dropout=0.0)


def build_model(processor: CLIPProcessor, seed: int = 0, layers: int = 2) -> CLIPModel:
    torch.manual_seed(seed)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "projection_dim": 24,
        # Large enough for embeddings of different inputs to differ.
        "initializer_factor": 2.0,
    }
    tokenizer = processor.tokenizer
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    return CLIPModel(config).eval()


def make_rows(count: int = 24) -> dict[str, list]:
    """Rows of two-coloured squares; the unsafe side has a mark in the middle."""
    rows = {name: [] for name in FEATURES}
    for index in range(count):
        a, b = COLOURS[index % 8], COLOURS[(index // 8 + index + 1) % 8]
        safe = PILImage.new("RGB", (16, 16), a)
        safe.paste(PILImage.new("RGB", (8, 16), b), (8, 0))
        unsafe = safe.copy()
        unsafe.paste(PILImage.new("RGB", (6, 6), (255, 0, 255)), (5, 5))
        rows["safe_caption"].append(f"a {a} square beside a {b} one")
        rows["unsafe_caption"].append(f"a {a} square beside a {b} one with a mark")
        rows["safe_image"].append(safe)
        rows["unsafe_image"].append(unsafe)
    return rows


def make_trainer(
    processor, rows, folder, peft_config=NO_DROPOUT, eval_rows=None, compute_metrics=None, model=None, **settings
):
    defaults = {
        "objective": "safe_clip",
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "bf16": False,
    }
    args = SafeCLIPTrainingArguments(output_dir=str(folder), **(defaults | settings))
    return SafeCLIPTrainer(
        model or build_model(processor),
        args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        peft_config=peft_config,
        compute_metrics=compute_metrics,
    )


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def load_script(name: str):
    """A script, such as `train.py`, as a module; those beside it are found, as when Python runs it."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its dataclass looks for names
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
