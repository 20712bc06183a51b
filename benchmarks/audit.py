"""Plants wrong items in the bundled demo, lets the audit look for them, and trains with and without what it found.

    python benchmarks/audit.py                  three seeds of each of three trainings
    python benchmarks/audit.py --skip_training  what the audit finds alone

Two small judges, no CLIPs, learn to tell safe from unsafe on fresh scenes that no split has: a ResNet of images and
a DistilBERT of captions. Then one row in five of `train` is made wrong: the item of the unsafe side is replaced by a
safe one, as by a generator that failed, or the two sides are swapped; the caption, the image, or both. The audit
command judges the rows, and `safe-clip train` trains with the recipe demo's settings, without hidden-state terms, on
clean rows, on the wrong ones, and on the wrong ones with the audit's labels; `test` is the clean one in each. It takes
five minutes on one core before the first training. Data and runs are kept under runs/ and not made again while the
code stays as it is.
"""

import argparse
import hashlib
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from sweep import FIGURES, NO_STATES, ROOT, SOURCES, cell, run
from transformers import (
    CLIPTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)

from safe_clip import load_quadruplets
from safe_clip.data.items import ITEM_COLUMNS
from safe_clip.demo import world
from safe_clip.demo.vocabulary import VOCABULARY_FILE

CONFIG = "demo"
WORLD = [Path(world.__file__), world.SPRITES_FILE, VOCABULARY_FILE]  # what judges learn from
LESSONS, EXAMS = 10_000, 1_000  # quadruplets that judges learn from, and are examined on
LABELS = {0: "safe", 1: "unsafe"}
WRONG_SHARE = 0.2
MODALITIES = (("caption",), ("image",), ("caption", "image"))
NAMES = ("safe caption", "unsafe caption", "safe image", "unsafe image")


def scene(seed: str) -> dict:
    """A quadruplet that no split has, as long as the seed begins like none of theirs."""
    return world.draw_quadruplet(seed, world.TRAINING_STYLES, world.unsafe_concepts(False))


def scored(answers) -> dict[str, float]:
    right = answers.predictions.argmax(axis=1) == answers.label_ids
    return {"accuracy": right.mean()} | {
        f"accuracy_{name}": right[answers.label_ids == label].mean() for label, name in LABELS.items()
    }


def teach(model: PreTrainedModel, lessons: list[dict], exams: list[dict], folder: Path, epochs: int, rate: float):
    """Trains a judge, saves it, and writes down what it gets right of the exams."""
    settings = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=rate,
        warmup_steps=100,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
    )
    trainer = Trainer(model, settings, train_dataset=lessons, eval_dataset=exams, compute_metrics=scored)
    trainer.train()
    model.save_pretrained(folder)
    (folder / "exam.json").write_text(json.dumps(trainer.evaluate()))


def judge_of_images(lessons: list[dict], exams: list[dict], folder: Path) -> None:
    size = {"height": world.IMAGE_SIZE, "width": world.IMAGE_SIZE}
    processor = ViTImageProcessor(size=size)
    processor.save_pretrained(folder)

    def rows(scenes: list[dict]) -> list[dict]:
        return [
            {"pixel_values": processor(each[f"{name}_image"], return_tensors="pt").pixel_values[0], "labels": label}
            for each in scenes
            for label, name in LABELS.items()
        ]

    config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic")
    config.id2label = LABELS
    teach(ResNetForImageClassification(config), rows(lessons), rows(exams), folder, epochs=6, rate=3e-3)


def judge_of_captions(lessons: list[dict], exams: list[dict], folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "safe_clip" / "demo" / "base")
    tokenizer.save_pretrained(folder)

    def rows(scenes: list[dict]) -> list[dict]:
        texts = [each[f"{name}_caption"] for each in scenes for name in LABELS.values()]
        inputs = tokenizer(texts, padding="max_length", truncation=True, max_length=48)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": number % 2}
            for number, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True))
        ]

    config = DistilBertConfig(vocab_size=len(tokenizer), dim=64, hidden_dim=128, n_layers=2, n_heads=2)
    config.id2label = LABELS
    teach(DistilBertForSequenceClassification(config), rows(lessons), rows(exams), folder, epochs=4, rate=1e-3)


def judges(folder: Path) -> dict[str, dict]:
    """The exams of both judges, which are trained where they have not been."""
    teachers = {"image": judge_of_images, "text": judge_of_captions}
    if not all((folder / name / "exam.json").exists() for name in teachers):
        lessons, exams = (
            [scene(f"{name}/{n}") for n in range(c)] for name, c in (("lesson", LESSONS), ("exam", EXAMS))
        )
        for name, teacher in teachers.items():
            set_seed(0)
            teacher(lessons, exams, folder / name)
    return {name: json.loads((folder / name / "exam.json").read_text()) for name in teachers}


