"""The schema of a quadruplet data set: loading, naming and checking it."""

import difflib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset, DatasetDict, Image, IterableDataset, IterableDatasetDict
from torch.utils.data import Dataset as TorchDataset

from ..errors import UserError
from .images import open_image
from .schema import ROW_COLUMN, join_pictures, known_columns, local_pictures, numbered
from .sources import load_splits

logger = logging.getLogger(__name__)

CAPTION_COLUMNS = ("safe_caption", "unsafe_caption")
IMAGE_COLUMNS = ("safe_image", "unsafe_image")
REQUIRED_COLUMNS = (*CAPTION_COLUMNS, *IMAGE_COLUMNS)
# Where a data set has them: items of the unsafe side that came out harmless.
LABEL_COLUMNS = ("unsafe_caption_is_safe", "unsafe_image_is_safe")

REPLACEMENT = "\ufffd\ufffd"  # what decoders put for bytes that they cannot read; one alone may be a typo
DEMO = "demo"
VALIDATION_SHARE = 0.05  # of the training rows, where a data set has no validation split
MAX_VALIDATION_ROWS = 1000


def load_quadruplets(
    name: str,
    config: str | None = None,
    column_mapping: Mapping[str, str] | None = None,
    token: str | None = None,
    hold_out: bool = True,
    safe_images: str | None = None,
    unsafe_images: str | None = None,
    skip_missing: bool = False,
    choose: Callable[[DatasetDict], Sequence[str]] | None = None,
) -> DatasetDict:
    """Loads a quadruplet data set and checks its columns.

    Args:
        name: `"demo"` for the embedded world, or as for `load_splits`. Paths in columns of pictures are meant from the
            folder where the data set lies.
        config: the configuration of a Hub data set that has several.
        column_mapping: `{column of the data set: column of the schema}`; those of `PRESETS` are known.
        token: a Hub token; the one stored by `hf auth login` by default.
        hold_out: where there is no `validation` split, make a fixed share of `train` one.
        safe_images, unsafe_images: a folder or zip of pictures that are named after a number in each row, as for
            `join_pictures`.
        skip_missing: leave out rows that have no picture there.
        choose: names the splits that are wanted, of which alone anything is asked; all by default.

    Returns:
        Splits with the columns `safe_caption`, `safe_image`, `unsafe_caption`, `unsafe_image` and
        whatever else the data set has.

    Raises:
        UserError: the data set cannot be found or opened, or its columns do not match.
    """
    if name == DEMO:
        from ..demo.dataset import load_demo

        splits = load_demo()
    else:
        splits = load_splits(name, config, token)
    if choose is not None:
        splits = DatasetDict({split: splits[split] for split in choose(splits)})
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    for split, rows in splits.items():
        where = f"split '{split}' of {name}"
        rows = _renamed(rows, column_mapping or {}, where)
        for column, place in (("safe_image", safe_images), ("unsafe_image", unsafe_images)):
            if place:
                rows = join_pictures(rows, column, place, where, skip_missing)
            elif Path(name).exists():
                rows = local_pictures(rows, column, folder)
        check_columns(rows.column_names, where)
        if len(rows) == 0:
            raise UserError(f"{where} is empty; remove it or give it rows.")
        splits[split] = rows
    return hold_out_validation(splits) if hold_out else splits


def _renamed(rows: Dataset, mapping: Mapping[str, str], where: str) -> Dataset:
    """Rows under the schema's names: those that are asked for, and those of a preset for other columns."""
    for old in mapping:
        if old not in rows.column_names:
            raise UserError(
                f"--column_mapping renames '{old}', which {where} lacks; its columns are {_listed(rows.column_names)}."
            )
    mapping = dict(mapping)
    if known := known_columns(rows.column_names):
        preset, names = known
        names = {old: new for old, new in names.items() if old not in mapping and new not in mapping.values()}
        told = ", ".join(f"{old} as {new}" for old, new in names.items())
        if told:
            logger.warning("%s has the columns of %s: taking %s.", where, preset, told)
        mapping |= names
    after = [mapping.get(column, column) for column in rows.column_names]
    for column in after:
        if after.count(column) > 1:
            raise UserError(f"--column_mapping gives {where} two columns '{column}'; rename the other one too.")
    return rows.rename_columns(mapping)


def hold_out_validation(splits: DatasetDict) -> DatasetDict:
    """Makes a fixed share of `train` a `validation` split, where there is none."""
    if "train" in splits and "validation" not in splits:
        rows = splits["train"]
        count = min(MAX_VALIDATION_ROWS, max(1, round(VALIDATION_SHARE * len(rows))))
        if count < len(rows):
            rows = numbered(rows)
            chosen = set(random.Random(0).sample(range(len(rows)), count))
            splits["train"] = rows.select([index for index in range(len(rows)) if index not in chosen])
            splits["validation"] = rows.select(sorted(chosen))
    return splits


