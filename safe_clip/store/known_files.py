"""Files by their names and marks: what is written here, what others load, what is nobody's matter."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .fingerprints import file_digest

MANIFEST = "safe_clip.json"  # says what this package wrote
LOCK = ".safe_clip.lock"
REPLACED = "replaced"  # a folder with what was in the way

# What others read of a model's folder: a file of these that is left over changes what they load.
LOADED = ("adapter_config.json", "adapter_model.*", "config.json", "generation_config.json", "*.safetensors")
LOADED += ("*.safetensors.index.json", "pytorch_model*", "tf_model.h5", "flax_model.msgpack", "model.onnx", "onnx")
LOADED += ("*processor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*")
LOADED += ("merges.txt", "spiece.model", "chat_template*", "modules.json", "*sentence_*.json", "*_Pooling")
LOADED += ("open_clip_*", "adapter/adapter_*")
# What is of certain weights, and not theirs any more when others take their place.
FIGURES = ("results.json", "evaluation.json", "loss_curves.png")
CARD = "README.md"
# What this package writes: by these it is known where there is no manifest, as on the Hub and of earlier versions.
WRITTEN = ("config.json", "model*.safetensors", "model.safetensors.index.json", "generation_config.json")
WRITTEN += ("*processor_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
WRITTEN += ("merges.txt", "spiece.model", "training_args.json", "adapter/adapter_*", "adapter/README.md")
WRITTEN += ("modules.json", "sentence_bert_config.json", "bad_rows.txt", *FIGURES)
WRITTEN += ("open_clip_*", "onnx/model.onnx*", "report.html", "strength.json", "strength.png", "audit.json")
# By which files of ours are known without a manifest: what the text has.
MARKS = {
    CARD: ("<!-- safe-clip: ", "A CLIP fine-tuned with safe-clip"),
    "training_args.json": ('"objective"',),
    "results.json": ('"safe_clip"', '  "before": {'),
    "evaluation.json": ('"safe_clip"',),
    "audit.json": ('"safe_clip"',),
    "text_to_image.json": ('"safe_clip"',),
    "image_to_text.json": ('"safe_clip"',),
    "report.html": ("safe-clip",),
    "failed.csv": ("id,address,reason",),
}
# What trainers and loggers leave, that is neither read nor written here. Of hidden files nothing is asked.
HARMLESS = (MANIFEST, "runs", "wandb", "mlruns", "logs", "evaluation", "emissions*.csv", "events.out.*")
HARMLESS += ("*_results.json", "trainer_state.json", "lost+found", "__pycache__", "codecarbon*")
HARMLESS += ("*.log", "*.out", "*.err")
CHECKPOINTS = "checkpoint-*"  # which a Trainer writes, and deletes
RUN_MARKS = ("safe_clip_run.json", "training_rows.json")  # of a checkpoint, and of nothing else
CHECKPOINT_MARKS = (*RUN_MARKS, "training_args.json")
# Of what others put here, what is moved before anything is written; files of a model are, once a whole one is there.
FIRST_MOVED = (CARD, "bad_rows.txt", *FIGURES, CHECKPOINTS)
# Places that are written, where a link would lead to what is not in the folder.
WRITTEN_TO = (
    *WRITTEN,
    *LOADED,
    *FIRST_MOVED,
    *MARKS,
    MANIFEST,
    LOCK,
    REPLACED,
    "adapter",
    "onnx",
    "trainer_state.json",
)
WRITTEN_TO += ("*_results.json",)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder was made by training with this package, as far as it came, and is no link to one."""
    if folder.is_symlink():
        return False
    if any((folder / mark).is_file() for mark in RUN_MARKS):
        return True
    arguments = folder / "training_args.json"  # which a whole model has too
    return arguments.is_file() and has_mark(arguments) and not (folder / MANIFEST).exists()


def is_cut_off(folder: Path) -> bool:
    """Whether a checkpoint's folder has nothing in it but the first files of one."""
    cut = (*LOADED, *WRITTEN, CARD, "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth")
    return folder.is_dir() and not folder.is_symlink() and all(fits(each.name, cut) for each in folder.iterdir())


def file_facts(path: Path) -> dict[str, Any]:
    """The size of a file, and a digest of what it holds."""
    return {"size": path.stat().st_size, "digest": file_digest(path)}


def fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns if ("/" in pattern) == ("/" in name))


def has_mark(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 22)
    except OSError:
        return False
    return any(mark in text for mark in MARKS[path.name])
