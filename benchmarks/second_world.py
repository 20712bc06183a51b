"""The package's defaults on a world that nobody tuned them on, before and after, in percent.

    python tools/second_world/make.py --output_dir FOLDER
    python benchmarks/second_world.py FOLDER --seeds 0 1 2

Trains `safe-clip train --model FOLDER/base --dataset FOLDER/data` with each seed and touches no setting. Where a
caption names the category of what it shows ("a dagger, which is a weapon"), training may have shown that word though
never the thing: what is unseen is counted with and without such captions. Runs are kept under runs/ and not repeated
while code, base and data stay as they are.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from sweep import ROOT, cell, run

import safe_clip
from safe_clip.embedding.embedder import Embedder
from safe_clip.errors import UserError
from safe_clip.errors import run as ending_in_one_line
from safe_clip.evaluation.quadruplets import QuadrupletItems, embed_quadruplets
from safe_clip.evaluation.redirection import redirection

NAMED = "names_category"  # the column that says whether an unsafe caption uses the word of its category
SPLITS = ("test", "held_out_concepts", "held_out_category", "held_out_style")
UNSEEN = ("held_out_concepts", "held_out_category")
PLAIN = "unsafe_text_plain"  # of captions that do not name their category
# Lines of the table: what is asked, split, figure.
LINES = (
    ("unsafe captions that find a safe image first", "test", "redirection_unsafe_text"),
    ("unsafe images that find a safe caption first", "test", "redirection_unsafe_image"),
    ("safe captions that find a safe image first", "test", "redirection_safe_text"),
    ("safe images that find a safe caption first", "test", "redirection_safe_image"),
    ("safe captions that find their own image first", "test", "retrieval_t2i"),
    ("safe images that find their own caption first", "test", "retrieval_i2t"),
    ("unsafe captions about unseen concepts", "held_out_concepts", "redirection_unsafe_text"),
    ("... that do not name the category", "held_out_concepts", PLAIN),
    ("unsafe images of unseen concepts", "held_out_concepts", "redirection_unsafe_image"),
    ("unsafe captions about an unseen category", "held_out_category", "redirection_unsafe_text"),
    ("... that do not name it", "held_out_category", PLAIN),
    ("unsafe images of an unseen category", "held_out_category", "redirection_unsafe_image"),
    ("unsafe captions, unseen style", "held_out_style", "redirection_unsafe_text"),
    ("unsafe images, unseen style", "held_out_style", "redirection_unsafe_image"),
)


def plain_rate(items: QuadrupletItems, named: Sequence[bool]) -> float:
    """The share of unsafe captions that find a safe image first among all, of those that do not name their category."""
    rates = redirection(items, ks=(1,))["unsafe_text_safe_rate_at_1"]
    return rates[~torch.tensor(named)].nanmean().item()


def plain_rates(model: str, rows: dict[str, Dataset]) -> dict[str, float]:
    """Of a model, for each split."""
    embedder = Embedder(safe_clip.load_clip(model), safe_clip.load_processor(model), "model")
    return {split: plain_rate(embed_quadruplets(embedder, each, split), each[NAMED]) for split, each in rows.items()}


def digest(folder: Path) -> str:
    """Of the base and the data, so that figures of others are never taken for theirs."""
    files = [folder / "base" / "model.safetensors", *sorted((folder / "data").glob("*.parquet"))]
    if len(files) < 2 or not files[0].exists():
        raise UserError(f"{folder} has no base or no data: python tools/second_world/make.py --output_dir {folder}")
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what tools/second_world/make.py made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    args = parser.parse_args()

    base, data = str(args.folder / "base"), str(args.folder / "data")
    runs = args.runs / f"second-world-{digest(args.folder)}"
    splits = safe_clip.load_quadruplets(data)
    rows = {split: splits[split] for split in UNSEEN}
    results = [run(None, ["--model", base, "--dataset", data], list(SPLITS), seed, runs) for seed in args.seeds]
    plain = {"before": [plain_rates(base, rows)], "after": [plain_rates(result["folder"], rows) for result in results]}

    print("| | before | after |\n|---|---|---|")
    for title, split, figure in LINES:
        cells = []
        for when in ("before", "after"):
            measured = results[:1] if when == "before" else results
            values = [each[split] for each in plain[when]] if figure == PLAIN else []
            cells.append(cell(values or [result[when][split][figure] for result in measured]))
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    ending_in_one_line(main)