def check_columns(columns: list[str], where: str) -> None:
    """Raises `UserError` unless all required columns are among `columns`, saying what is likely meant."""
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if not missing:
        return
    spare = [column for column in columns if column not in REQUIRED_COLUMNS]
    guesses = {}
    for column in missing:
        close = difflib.get_close_matches(column, spare, n=1, cutoff=0.5)
        guesses.update({close[0]: column} if close else {})
    example = guesses or {"YOUR_COLUMN": missing[0]}
    mapping = ", ".join(f'"{old}": "{new}"' for old, new in example.items())
    pictures = [column for column in missing if column in IMAGE_COLUMNS]
    elsewhere = f" Pictures in a folder or zip of their own are named by {' and '.join(f'--{c}s' for c in pictures)}."
    raise UserError(
        f"{where} lacks the column{'s' * (len(missing) > 1)} {_listed(missing)}; it has {_listed(columns)}. "
        f"Name them with --column_mapping '{{{mapping}}}'.{elsewhere if pictures else ''}"
    )


def check_caption(value: Any, row: int, column: str) -> str:
    """Returns a caption if it is a text with something in it, and raises `UserError` otherwise."""
    if not isinstance(value, str):
        raise UserError(
            f"row {row}, column '{column}': a caption must be text, not {type(value).__name__}. "
            "Fill the cell or remove the row."
        )
    if not value.strip():
        raise UserError(f"row {row}, column '{column}': the caption is empty. Fill the cell or remove the row.")
    if "\0" in value or REPLACEMENT in value:
        raise UserError(
            f"row {row}, column '{column}': the caption was read in the wrong encoding, or is no text: it holds "
            f"{'NUL' if chr(0) in value else 'U+FFFD'} characters. Mend the cell or remove the row."
        )
    return value


def check_label(value: Any, row: int, column: str) -> bool:
    """Returns a label if it is true or false, and raises `UserError` otherwise."""
    if value not in (True, False):
        raise UserError(
            f"row {row}, column '{column}': a label must be true or false, not {value!r}. "
            "Fill the cell or remove the column."
        )
    return bool(value)


def rows_digest(rows: Any) -> dict[str, Any]:
    """What tells whether rows are those that they were: their number, and a digest of each column of text or labels.

    Pictures are not read; nothing but the number is told of rows that are no `datasets.Dataset`.
    """
    digest = {"rows": len(rows)}
    if isinstance(rows, Dataset):
        for column in (*CAPTION_COLUMNS, *LABEL_COLUMNS):
            if column in rows.column_names:
                state = xxhash.xxh3_128()
                for part in rows.select_columns([column]).iter(batch_size=1000):
                    state.update(repr(part[column]).encode(errors="surrogatepass"))
                digest[column] = state.hexdigest()
    return digest


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names)


class QuadrupletRows(TorchDataset):
    """Checked rows of a quadruplet data set, decoded one by one so that errors can name them.

    Args:
        rows: anything with a length and integer indexing that gives dictionaries with the required
            columns, such as a `datasets.Dataset`.

    Each item is `{safe_caption, unsafe_caption: str, safe_image, unsafe_image: RGB PIL.Image, row: int}`, where `row`
    is its number in `rows`, with the booleans `unsafe_caption_is_safe`, `unsafe_image_is_safe` where `rows` has them.
    """

    def __init__(self, rows: Any):
        if isinstance(rows, IterableDataset | IterableDatasetDict):
            raise UserError("streamed data sets cannot be trained on; load it without streaming=True.")
        if isinstance(rows, DatasetDict):
            raise UserError(f"this is a dictionary of splits ({_listed(list(rows))}); name one, such as rows['train'].")
        if isinstance(rows, Dataset):
            check_columns(rows.column_names, "the data set")
            wanted = (*REQUIRED_COLUMNS, *LABEL_COLUMNS, ROW_COLUMN)
            rows = rows.select_columns([name for name in wanted if name in rows.column_names])
            for column in IMAGE_COLUMNS:
                # Decoding lazily and here is what lets a broken picture be named by row and column.
                if isinstance(rows.features[column], Image):
                    rows = rows.cast_column(column, Image(decode=False))
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        number = row.get(ROW_COLUMN, index)
        check_columns(list(row), f"row {number}")
        return {
            **{column: check_caption(row[column], number, column) for column in CAPTION_COLUMNS},
            **{column: open_image(row[column], number, column) for column in IMAGE_COLUMNS},
            **{column: check_label(row[column], number, column) for column in LABEL_COLUMNS if column in row},
            "row": index,
        }
