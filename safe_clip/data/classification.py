"""Image-classification data sets and the prompts that name their classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml
from datasets import ClassLabel, Dataset, Image, Value

from ..errors import UserError
from .columns import numbered
from .items import ROW_COLUMN
from .sources import load_splits

PRESETS_FILE = Path(__file__).parent / "zero_shot.yaml"
DEFAULT_TEMPLATES = ("a photo of a {}.",)
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
DEFAULT_SPLITS = ("test", "validation", "train")
SPLIT_NAMES = "data|train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?"  # of folders


@dataclass(frozen=True)
class ClassificationData:
    """N labelled images.

    Attributes:
        name: what it is called in results.
        rows: the data set.
        image_column: its column of images.
        labels: N class numbers.
        class_names: the C classes.
        templates: prompts with `{}` where a class name goes.
    """

    name: str
    rows: Dataset
    image_column: str
    labels: list[int]
    class_names: list[str]
    templates: list[str]

    def __post_init__(self):
        if not len(self.rows):
            raise UserError(f"zero-shot data set {self.name} is empty.")
        bad = [template for template in self.templates if template.count("{}") != 1]
        if bad or not self.templates:
            raise UserError(
                f"zero-shot data set {self.name}: every prompt template needs one {{}} for the class name"
                + (f"; '{bad[0]}' has {bad[0].count('{}')}." if bad else "; there is no template.")
            )
        for row, label in enumerate(self.labels):
            if not 0 <= label < len(self.class_names):
                raise UserError(
                    f"zero-shot data set {self.name}, row {row}: label {label}, but there are names for "
                    f"{len(self.class_names)} classes only, 0 to {len(self.class_names) - 1}. Give --class_names a "
                    "file with one name a line, in the order of the labels, or remove the unlabelled rows."
                )

    def select(self, keep: list[int]) -> "ClassificationData":
        """The images whose numbers are given."""
        return replace(self, rows=numbered(self.rows).select(keep), labels=[self.labels[index] for index in keep])


@cache
def presets() -> dict[str, dict]:
    """The known data sets, by name, each with its list of prompt templates."""
    tables = yaml.safe_load(PRESETS_FILE.read_text(encoding="utf-8"))
    return {
        name: {**preset, "templates": tables["templates"][preset["templates"]]}
        for name, preset in tables["presets"].items()
    }


def load_classification(
    spec: str, templates: Sequence[str] | None = None, class_names: Sequence[str] | None = None
) -> ClassificationData:
    """Loads a data set to classify.

    Args:
        spec: the name of a preset; a Hub id or folder, with `:split` where it has several splits; or
            `PRESET=folder-or-id[:split]` for the preset's prompts and names with another copy of the data.
        templates: prompts in place of the preset's, or of "a photo of a {}.".
        class_names: names in place of the data set's own, in the order of the labels.

    Raises:
        UserError: it cannot be found or opened, has no images or labels, or names fewer classes than its labels.
    """
    name, _, source = (spec, "", "") if Path(spec).exists() else spec.partition("=")
    if source and name not in presets():
        raise UserError(f"--zero_shot {spec}: '{name}' is none of the presets, {', '.join(presets())}.")
    name, split = (name, None) if source else _split_off(name)
    preset = presets().get(name, {})
    if source:
        source, split = _split_off(source)
    else:
        source = preset.get("dataset", name)
    own = source == preset.get("dataset")  # splits and configurations of another copy are its own
    split = split or (preset.get("split") if own else None)
    splits = load_splits(
        source,
        preset.get("config") if own else None,
        option="--zero_shot",
        whole=_holds_classes(Path(source)),
        split=split if own else None,  # others of a known data set can be many times larger
    )
    split = split or next((s for s in DEFAULT_SPLITS if s in splits), next(iter(splits)))
    if split not in splits:
        raise UserError(f"--zero_shot {spec}: there is no split '{split}', only {', '.join(splits)}.")
    rows = splits[split]
    image_column, label_column = (
        preset[column] if preset.get(column) in rows.column_names else _column(rows, kind, what, spec)
        for column, kind, what in (
            ("image_column", Image, "images"),
            ("label_column", ClassLabel if class_names is None else (ClassLabel, *INTEGERS), "labels"),
        )
    )
    feature = rows.features[label_column]
    own_names = feature.names if isinstance(feature, ClassLabel) else None
    names = class_names or preset.get("class_names") or own_names
    if names is None:
        raise UserError(f"--zero_shot {spec}: column '{label_column}' does not name its classes; give --class_names.")
    if class_names is None and own_names is not None and len(names) != len(own_names):
        raise UserError(f"--zero_shot {spec} has {len(own_names)} classes, but preset '{name}' names {len(names)}.")
    return ClassificationData(
        name,
        rows,
        image_column,
        [-1 if label is None else int(label) for label in rows[label_column]],
        [_readable(item) for item in names] if names is own_names else list(names),
        list(templates or preset.get("templates") or DEFAULT_TEMPLATES),
    )


def _holds_classes(folder: Path) -> bool:
    """Whether its folders are classes, of which some may be called "train" or "test tube", rather than splits."""
    names = [item.name for item in folder.iterdir() if item.is_dir()] if folder.is_dir() else []
    return any(not re.fullmatch(SPLIT_NAMES, name) for name in names if not name.startswith((".", "__")))


def _split_off(source: str) -> tuple[str, str | None]:
    if Path(source).exists():
        return source, None
    name, _, split = source.rpartition(":")
    return (name, split) if name else (source, None)


def _column(rows: Dataset, kind: type | tuple, what: str, spec: str) -> str:
    """The one column of a kind: a feature's class, or beside it the integer types that bare labels may have."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    found = [
        name
        for name, feature in rows.features.items()
        if name != ROW_COLUMN
        and (isinstance(feature, kinds[0]) or (isinstance(feature, Value) and feature.dtype in kinds[1:]))
    ]
    if len(found) != 1:
        listed = ", ".join(f"'{name}' ({feature})" for name, feature in rows.features.items())
        cure = "; bare numbers are taken for labels with --class_names" if what == "labels" else ""
        raise UserError(
            f"--zero_shot {spec}: there should be one column of {what} ({kinds[0].__name__}), but there are "
            f"{len(found)}. Its columns are {listed}; cast or drop some{cure}."
        )
    return found[0]


def _readable(name: str) -> str:
    """A class name as a caption would have it: SUN397's "/a/airplane_cabin" is "airplane cabin"."""
    parts = name.strip("/").split("/")
    if len(parts) > 1 and len(parts[0]) == 1:
        parts = parts[1:]
    return " ".join(parts).replace("_", " ")
