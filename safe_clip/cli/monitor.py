"""Watches a safe model in production: what it does with a log of queries, by day, beside the original.

  safe-clip monitor --calibrate --dataset demo              what a score means, from safe rows that no training saw
  safe-clip monitor --queries log.csv --time_column time    the share of queries that are redirected, by day
  safe-clip monitor --queries next.csv --time_column time --reference monitoring/monitor.json --output_dir next

A log is a CSV, JSON lines or Parquet with a column of texts. Writes monitor.json, monitor.csv and monitor.png with
figures of each period, never a text nor what is computed of one, and says which periods differ from the first by more
than chance. It is no content filter: what training did not move is not seen. An interrupted run goes on where it was.
Every setting is a flag; a YAML file given first sets any of them, and flags after it win.
"""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import __version__
from ..config import parse_arguments, split_config
from ..errors import UserError
from ..outputs import OutputFolder
from ..ranges import COUNT, SHARE, Range, check_ranges
from ..terminal import command_line, quiet_libraries
from .compared import ModelArguments
from .help import Help, settings_of

if TYPE_CHECKING:
    from ..data.query_log import QueryLog, Survey
    from ..embedding.embedder import Embedder
    from ..evaluation.redirection_score import Calibration

RESULTS, TABLE, PLOT = "monitor.json", "monitor.csv", "monitor.png"
CALIBRATION = "monitoring/calibration.json"
PERIODS = ["day", "week", "month"]
GROUPS = {
    "What is compared": "model model_revision baseline baseline_revision",
    "Queries": "queries text_column time_column by on_bad_row max_bad_fraction",
    "What counts as redirected": "threshold calibration index baseline_index",
    "Drift": "reference reference_periods level least_change",
    "Calibration": "calibrate dataset calibration_split splits max_samples dataset_config column_mapping safe_images "
    "unsafe_images missing_images caption_lists streaming sides_are_right cache_dir",
    "Speed": "batch_size precision",
    "What is written": "output_dir overwrite_output_dir",
}


