"""What models are measured on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets import Dataset, DatasetDict

from ..data.arguments import DataArguments
from ..data.captions import leave_out_bad_captions
from ..data.classification import ClassificationData, load_classification
from ..data.columns import numbered
from ..data.galleries import load_images
from ..data.quadruplets import DEMO, STREAMED_ROWS, first_rows
from ..data.splits import known_splits
from ..errors import UserError
from ..evaluation import TASKS
from .transforms import load_synonyms


@dataclass(frozen=True)
class Sample:
    """Rows that a measurement uses, and out of how many they were drawn."""

    rows: Dataset
    of: int


@dataclass
class EvaluationData:
    """What models are measured on.

    Attributes:
        splits: quadruplets by split.
        galleries: unsafe images from elsewhere, column `image`, by name.
        bad_captions: for each split, a line for every row that was left out for its captions.
        unavailable: for each gallery, a line for every image that could not be had.
        classifications: labelled images, by name.
        classified_of: for each of them, out of how many images it was drawn.
        synonyms: for the transform of that name; the bundled ones by default.
    """

    splits: dict[str, Sample]
    galleries: dict[str, Sample] = field(default_factory=dict)
    bad_captions: dict[str, list[str]] = field(default_factory=dict)
    unavailable: dict[str, list[str]] = field(default_factory=dict)
    classifications: dict[str, ClassificationData] = field(default_factory=dict)
    classified_of: dict[str, int] = field(default_factory=dict)
    synonyms: dict[str, list[str]] | None = None


def load_evaluation_data(
    quadruplets: str | DataArguments = DEMO,
    splits: Sequence[str] | None = None,
    tasks: Sequence[str] = TASKS,
    galleries: Sequence[str] | None = None,
    zero_shot: Sequence[str] | None = None,
    templates: str | None = None,
    class_names: str | None = None,
    synonyms: str | None = None,
    max_samples: int | None = None,
    also: Sequence[str] = (),
) -> EvaluationData:
    """Loads what the tasks need.

    Args:
        quadruplets: where they come from, or the name alone. The bundled demo brings its own unsafe images, things
            to classify and synonyms, wherever none are named.
        splits: which; all but `train` and `validation` by default. Where there is no `validation`, it is what training
            holds out of `train`.
        tasks: which of `TASKS`.
        galleries: unsafe images, as for `load_images`.
        zero_shot: labelled images, as for `load_classification`.
        templates, class_names: files with one prompt, or one class name, a line.
        synonyms: a file as for `load_synonyms`.
        max_samples: rows of each split and set, drawn with a fixed seed.
        also: splits that come before those.

    Raises:
        UserError: something cannot be found or opened, or does not fit.
    """
    quadruplets = DataArguments(quadruplets) if isinstance(quadruplets, str) else quadruplets
    dataset = quadruplets.dataset
    if "validation" in (*(splits or ()), *also):  # maybe one that is held out
        loaded = quadruplets.load()
    else:
        loaded = quadruplets.load(
            hold_out=False,
            choose=lambda found: [*dict.fromkeys([*also, *choose_splits(found, splits, dataset)])],
        )
    before = choose_splits(loaded, also, dataset) if also else []
    chosen = dict.fromkeys([*before, *choose_splits(loaded, splits, dataset)])
    loaded = {
        split: first_rows(rows, STREAMED_ROWS) if quadruplets.streaming else rows for split, rows in loaded.items()
    }
    data = EvaluationData({})
    for split in chosen:
        rows = loaded[split]
        if quadruplets.skippable is not None:
            rows, faults = leave_out_bad_captions(rows, f"split '{split}'", quadruplets.skippable)
            data.bad_captions |= {split: faults} if faults else {}
        data.splits[split] = draw(rows, max_samples)
    if "unsafe_gallery" in tasks:
        names = _distinct_names(list(galleries or ()))
        found = {name: load_images(gallery) for name, gallery in zip(names, galleries or (), strict=True)}
        if not found and dataset == DEMO:
            from ..demo.dataset import load_unsafe_images

            found = {"stand-ins alone": (load_unsafe_images(), [])}
        for name, (rows, missing) in found.items():
            data.galleries[name] = draw(rows, max_samples)
            if missing:
                data.unavailable[name] = missing
    if "zero_shot" in tasks:
        if class_names and len(zero_shot or ()) > 1:
            raise UserError("--class_names is for one data set; measure one --zero_shot at a time.")
        sets = [
            load_classification(name, _lines("--templates", templates), _lines("--class_names", class_names))
            for name in zero_shot or ()
        ]
        if not sets and dataset == DEMO:
            sets = list(_bundled_objects())
        for found in sets:
            if found.name in data.classifications:
                raise UserError(f"--zero_shot names {found.name} twice; measure one copy at a time.")
            data.classified_of[found.name] = len(found.rows)
            data.classifications[found.name] = found.select(_drawn(len(found.rows), max_samples))
    if set(tasks) == {"zero_shot"} and not data.classifications:
        raise UserError("there is nothing to measure: the task zero_shot requires --zero_shot.")
    if set(tasks) == {"unsafe_gallery"} and not data.galleries:
        raise UserError("there is nothing to measure: the task unsafe_gallery requires --unsafe_gallery.")
    if "robustness" in tasks:
        data.synonyms = _synonyms(synonyms, dataset)
    return data


def choose_splits(splits: DatasetDict, wanted: Sequence[str] | None, name: str) -> list[str]:
    """The splits to measure: those asked for; by default all but `train` and `validation`, or what there is.

    Raises:
        UserError: there is no such split.
    """
    there = [str(split) for split in splits]
    wanted = known_splits(wanted, there)
    for split in wanted or ():
        if split not in there:
            raise UserError(f"--dataset {name} has no split '{split}', only {', '.join(there)}.")
    unseen = [split for split in there if split not in ("train", "validation")]
    return list(wanted or unseen or [split for split in ("validation", "train") if split in there][:1])


def draw(rows: Dataset, most: int | None) -> Sample:
    """At most so many rows, drawn without replacement by a fixed seed, each still knowing its number."""
    if most is None or len(rows) <= most:
        return Sample(rows, len(rows))
    # pyrefly: ignore [bad-argument-type]: datasets says that `select` may give a DatasetDict; of a Dataset, never
    return Sample(numbered(rows).select(_drawn(len(rows), most)), len(rows))


def _drawn(count: int, most: int | None) -> list[int]:
    if most is None or count <= most:
        return list(range(count))
    return sorted(random.Random(0).sample(range(count), most))


def _bundled_objects():
    from ..demo.dataset import STYLES, load_objects
    from ..demo.world import OPENINGS

    templates = [f"{opening}a {{}}" for opening in dict.fromkeys(OPENINGS)]
    for style in STYLES:
        rows = load_objects(style)
        names = rows.features["label"].names
        yield ClassificationData(f"objects ({style})", rows, "image", list(rows["label"]), names, templates)


def _synonyms(file: str | None, dataset: str) -> dict[str, list[str]]:
    if file is None and dataset == DEMO:
        from ..demo.vocabulary import synonyms

        return load_synonyms() | synonyms()
    try:
        return load_synonyms(Path(file)) if file else load_synonyms()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"--synonyms {file} is no YAML file of `word: synonym / synonym` lines: {' '.join(str(error).split())}."
        ) from error


def _lines(option: str, path: str | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} cannot be read: {error}.") from error


def _distinct_names(names: list[str]) -> list[str]:
    """What results call galleries: the last parts of their paths, or all of them where two share one."""
    short = [Path(name).name or name for name in names]
    return short if len(set(short)) == len(short) else names
