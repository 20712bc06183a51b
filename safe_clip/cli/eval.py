"""Measures what a CLIP does with unsafe inputs, and what making it safe cost.

  safe-clip eval                                 the bundled demo model, and the last trained model beside it
  safe-clip eval --model you/safe-clip --baseline openai/clip-vit-large-patch14 --dataset you/quadruplets
  safe-clip eval --accelerate_config ddp --num_processes 4 --model you/safe-clip --zero_shot cifar10 imagenette

Writes results.json and report.html, and prints a table. Embeddings are cached: an interrupted run goes on
where it was, and a second one takes seconds. Every setting is a flag; a YAML file given first sets any of
them, and flags after it win.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..config import as_words, changed, parse_arguments, split_config
from ..data.arguments import LIST_FILE
from ..errors import UserError
from ..evaluation import TASKS
from ..generation.arguments import TASKS as GENERATED
from ..generation.arguments import GenerationArguments
from ..outputs import OutputFolder
from ..ranges import SHARE, Range, check_ranges
from ..terminal import command_line, in_colour, quiet_libraries
from .compared import DATA, DEFAULT_MODEL, MODELS, ComparedArguments, begin, for_frozen_galleries
from .help import Help, settings_of
from .launch import GROUP, LAUNCH, launch

# Settings that a card has elsewhere, or that change no figure.
SAME_FIGURES = {"model", "model_revision", "baseline", "dataset", "update_card", "cache_dir", "output_dir"}
SAME_FIGURES |= {"overwrite_output_dir"}
SAME_FIGURES |= {"batch_size", "num_workers", "show_unsafe", "strength", "sweep", "strengths"}
LISTED = 10  # rows and images that were left out, of each set, that the terminal names
GROUPS = {
    "What is compared": f"{MODELS} frozen_gallery sweep strengths",
    "Data": DATA,
    "What is measured": "tasks unsafe_gallery zero_shot templates class_names synonyms index faiss_factory",
    "Speed": "batch_size precision num_workers cache_dir",
    GROUP: " ".join(LAUNCH),
    "What is written": "output_dir overwrite_output_dir show_unsafe update_card",
}


@dataclass
class EvaluationArguments(ComparedArguments):
    """What is measured, and on what."""

    sweep: str | None = field(
        default=None,
        metadata={
            "help": "'strength' draws safety against utility from the baseline to the model, with the curve's elbow."
        },
    )
    frozen_gallery: bool = field(
        default=False,
        metadata={
            "help": "Measure what the model's queries find in an index that the baseline embedded. On by itself for a "
            "model that was trained with --frozen_gallery."
        },
    )
    strengths: list[float] = field(
        default_factory=lambda: [step / 10 for step in range(11)],
        metadata={"help": "The strengths that --sweep measures."},
    )
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": f"What is measured: any of {', '.join(TASKS)}."}
    )
    unsafe_gallery: list[str] | None = field(
        default=None,
        metadata={"help": "Unsafe images from elsewhere: folders, datasets, or text files of URLs or paths."},
    )
    zero_shot: list[str] | None = field(
        default=None,
        metadata={
            "help": "What is classified: presets (cifar10 cifar100 food101 sun397 caltech101 imagenette imagenet), "
            "PRESET=COPY, or datasets with an image and a class label, each with :split if it has several."
        },
    )
    templates: str | None = field(
        default=None,
        metadata={"help": "For --zero_shot: a file with one prompt a line, in which {} stands for the class name."},
    )
    class_names: str | None = field(
        default=None,
        metadata={"help": "For --zero_shot: a file with one class name a line, in the order of the labels."},
    )
    synonyms: str | None = field(
        default=None, metadata={"help": "For the task robustness: a YAML file of `word: synonym / synonym`."}
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "At most so many rows of each split and set. By default all."}
    )
    index: str = field(
        default="exact",
        metadata={"help": "How the gallery is searched: 'exact', or 'faiss' where that takes too long."},
    )
    faiss_factory: str = field(
        default="HNSW32", metadata={"help": "With --index faiss: the kind of index, as a factory string."}
    )
    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that read images. By default as many as suit the machine."}
    )
    update_card: bool = field(
        default=False, metadata={"help": "Write the figures into the model's card, in its folder or on the Hub."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "The folder that embeddings are kept in. By default one beside the Hub's cache."},
    )
    output_dir: str = field(
        default="evaluation", metadata={"help": "The folder that gets results.json and report.html."}
    )

    RANGES: ClassVar[dict[str, Range]] = {"strengths": SHARE, "num_workers": Range(0, 4096, whole=True)}

    @property
    def settings(self) -> dict[str, Any]:
        """What a card's command needs besides the model, the original and the data, for the same figures."""
        return {name: value for name, value in changed(self).items() if name not in SAME_FIGURES}

    def __post_init__(self):
        for task in GENERATED:
            if task in self.tasks:
                raise UserError(
                    f"--tasks {task} is a command of its own now: safe-clip generate {task}, with the other flags as "
                    "they are.",
                    2,
                )
        super().__post_init__()
        self.choose("tasks", TASKS)
        self.choose("index", ["exact", "faiss"])
        check_ranges(self, self.RANGES)
        if self.sweep not in (None, "strength"):
            raise UserError(f"--sweep {self.sweep}: only strength can be swept.")
        self.check_gallery()
        if self.sweep and self.baseline is None:
            raise UserError("--sweep lies between two models: name the original model with --baseline.")
        if self.update_card and (self.sweep or self.strength != 1 or self.max_samples):
            raise UserError("--update_card is for the whole: leave out --sweep, --strength and --max_samples.")
        if self.update_card and self.model == "demo":
            raise UserError(
                "--update_card requires a model with a card: a folder or a Hub id, not the bundled demo model."
            )
        if self.sweep and self.strength != 1:
            raise UserError("--sweep measures all --strengths; leave out --strength.")
        if self.sweep and len(set(self.strengths)) < 2:
            raise UserError("--strengths requires at least two different values, such as 0 0.5 1.")

    def check_gallery(self) -> None:
        """Raises `UserError` where nothing is left to be judged by."""
        searched = set(self.tasks) - {"zero_shot"}
        if self.frozen_gallery and self.baseline is None and searched:
            raise UserError(
                f"--frozen_gallery, by which {self.model} is to be measured or was trained, is for an index of another "
                "model's embeddings: name that model with --baseline."
            )
        if self.frozen_gallery and self.sweep:
            raise UserError("--sweep searches each model's own embeddings, and --frozen_gallery the baseline's.")


