"""Looks at quadruplets before anything is trained on them.

    python -m safe_clip.data.audit you/quadruplets --image_classifier nudenet open_nsfw --text_classifier you/toxicity
    python -m safe_clip.data.audit folder --image_classifier you/nsfw --write audited

Prints a table, and writes audit.json and report.html: which items are not what their side says, which cannot be used,
what two splits share, and more. What was read and scored is cached: an interrupted run goes on where it was. With
--write, the data set is saved with a column of labels for each column of items that was scored, which train.py uses.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Value
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ... import __version__
from ...config import parse_arguments
from ...errors import UserError, first_line, run
from ...names import redact_paths
from ...outputs import OutputFolder, check_writable
from ..arguments import DataArguments
from ..columns import with_column
from ..items import CAPTION_COLUMNS, IMAGE_COLUMNS
from ..quadruplets import DEMO

logger = logging.getLogger(__name__)

DEMO_DIR = Path(__file__).parents[2] / "demo" / "base"
MAX_LENGTH = 77  # tokens that CLIP's text encoders take, where a tokenizer does not tell
NO_CLASSIFIER = (
    "No classifier was named, so nothing is said of which items are safe. --image_classifier nudenet open_nsfw needs "
    "no download; --image_classifier and --text_classifier take any classification model of the Hub."
)


@dataclass
class AuditArguments(DataArguments):
    """What is looked at, and by whom."""

    image_classifier: list[str] = field(
        default_factory=list,
        metadata={"help": "nudenet, open_nsfw, or Hub ids or folders of image-classification models."},
    )
    text_classifier: list[str] = field(
        default_factory=list, metadata={"help": "Hub ids or folders of text-classification models."}
    )
    unsafe_labels: list[str] = field(
        default_factory=list,
        metadata={"help": "Labels of those models that count as unsafe; by default those whose names say so."},
    )
    threshold: float = field(
        default=0.5, metadata={"help": "An item looks unsafe where any classifier is as sure as this."}
    )
    model: str = field(default="demo", metadata={"help": "Whose tokenizer counts the captions' tokens."})
    batch_size: int = field(default=32, metadata={"help": "Items scored at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    show_unsafe: bool = field(
        default=False, metadata={"help": "Show unsafe images and captions in the report; hidden by default."}
    )
    output_dir: str = field(default="audit", metadata={"help": "Where audit.json and report.html are written."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write also where others wrote files of these names; replaced/ keeps those."}
    )
    write: str | None = field(default=None, metadata={"help": "A new folder that gets the data set with labels."})
    force: bool = field(
        default=False,
        metadata={"help": "With --write: labels too of classifiers that call nearly no unsafe item, or kind, unsafe."},
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise UserError(f"--threshold is {self.threshold}; it must be above 0 and at most 1.")
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be {least} or more.")
        if self.streaming:
            raise UserError(
                "--streaming: an audit tells rows by their numbers, which a stream has none of; leave it out."
            )
        if self.write and not (self.image_classifier or self.text_classifier):
            raise UserError(
                f"--write {self.write} requires a classifier that says what the labels are. {NO_CLASSIFIER}"
            )
        OutputFolder(self.output_dir).check(self.overwrite_output_dir, files=["audit.json", "report.html"])
        if self.write:
            check_writable(Path(self.write), "--write")
        if self.write and Path(self.write).exists() and any(Path(self.write).iterdir()):
            raise UserError(f"--write {self.write}: the folder is there already and not empty; name another.")


def main(argv: list[str] | None = None) -> None:
    flags = sys.argv[1:] if argv is None else argv
    if flags and not flags[0].startswith("-"):
        flags = ["--dataset", *flags]
    (args,) = parse_arguments([AuditArguments], flags, prog="python -m safe_clip.data.audit", description=__doc__)
    try:
        from .classifiers import check_labels, open_classifiers
        from .doubts import doubts, warnings
        from .findings import Judged, find, labelled, leave_out_minors
        from .reading import read_items
        from .report import table, write_report
        from .scores import score_items

        classifiers = {
            modality: open_classifiers(names, modality, args.unsafe_labels)
            for modality, names in (("text", args.text_classifier), ("image", args.image_classifier))
        }
    except ModuleNotFoundError as error:
        raise UserError(f"an audit requires {error.name}: pip install 'safe-clip[audit]'.") from error
    check_labels([each for known in classifiers.values() for each in known], args.unsafe_labels)
    tokenizer = _tokenizer(args.model)
    splits = args.load(hold_out=False)
    read = read_items(splits, tokenizer, args.num_workers)
    scores = [np.full((len(each.digest), 2), np.nan, dtype=np.float32) for each in read]
    for modality, names in (("text", CAPTION_COLUMNS), ("image", IMAGE_COLUMNS)):
        which = [number for number, each in enumerate(read) if each.column in names]
        for classifier in classifiers[modality] if which else ():
            found = score_items([read[number] for number in which], classifier, args.batch_size, args.num_workers)
            for number, each in zip(which, found, strict=True):
                scores[number] = np.fmax(scores[number], each)  # either flags
    judged = [Judged(items, each, args.threshold) for items, each in zip(read, scores, strict=True)]
    splits, judged, left_out = leave_out_minors(splits, judged)
    doubted = doubts(splits, judged)
    audit = {
        "safe_clip": __version__,
        "dataset": redact_paths(args.dataset),
        "classifiers": {
            modality: [redact_paths(each.name) for each in known] for modality, known in classifiers.items()
        },
        "threshold": args.threshold,
        "left_out": left_out,
        "doubts": doubted or warnings(judged),
        **find(splits, judged, min(tokenizer.model_max_length, MAX_LENGTH)),
    }
    folder = OutputFolder(args.output_dir)
    folder.write("audit.json", json.dumps(audit, indent=1) + "\n")
    with folder.writing("report.html") as path:
        write_report(path, audit, splits, judged, args.show_unsafe)
    print(table(audit))
    for split, count in left_out.items():
        print(f"{count:,} rows of {split} were left out: they mention a minor, and a classifier sees nudity.")
    if not any(classifiers.values()):
        print(NO_CLASSIFIER)
    print("\n".join(audit["doubts"]), end="\n" * bool(audit["doubts"]))
    print(f"{folder.path}/ holds audit.json, with the numbers of all rows, and report.html.")
    if args.write and doubted and not args.force:
        raise UserError(
            f"--write {args.write}: {doubted[0]} Name classifiers that know it, or insist on these labels with --force."
        )
    if args.write:
        columns = {split: [each for each in judged if each.items.split == split] for split in splits}
        written = DatasetDict(
            {split: _with_whole_paths(labelled(rows, columns[split])) for split, rows in splits.items()}
        )
        written.save_to_disk(args.write)
        print(f"Train on what was found with train.py --dataset {args.write}.")


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(DEMO_DIR if name == DEMO else name, trust_remote_code=False)
    except Exception as error:  # no such folder or id, no connection, a broken file: each its own type
        raise UserError(f"--model {name} has no tokenizer of a CLIP to count with ({first_line(error)}).") from error


def _with_whole_paths(rows: Dataset) -> Dataset:
    """Rows whose paths of images are meant from anywhere."""
    for column in IMAGE_COLUMNS:
        if column in rows.column_names and isinstance(rows.features[column], Value):
            whole = [str(Path(cell).absolute()) if cell and "://" not in cell else cell for cell in rows[column]]
            rows = with_column(rows, column, whole)
    return rows


if __name__ == "__main__":
    run(main)
