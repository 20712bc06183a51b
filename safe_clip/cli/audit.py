"""Looks at quadruplets before anything is trained on them.

  safe-clip audit you/quadruplets --image_classifier nudenet open_nsfw --text_classifier you/toxicity
  safe-clip audit folder --image_classifier you/nsfw --write audited

Prints a table, and writes audit.json and report.html: which items are not what their side says, which cannot be used,
what two splits share, and more. What was read and scored is cached: an interrupted run goes on where it was. With
--write, the data set is saved with a column of labels for each column of items that was scored, which training uses.
Every setting is a flag; a YAML file given first sets any of them, and flags after it win.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..config import parse_arguments, split_config
from ..data.arguments import DataArguments
from ..errors import UserError
from ..outputs import OutputFolder, check_writable
from .help import Help, settings_of

NO_CLASSIFIER = (
    "No classifier was named, so nothing is said of which items are safe. --image_classifier nudenet open_nsfw needs "
    "no download; --image_classifier and --text_classifier take any classification model of the Hub."
)
GROUPS = {
    "Data": "dataset dataset_config column_mapping safe_images unsafe_images missing_images caption_lists on_bad_row "
    "max_bad_fraction streaming sides_are_right",
    "Judges": "image_classifier text_classifier unsafe_labels threshold model",
    "Speed": "batch_size num_workers",
    "What is written": "output_dir overwrite_output_dir show_unsafe write force",
}


@dataclass
class AuditArguments(DataArguments):
    """What is looked at, and by whom."""

    image_classifier: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Judges of images: nudenet, open_nsfw, or Hub ids or folders of image-classification models."
        },
    )
    text_classifier: list[str] = field(
        default_factory=list, metadata={"help": "Judges of captions: Hub ids or folders of text-classification models."}
    )
    unsafe_labels: list[str] = field(
        default_factory=list,
        metadata={"help": "The labels of the judges that count as unsafe. By default those whose names say so."},
    )
    threshold: float = field(default=0.5, metadata={"help": "An item looks unsafe if any judge is at least this sure."})
    model: str = field(
        default="demo",
        metadata={"help": "The CLIP whose tokenizer counts the tokens of captions: a Hub id, a folder, or 'demo'."},
    )
    batch_size: int = field(default=32, metadata={"help": "Items scored at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    show_unsafe: bool = field(
        default=False, metadata={"help": "Show unsafe images and captions in the report; hidden by default."}
    )
    output_dir: str = field(default="audit", metadata={"help": "The folder that gets audit.json and report.html."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write even if files of other programs are in the way; these are moved into replaced/."},
    )
    write: str | None = field(
        default=None,
        metadata={
            "help": "A new folder that gets the data set with a column of labels for each column that was judged."
        },
    )
    force: bool = field(
        default=False,
        metadata={
            "help": "Write labels even of judges that call nearly no unsafe item, or nearly none of one kind, unsafe."
        },
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


def helper() -> Help:
    """What `--help` says."""
    return Help(
        "audit", __doc__, GROUPS, settings_of(AuditArguments), what="[CONFIG.yaml | DATASET] [--flag value ...]"
    )


def main(argv: list[str]) -> None:
    config, flags = split_config(argv)
    if flags and not flags[0].startswith("-"):
        flags = ["--dataset", *flags]
    helper().answer(flags)
    (args,) = parse_arguments([AuditArguments], flags, config)
    try:
        from ..data.audit.report import table, write_report
        from ..data.audit.run import audit, write_labelled

        found = audit(args)
    except ModuleNotFoundError as error:
        raise UserError(f"an audit requires {error.name}: pip install 'safe-clip[audit]'.") from error
    folder = OutputFolder(args.output_dir)
    folder.write("audit.json", json.dumps(found.facts, indent=1) + "\n")
    with folder.writing("report.html") as path:
        write_report(path, found.facts, found.splits, found.judged, args.show_unsafe)
    print(table(found.facts))
    for split, count in found.facts["left_out"].items():
        print(f"{count:,} rows of {split} were left out: they mention a minor, and a classifier sees nudity.")
    if not any(found.facts["classifiers"].values()):
        print(NO_CLASSIFIER)
    doubts = found.facts["doubts"]
    print("\n".join(doubts), end="\n" * bool(doubts))
    print(f"{folder.path}/ holds audit.json, with the numbers of all rows, and report.html.")
    if args.write and found.doubted and not args.force:
        raise UserError(
            f"--write {args.write}: {found.doubted[0]} Name classifiers that know it, or insist on these labels with "
            "--force."
        )
    if args.write:
        write_labelled(found, args.write)
        print(f"Train on what was found with safe-clip train --dataset {args.write}.")