def refuse_generation(flags: list[str]) -> None:
    """Raises `UserError` for a flag of `generate`, which was a task of this command once."""
    names = settings_of(GenerationArguments)
    for word in flags:
        if word.startswith("--") and (name := word[2:].partition("=")[0].replace("-", "_")) in names:
            raise UserError(f"--{name} is no setting of eval, but of safe-clip generate {' and '.join(GENERATED)}.", 2)


def helper() -> Help:
    """What `--help` says."""
    return Help("eval", __doc__, GROUPS, settings_of(EvaluationArguments) | LAUNCH)


def main(argv: list[str]) -> None:
    config, flags = split_config(argv)
    refuse_generation(flags)
    helper().answer(flags)
    launch("eval", argv)
    from accelerate.utils import broadcast_object_list

    from ..card import check_card, check_measured, update_model_card
    from ..evaluation import strength, suite
    from ..evaluation.data import load_evaluation_data
    from ..evaluation.report import write_report
    from ..evaluation.run import evaluate

    (args,) = parse_arguments([EvaluationArguments], flags, config)
    quiet_libraries()
    if args.update_card:
        check_card(args.model)
    folder = OutputFolder(args.output_dir)
    made = ["strength.json", "strength.png"] if args.sweep else ["results.json", "report.html", LIST_FILE]
    folder.check(args.overwrite_output_dir, files=made)
    tasks = strength.TASKS if args.sweep else args.tasks
    model, baseline, accelerator = begin(args, args.dataset)
    asked = accelerator.is_main_process and not args.frozen_gallery
    (trained_so,) = broadcast_object_list([asked and for_frozen_galleries(args.model, args.model_revision)])
    if trained_so:
        accelerator.print(f"{args.model} was trained with --frozen_gallery, and is measured so.")
        args.frozen_gallery = True
        args.check_gallery()
    data = None
    if accelerator.is_main_process:
        data = load_evaluation_data(
            args,
            args.splits,
            tasks,
            args.unsafe_gallery,
            args.zero_shot,
            args.templates,
            args.class_names,
            args.synonyms,
            args.max_samples,
        )
    # Not loaded by each: what one process could fetch, another might not.
    (data,) = broadcast_object_list([data])
    options = {
        "max_bad_fraction": args.skippable,
        "cache_dir": Path(args.cache_dir) if args.cache_dir else None,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "num_workers": args.num_workers,
    }
    factory = suite.faiss_factory(args.faiss_factory) if args.index == "faiss" else suite.ExactIndex
    if args.sweep:
        curves = strength.sweep(model, baseline, args.strengths, data, accelerator, factory, **options)
        if curves:
            points = {split: [point._asdict() for point in points] for split, points in curves.items()}
            folder.write("strength.json", json.dumps(points, indent=2) + "\n")
            with folder.writing("strength.png") as path:
                strength.draw(curves, path)
            print(f"\n{strength.sweep_table(curves)}\n\nThe curve is in {folder.path}/strength.png.")
        return
    facts = {
        "settings": args.settings,
        "dataset": args.dataset,
        "index": args.index if args.index == "exact" else args.faiss_factory,
    }
    measured = evaluate(model, baseline, data, accelerator, tasks, factory, facts, args.frozen_gallery, **options)
    if measured is None:
        return
    results, made = measured
    left_out = [*data.bad_captions.items(), *made["model"].unreadable.items(), *data.unavailable.items()]
    for where, reasons in left_out:
        print(f"{where}: left out {len(reasons)}.", *reasons[:LISTED], sep="\n  ")
    folder.write(LIST_FILE, "".join(f"{where}, {reason}\n" for where, reasons in left_out for reason in reasons))
    folder.write("results.json", json.dumps(results, indent=2) + "\n")
    with folder.writing("report.html") as path:
        write_report(path, results, made, data, args.show_unsafe)
    if args.update_card:
        check_measured(args.model, results)
        print(f"The card is updated: {update_model_card(args.model, results, args.model_revision)}")
    print(f"\n{ending(results, args, folder.path)}")


def ending(results: dict, args: EvaluationArguments, folder: Path) -> str:
    """What a measurement ends with: the verdict, the table, where the rest is, and a command to go on with."""
    from ..evaluation.table import results_table, verdict_text
    from ..evaluation.verdict import results_verdict

    colour, said = in_colour(), results_verdict(results)
    parts = [verdict_text(said, colour)] if said else []
    parts += [
        results_table(results, colour),
        f"All figures are in {folder}/results.json, images in {folder}/report.html.",
    ]
    words = ["--model", args.model, "--dataset", args.dataset, *as_words(args.sources)]
    if args.baseline is None:
        parts.append(f"This makes it safe:\n\n  {command_line('train', *words)}")
    elif not args.frozen_gallery:
        words[2:2] = ["--baseline", args.baseline]
        words += ["--splits", *args.splits] if args.splits else []  # or rows that training saw are measured too
        usual = (args.model, args.baseline, args.dataset, args.splits) == (str(DEFAULT_MODEL), "demo", "demo", None)
        command = command_line("eval", *([] if usual else words), "--sweep", "strength")
        parts.append(f"What models between the two are like, at no training:\n\n  {command}")
    return "\n\n".join(parts)
