"""What generators draw and say with the original encoders, with those of the paper's recipe, and with our default.

    python benchmarks/generation.py                  three seeds, the tables and images of docs/generators.md
    python benchmarks/generation.py --seeds 0 --rows 40 --splits test held_out_concepts

The generators are the bundled ones, trained on the original's states and frozen since. Each recipe is trained with
each seed; each model takes the original's place and is measured by `safe-clip generate text_to_image` and
`safe-clip generate image_to_text`, whose noise has the same seed as the training. The original has no
training: its figures vary with that noise alone. Runs are kept under runs/ and not repeated while
code and weights stay as they are.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweep import NO_STATES, ROOT, SOURCES, call, cell, run

DEMO_CONFIG, PAPER_CONFIG = "demo", "paper"
TRAINED_SPLITS = ["test", "held_out_concepts", "held_out_style"]  # as docs/results.md measures: the same run
STEPS = 15  # of denoising
ORIGINAL = "original"
RECIPES = {
    "paper recipe": (PAPER_CONFIG, ["--model", "demo", "--dataset", "demo", "--num_train_epochs", "4"]),
    "default": (DEMO_CONFIG, []),
    "default, pooled embeddings alone": (DEMO_CONFIG, ["--loss_weights", json.dumps(NO_STATES)]),
}
# Columns of the tables: title, side, figure, factor, digits.
COLUMNS = {
    "text_to_image": (
        ("unsafe prompts: unsafe image", "unsafe", "unsafe_out", 100, 1),
        ("safe things of the caption shown", "unsafe", "objects", 100, 1),
        ("CLIP score with the safe caption", "unsafe", "clip_score", 1, 1),
        ("safe prompts: unsafe image", "safe", "unsafe_out", 100, 1),
        ("things shown", "safe", "objects", 100, 1),
        ("CLIP score", "safe", "clip_score", 1, 1),
        ("FID", "safe", "fid", 1, 1),
        ("states moved", "safe", "drift", 100, 2),
    ),
    "image_to_text": (
        ("unsafe images: unsafe caption", "unsafe", "unsafe_out", 100, 1),
        ("safe things mentioned", "unsafe", "objects", 100, 1),
        ("CIDEr x 100", "unsafe", "cider", 100, 1),
        ("safe images: unsafe caption", "safe", "unsafe_out", 100, 1),
        ("things mentioned", "safe", "objects", 100, 1),
        ("CIDEr x 100", "safe", "cider", 100, 1),
        ("states moved", "safe", "drift", 100, 2),
    ),
}
GRID_RECIPE = "default"


def measure(task: str, model: str, splits: list[str], rows: int, seed: int, runs: Path) -> dict[str, dict]:
    """The figures of both roles, `{role: {split: {side: figures}}}`, from disk where they have been made before."""
    weights = Path(model, "model.safetensors").read_bytes()
    settings = json.dumps([task, splits, rows, seed, STEPS]).encode()
    folder = runs / f"generation-{hashlib.sha256(SOURCES + weights + settings).hexdigest()[:12]}"
    if not (folder / f"{task}.json").exists():
        flags = [task, "--model", model, "--baseline", "demo", "--splits", *splits, "--show_unsafe"]
        flags += ["--max_samples", str(rows), "--generation_seed", str(seed), "--output_dir", str(folder)]
        flags += ["--num_inference_steps", str(STEPS)] if task == "text_to_image" else []
        print("safe-clip generate", shlex.join(flags), flush=True)
        shared = runs / f"generation-chunks-{seed}"  # so that the original draws once for all recipes
        shared.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "generated").exists():
            (folder / "generated").symlink_to(shared.resolve(), target_is_directory=True)
        call("generate", flags)
    found = json.loads((folder / f"{task}.json").read_text())["models"]
    return {role: each["splits"] for role, each in found.items()} | {"folder": folder}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=100, help="of each split, drawn with a fixed seed")
    parser.add_argument("--splits", nargs="+", default=["test"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with its share of the cores")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    args = parser.parse_args()
    os.chdir(ROOT)

    def one(job: tuple[str, int]) -> dict[str, dict]:
        recipe, seed = job
        config, flags = RECIPES[recipe]
        folder = run(config, flags, TRAINED_SPLITS, seed, args.runs)["folder"]
        return {task: measure(task, folder, args.splits, args.rows, seed, args.runs) for task in COLUMNS}

    # Neighbours differ in their seed, so that one does not draw with the original what another just draws.
    jobs = [(recipe, seed) for recipe in args.recipes for seed in args.seeds]
    os.environ["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // args.jobs))
    with ThreadPoolExecutor(args.jobs) as pool:
        made = dict(zip(jobs, pool.map(one, jobs), strict=True))

    for task, columns in COLUMNS.items():
        for split in args.splits:
            print(f"\n{task}, {split}, {args.rows} prompts or images of each side\n")
            print("|  |", " | ".join(title for title, *_ in columns), "|")
            print("|---|" + "---|" * len(columns))
            for recipe, role in [(ORIGINAL, "baseline"), *((recipe, "model") for recipe in args.recipes)]:
                source = args.recipes[0] if recipe == ORIGINAL else recipe
                found = [made[source, seed][task][role][split] for seed in args.seeds]
                cells = [
                    cell([each[side][name]["value"] for each in found], factor, digits)
                    if all(name in each[side] for each in found)
                    else "0"  # what nothing was done to has not moved
                    for _, side, name, factor, digits in columns
                ]
                print(f"| {recipe} |", " | ".join(cells), "|")
    if GRID_RECIPE in args.recipes:
        for task in COLUMNS:
            grid = made[GRID_RECIPE, args.seeds[0]][task]["folder"] / f"{task}.png"
            shutil.copy(grid, ROOT / "docs" / f"{task}.png")
        print("\nImages are in docs/text_to_image.png and docs/image_to_text.png.")


if __name__ == "__main__":
    main()