@dataclass
class MonitorArguments(ModelArguments):
    """What is watched, and what it is compared with."""

    queries: str | None = field(
        default=None, metadata={"help": "The log: a CSV, JSON lines or Parquet file, a folder or a pattern of them."}
    )
    text_column: str | None = field(default=None, metadata={"help": "The column of texts. Found by default."})
    time_column: str | None = field(
        default=None,
        metadata={"help": "The column of times, ISO 8601 or epochs. Without one, the log is one period."},
    )
    by: str = field(default="day", metadata={"help": "The periods: day, week or month (of UTC)."})
    threshold: float = field(
        default=0.01,
        metadata={"help": "A query is redirected if no more than this share of safe ones is moved as far."},
    )
    calibration: str = field(
        default=CALIBRATION, metadata={"help": "What --calibrate wrote, which says what a score means."}
    )
    index: str | None = field(
        default=None, metadata={"help": "A folder that safe-clip embed wrote: compares first results too."}
    )
    baseline_index: str | None = field(
        default=None, metadata={"help": "Where --index is by --model: one of the same data by --baseline."}
    )
    reference: str | None = field(
        default=None,
        metadata={"help": "The monitor.json of an earlier run to compare with. By default the first period."},
    )
    reference_periods: int = field(
        default=1, metadata={"help": "Without --reference: how many periods, from the first, are compared with."}
    )
    level: float = field(
        default=0.01, metadata={"help": "The chance of any false alarm of drift in a run, over all its periods."}
    )
    least_change: float = field(
        default=0.01, metadata={"help": "A smaller change of a share, or of the scores, is no drift."}
    )
    calibrate: bool = field(
        default=False, metadata={"help": "Write the calibration, from the safe items of --dataset."}
    )
    calibration_split: str = field(default="validation", metadata={"help": "The split that it is made of."})
    splits: list[str] | None = field(
        default=None, metadata={"help": "The splits that it is measured on. By default all but train."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "At most so many rows of each split."})
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "The folder that embeddings of --dataset are kept in. By default one beside the Hub's cache. Of "
            "queries nothing is kept."
        },
    )
    output_dir: str = field(default="monitoring", metadata={"help": "The folder that gets what is written."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write even if files of other programs are in the way; these are moved into replaced/."},
    )

    RANGES: ClassVar[dict[str, Range]] = {
        "threshold": Range(0, 1, above=True, below=True),
        "reference_periods": COUNT,
        "level": Range(0, 1, above=True, below=True),
        "least_change": SHARE,
        "max_samples": COUNT,
    }

    def __post_init__(self):
        super().__post_init__()
        self.choose("by", PERIODS)
        check_ranges(self, self.RANGES)
        if not self.queries and not self.calibrate:
            raise UserError("nothing is to be done: name a log with --queries, or calibrate with --calibrate.")
        if self.baseline is None:
            here = "there is no safe-clip/ here: make one with safe-clip train, or name a safe model with --model and"
            beside = f"--model {self.model} is compared with"
            raise UserError(f"{here if self.model == 'demo' else beside} its original, with --baseline.")
        if self.by != "day" and self.queries and not self.time_column:
            raise UserError(f"--by {self.by} requires a column of times: name it with --time_column.")
        if self.calibrate and self.dataset == "demo" and self.baseline != "demo":
            raise UserError(f"--calibrate requires data like what {self.model} is asked: name them with --dataset.")
        if self.baseline_index and not self.index:
            raise UserError("--baseline_index is compared with an index of the safe model: name that with --index.")
        if self.reference and Path(self.reference).resolve() == (Path(self.output_dir) / RESULTS).resolve():
            raise UserError(f"--reference {self.reference} would be overwritten: name another --output_dir.")


def helper() -> Help:
    """What `--help` says."""
    return Help("monitor", __doc__, GROUPS, settings_of(MonitorArguments))


def main(argv: list[str]) -> None:
    config, flags = split_config(argv)
    helper().answer(flags)
    (args,) = parse_arguments([MonitorArguments], flags, config)
    quiet_libraries()

    from ..data.query_log import open_log, survey
    from ..evaluation.redirection_score import FILE, made_with

    folder = OutputFolder(args.output_dir)
    files = [FILE] * args.calibrate + [RESULTS, TABLE, PLOT] * bool(args.queries)
    folder.check(args.overwrite_output_dir, files=files)
    log = found = None
    if args.queries:  # what is wrong with it is told before anything slow
        log = open_log(args.queries, args.text_column, args.time_column)
        found = survey(log, args.by, args.skippable)
        tell_log(log, found)
    if not args.calibrate:
        check_calibration(args)
    embedders = model, baseline = _embedders(args)
    facts = made_with(model, baseline)
    with folder.lock():
        calibration = _calibrated(args, folder, embedders, facts)
        if log and found:
            watch(args, folder, log, found, embedders, facts, calibration)


def tell_log(log: "QueryLog", found: "Survey") -> None:
    """Says what was read, and what is not as an operator may think."""
    from ..data.query_log import EMPTY, NO_TEXT, NO_TIME

    queries = int(found.count.sum())
    print(f"{queries:,} queries, {len(found.first):,} different texts (column '{log.text}'), in {_periods(found)}.")
    reasons = (
        (EMPTY, "without a text"),
        (NO_TEXT, "whose text cannot be used"),
        (NO_TIME, "whose time cannot be read"),
    )
    for reason, said in reasons:
        if found.left_out[reason]:
            print(f"Left out {found.left_out[reason]:,} of {found.read:,} rows {said}.")
    if log.doubt:
        print(f"All is one period; '{log.doubt}' may hold times: --time_column {log.doubt}.")


def _periods(found: "Survey") -> str:
    periods = found.periods
    return "one period" if len(periods) == 1 else f"{len(periods)} periods from {periods[0]} to {periods[-1]}"


def check_calibration(args: MonitorArguments) -> None:
    """Raises `UserError` where there is no calibration, and says so where an index tells enough."""
    if Path(args.calibration).exists():
        return
    if args.index and args.calibration == CALIBRATION:
        print(f"There is no {CALIBRATION}, so that no share is told by a score: first results alone are compared.")
        return
    words = ["--model", str(args.model), "--baseline", str(args.baseline), "--calibrate", "--dataset"]
    raise UserError(
        f"--calibration {args.calibration} is not there, without which no score means anything: make it with "
        f"{command_line('monitor', *words, 'demo' if args.baseline == 'demo' else 'ROWS')}."
    )


def _embedders(args: MonitorArguments) -> "tuple[Embedder, Embedder]":
    """What embeds queries: by the safe model and by the original, and keeps nothing."""
    from accelerate import PartialState

    from ..embedding.embedder import Embedder
    from ..models.load import load_clip, load_processor

    assert args.model is not None and args.baseline is not None  # as `__post_init__` sees to
    names = ((args.model, args.model_revision), (args.baseline, args.baseline_revision))
    made = (
        Embedder(
            load_clip(*named).to(PartialState().device),
            load_processor(*named),
            named[0],
            args.batch_size,
            args.precision,
            cache_dir=None,
        )
        for named in names
    )
    model, baseline = made
    return model, baseline


def _calibrated(
    args: MonitorArguments, folder: OutputFolder, embedders: "tuple[Embedder, Embedder]", facts: dict[str, Any]
) -> "Calibration | None":
    """The calibration: made now, or earlier; `None` where there is none and an index tells enough."""
    from ..evaluation.monitor_report import calibration_table
    from ..evaluation.redirection_score import FILE, open_calibration

    if args.calibrate:
        made = calibrated(args, embedders, facts)
        folder.write(FILE, as_json(made.facts))
        print(f"\n{calibration_table(made.facts['modalities'], args.calibration_split)}\n")
        print(
            "In percent: unsafe items that a threshold finds / safe ones that it takes for redirected. What is not "
            f"found is not seen by the monitor either. {folder.path / FILE} holds it."
        )
        if not args.queries:
            words = ["--model", str(args.model), "--baseline", str(args.baseline), "--queries", "log.csv"]
            words += [] if str(folder.path / FILE) == CALIBRATION else ["--calibration", str(folder.path / FILE)]
            print(f"Watch a log by it:\n\n  {command_line('monitor', *words)}")
        return made
    if not Path(args.calibration).exists():
        return None
    opened = open_calibration(args.calibration)
    opened.check_made_for(**facts)
    return opened


def calibrated(args: MonitorArguments, embedders: "tuple[Embedder, Embedder]", facts: dict[str, Any]) -> "Calibration":
    """Makes a calibration of what `--dataset` holds."""
    from ..embedding.embedder import Embedder
    from ..evaluation.data import load_evaluation_data
    from ..evaluation.redirection_score import calibrate
    from ..evaluation.suite import count_embedded, embed_everything
    from ..store.folders import folder_of
    from ..terminal import phase

    tasks = ("redirection",)
    split = args.calibration_split
    data = load_evaluation_data(args, args.splits, tasks, max_samples=args.max_samples, also=[split])
    kept = Path(args.cache_dir) if args.cache_dir else folder_of("embeddings")
    made = {}
    for role, each in zip(("model", "baseline"), embedders, strict=True):
        embedder = Embedder(each.model, each.processor, each.label, each.batch_size, each.precision, kept)
        with phase(f"Embedding by {each.label}", count_embedded(data, tasks)):
            made[role] = embed_everything(embedder, data, tasks, args.skippable)
    names = {"model": args.model, "baseline": args.baseline}
    return calibrate(made["model"].splits, made["baseline"].splits, split, names=names, dataset=args.dataset, **facts)


def watch(
    args: MonitorArguments,
    folder: OutputFolder,
    log: "QueryLog",
    found: "Survey",
    embedders: "tuple[Embedder, Embedder]",
    facts: dict[str, Any],
    calibration: "Calibration | None",
) -> None:
    """Compares both models on a log, writes the figures and says what differs."""
    from ..embedding.index import Index
    from ..evaluation.drift import drift
    from ..evaluation.monitor_report import alarms, as_csv, draw, notes, table
    from ..evaluation.monitoring import EDGES, compare, earlier_reference, looker, pooled, searched
    from ..evaluation.redirection_score import SCORE
    from ..store.fingerprints import short_digest

    least = calibration.threshold(args.threshold) if calibration else None
    index = Index(args.index) if args.index else None
    other = Index(args.baseline_index) if args.baseline_index else None
    first = searched(index, other, *embedders) if index else None
    made_by = facts | {
        "score": SCORE,
        "threshold": None if least is None else {"false_alarm_rate": args.threshold, "score": least},
        "index": [{name: each.facts[name] for name in ("weights", "data")} for each in (index, other) if each],
    }
    earlier = earlier_reference(args.reference, made_by) if args.reference else None
    look, shares = looker(*embedders, least, first)
    identity = short_digest(json.dumps([made_by, found.digest, shares], sort_keys=True))
    start = time.monotonic()
    tally = compare(log, found, look, shares, folder.path, identity)
    seconds = time.monotonic() - start
    periods = tally.periods(found.periods)
    if not periods:
        raise UserError(f"--queries {args.queries}: all queries were refused, because they sexualise minors.")
    reference = earlier or pooled(periods[: args.reference_periods])
    compared = periods if earlier else periods[args.reference_periods :]
    findings = [[]] * (len(periods) - len(compared))
    findings += drift(compared, reference, shares, args.level, args.least_change)
    written = {
        "safe_clip": __version__,
        "names": {"model": args.model, "baseline": args.baseline},
        "made_by": made_by,
        "by": args.by if log.time else None,
        "rows": {"read": found.read, "left_out": found.left_out | {"sexualises_minors": tally.minors}},
        "level": args.level,
        "least_change": args.least_change,
        "edges": EDGES.tolist(),
        "reference": reference | {"file": args.reference},
        "periods": [
            figures | {"drift": [vars(each) for each in differs]}
            for figures, differs in zip(periods, findings, strict=True)
        ],
    }
    folder.write(RESULTS, as_json(written))
    folder.write(TABLE, as_csv(periods, findings))
    with folder.writing(PLOT) as path:
        draw(periods, reference, findings, path)
    queries = int(tally.queries.sum())
    print(f"{queries / max(seconds, 1e-9):,.0f} queries a second.\n\n{table(periods, reference, findings)}\n")
    rate = args.threshold if calibration else None
    print("\n".join(notes(periods, compared, reference, tally.minors, rate, args.level, args.least_change)))
    if said := alarms(periods, findings):
        print("\nDRIFT\n" + "\n".join(f"  {line}" for line in said))
    print(f"\n{folder.path}/ holds {RESULTS}, {TABLE} and {PLOT}: figures of periods, nothing of a query.")


def as_json(value: Any) -> str:
    """JSON for files, numbers of a list on one line."""
    text = json.dumps(value, indent=1) + "\n"
    return re.sub(r"\[\n[\d\s.,e+-]+\]", lambda found: " ".join(found[0].split()), text)
