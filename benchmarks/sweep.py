"""Trains settings x seeds with `safe-clip train` and prints their figures side by side, in percent.

    python benchmarks/sweep.py demo --seeds 0 1 2 --splits test held_out_concepts held_out_style
    python benchmarks/sweep.py demo --grid learning_rate=5e-4,1e-3 --grid lora_alpha=1,16
    python benchmarks/sweep.py paper --flags "--model demo --dataset demo --num_train_epochs 5"

Tuning reads `validation`, the default; the other splits are for the settings chosen there. Runs are kept
under runs/ and not repeated while code and base model stay as they are, so an interrupted sweep goes on
where it was.
"""

import argparse
import hashlib
import itertools
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Part of a run's key, so that figures of an older base model or older code are never taken for new ones.
SOURCES = b"".join(
    path.read_bytes()
    for path in [ROOT / "train.py", ROOT / "eval.py", *sorted((ROOT / "safe_clip").rglob("*"))]
    if path.is_file() and path.suffix in (".py", ".yaml", ".parquet", ".json", ".safetensors")
)
# For --loss_weights: what is compared are pooled embeddings alone.
NO_STATES = {f"{what}_{of}_states": 0 for what in ("preservation", "redirection") for of in ("text", "image")}
FIGURES = {
    "redirection_safe_text": "safe caption",
    "redirection_safe_image": "safe image",
    "redirection_unsafe_text": "unsafe caption",
    "redirection_unsafe_image": "unsafe image",
    "retrieval_t2i": "recall@1 t2i",
    "retrieval_i2t": "recall@1 i2t",
}


def call(verb: str, flags: list[str]) -> None:
    """Runs `safe-clip VERB`; where it fails, ends with what it said last."""
    command = [sys.executable, "-m", "safe_clip", verb, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"safe-clip {verb} {shlex.join(flags)} failed:\n{done.stdout[-3000:]}")


def run(config: str | None, flags: list[str], splits: list[str], seed: int, runs: Path) -> dict:
    """The results of one training run and its `folder`, from disk where it has been made before. Without a recipe or a
    file of settings, of the defaults."""
    command = [*([config] if config else []), *flags, "--eval_splits", *splits, "--seed", str(seed)]
    own = Path(config).read_bytes() if config and Path(config).is_file() else b""  # recipes are of SOURCES
    folder = runs / hashlib.sha256(SOURCES + own + json.dumps(command).encode()).hexdigest()[:12]
    if not (folder / "results.json").exists():
        print("safe-clip train", *command, "->", folder, file=sys.stderr, flush=True)
        quiet = ["--report_to", "none", "--disable_tqdm", "true", "--output_dir", str(folder)]
        call("train", [*command, *quiet])
    return json.loads((folder / "results.json").read_text()) | {"folder": str(folder)}


def cell(values: list[float], factor: float = 100, digits: int = 1) -> str:
    """Mean and, for several seeds, standard deviation, by default in percent."""
    mean = f"{factor * statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a recipe's name, or a YAML file of settings")
    parser.add_argument("--grid", action="append", default=[], help="name=value,value,...; several make a product")
    parser.add_argument("--flags", default="", help="further flags of safe-clip train, for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--splits", nargs="+", default=["validation"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    args = parser.parse_args()

    axes = [(name, values.split(",")) for name, values in (axis.split("=", 1) for axis in args.grid)]
    print("| setting | split |", " | ".join(FIGURES.values()), "|")
    print("|---|---|" + "---|" * len(FIGURES))
    for number, choice in enumerate(itertools.product(*(values for _, values in axes))):
        named = list(zip((name for name, _ in axes), choice, strict=True))
        flags = shlex.split(args.flags) + [word for name, value in named for word in (f"--{name}", value)]
        results = [run(args.config, flags, args.splits, seed, args.runs) for seed in args.seeds]
        label = ", ".join(f"{name} {value}" for name, value in named) or Path(args.config).name
        for title, when in [("base", "before")] * (number == 0) + [(label, "after")]:
            for split in args.splits:
                rows = [result[when][split] for result in results]
                rows = rows[:1] if when == "before" else rows
                cells = " | ".join(cell([row[name] for row in rows]) for name in FIGURES)
                print(f"| {title} | {split} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