def plant(rows: Dataset, seed: int = 0) -> Dataset:
    """Makes `WRONG_SHARE` of the rows wrong; `wrong` names the columns of each row's wrong items."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(rows)), round(WRONG_SHARE * len(rows)))
    kinds = {row: (rng.random() < 0.5, rng.choice(MODALITIES)) for row in chosen}

    def changed(row: dict, number: int) -> dict:
        swap, modalities = kinds.get(number, (False, ()))
        fresh = scene(f"planted/{number}") if modalities else {}
        for each in modalities:
            safe, unsafe = f"safe_{each}", f"unsafe_{each}"
            row |= {safe: row[unsafe], unsafe: row[safe]} if swap else {unsafe: fresh[safe]}
        sides = LABELS.values() if swap else ["unsafe"]
        return row | {"wrong": [f"{side}_{each}" for each in modalities for side in sides]}

    return rows.map(changed, with_indices=True, desc="Planting")


def audited(planted: Dataset, schools: Path, folder: Path) -> Dataset:
    """The rows with the labels that the audit command gives them."""
    if not (folder / "labelled").exists():
        DatasetDict(train=planted).save_to_disk(folder / "judged")
        command = [sys.executable, "-m", "safe_clip.data.audit", str(folder / "judged")]
        command += ["--image_classifier", str(schools / "image"), "--text_classifier", str(schools / "text")]
        command += ["--output_dir", str(folder / "audit"), "--write", str(folder / "labelled")]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return load_from_disk(folder / "labelled")["train"]


def found(rows: Dataset) -> None:
    """Prints, by kind of item, which share of the wrong items was found, and of the right ones taken for wrong."""
    print("\n| | wrong items | found | right items | false alarms |\n|---|---|---|---|---|")
    wrong, flagged = (np.zeros((len(rows), len(ITEM_COLUMNS)), dtype=bool) for _ in range(2))
    for number, column in enumerate(ITEM_COLUMNS):
        wrong[:, number] = [column in names for names in rows["wrong"]]
        flagged[:, number] = np.array(rows[f"{column}_is_safe"]) != column.startswith("safe")
    for name, which in [*((name, [n]) for n, name in enumerate(NAMES)), ("all", range(len(NAMES)))]:
        really, said = wrong[:, which], flagged[:, which]
        shares = [100 * said[really].mean(), 100 * said[~really].mean()]
        print(f"| {name} | {really.sum():,} | {shares[0]:.1f} | {(~really).sum():,} | {shares[1]:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--splits", nargs="+", default=["test"], choices=["validation", "test"])
    parser.add_argument("--flags", default="", help="further flags of safe-clip train, for every run")
    parser.add_argument("--skip_training", action="store_true")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    args = parser.parse_args()

    schools, folder = (
        args.runs / f"{name}-{hashlib.sha256(made_of + Path(__file__).read_bytes()).hexdigest()[:12]}"
        for name, made_of in (("judges", b"".join(path.read_bytes() for path in WORLD)), ("audit", SOURCES))
    )
    print("| judge of | right | of safe items | of unsafe items |\n|---|---|---|---|")
    for name, exam in judges(schools).items():
        shares = [f"{100 * exam[key]:.1f}" for key in ("eval_accuracy", "eval_accuracy_safe", "eval_accuracy_unsafe")]
        print(f"| {'captions' if name == 'text' else 'images'} |", " | ".join(shares), "|")

    clean = load_quadruplets("demo")
    planted = plant(clean["train"])
    rows = audited(planted, schools, folder)
    found(rows)
    if args.skip_training:
        return

    data = {"clean": "demo"}
    for name, train in (("wrong items", planted), ("wrong items, labelled", rows)):
        data[name] = str(folder / name.replace(", ", "-").replace(" ", "-"))
        if not Path(data[name]).exists():
            measured = {split: clean[split] for split in ("validation", "test")}
            DatasetDict({"train": train.remove_columns("wrong"), **measured}).save_to_disk(data[name])
    print("\n| trained on | split |", " | ".join(FIGURES.values()), "|\n|---|---|" + "---|" * len(FIGURES))
    states = ["--loss_weights", json.dumps(NO_STATES)]
    for name, place in data.items():
        results = [
            run(CONFIG, ["--dataset", place, *states, *shlex.split(args.flags)], args.splits, seed, args.runs)
            for seed in args.seeds
        ]
        for split in args.splits:
            cells = (cell([result["after"][split][figure] for result in results]) for figure in FIGURES)
            print(f"| {name} | {split} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
