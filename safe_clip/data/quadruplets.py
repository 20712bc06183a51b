"""The schema of a quadruplet data set: loading, naming and checking it."""

import difflib
import json
import logging
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from datasets import Dataset, DatasetDict, Image, IterableDataset, Value

from ..errors import UserError
from .column_names import folded, guess_columns, says_unsafe
from .columns import numbered, stream_columns
from .confinement import confined_images, local_images
from .features import is_text, stored_images
from .flags import flag_columns
from .image_join import STREAM_IDS, join_images
from .items import ABOUT_COLUMNS, CAPTION_COLUMNS, IMAGE_COLUMNS, ITEM_COLUMNS, LABEL_COLUMNS, ROW_COLUMN
from .minors import refuse_minors
from .parts import parts_as_columns
from .places import find_place
from .plain import plain_rows, unformatted
from .presets import known_columns
from .sources import load_splits
from .splits import named_splits, part_off, take_part

logger = logging.getLogger(__name__)

DEMO = "demo"
SPELLED = [folded(name) for name in (*ITEM_COLUMNS, *LABEL_COLUMNS)]
ENDING = re.compile(r"\.(png|jpe?g|webp|txt|text|caption)$", re.IGNORECASE)  # of a kind of file in WebDataset shards
SHARDS = 64  # into which rows of one file are cut, so that many processes and workers may share the stream
STREAMED_ROWS = 1000  # of each split that is measured where training rows are streamed
VALIDATION_SHARE = 0.05  # of the training rows, where a data set has no validation split
MAX_VALIDATION_ROWS = 1000


def load_quadruplets(
    name: str,
    config: str | None = None,
    column_mapping: Mapping[str, str | None] | None = None,
    token: str | None = None,
    hold_out: bool = True,
    safe_images: str | None = None,
    unsafe_images: str | None = None,
    missing_images: str = "error",
    choose: Callable[[Collection[str]], Sequence[str]] | None = None,
    streaming: bool = False,
    caption_lists: str = "spread",
    sides_are_right: bool = False,
    skip_damaged: bool = False,
) -> DatasetDict:
    """Loads a quadruplet data set and checks its columns.

    Args:
        name: `"demo"` for the bundled demo, or as for `load_splits`; `NAME:SPLIT` or `NAME:train[:50%]` for one split
            or some of its rows. Paths in columns of images are meant from the folder where the data set lies; those
            of a data set from elsewhere only inside what was downloaded.
        config: the configuration of a Hub data set that has several.
        column_mapping: `{column of the data set: column of the schema}`, or `None` for a column to leave out; those of
            `PRESETS` are known.
        token: a Hub token; the one stored by `hf auth login` by default.
        hold_out: where there is no `validation` split, make a fixed share of `train` one.
        safe_images, unsafe_images: a folder or zip of images that are named after a number in each row, as for
            `join_images`.
        missing_images: what becomes of rows that have no image there, as for `join_images`.
        choose: names the splits that are wanted, of which alone anything is asked; all by default.
        streaming: let the rows of `train` come in a stream, for `QuadrupletStream`; of other splits, load the first
            `STREAMED_ROWS` alone. Nothing is held out.
        caption_lists: what becomes of several captions in a cell, as for `plain_rows`.
        sides_are_right: rename columns of the unsafe side to the safe one, or the reverse, where the mapping says so;
            by default that is an error.
        skip_damaged: as for `load_splits`.

    Returns:
        Splits, without rows that sexualise minors, with those of the columns `safe_caption`, `safe_image`,
        `unsafe_caption`, `unsafe_image` that there are, and whatever else the data set has. Cells of them may be empty.
        Of their names, `val`, `training` and the like become `validation` and `train`.

    Raises:
        UserError: the data set cannot be found or opened, or its columns do not match.
    """
    name, part = part_off(name)
    if name == DEMO:
        from ..demo.dataset import load_demo

        splits = cast(dict[str, Any], load_demo())
    else:
        loaded = load_splits(name, config, token, streaming=streaming, skip_damaged=skip_damaged)
        splits = cast(dict[str, Any], loaded)
    for split, rows in splits.items():
        if ROW_COLUMN in _columns(rows):  # which rows that were saved had in another data set
            splits[split] = rows.remove_columns([ROW_COLUMN])
    splits = named_splits(splits, f"--dataset {name}")
    if part:
        splits = take_part(splits, part, f"--dataset {name}")
    if choose is not None:
        splits = {split: splits[split] for split in choose(splits)}
    home = find_place(name).home if name != DEMO else None
    for split, rows in splits.items():
        where = f"split '{split}' of {name}"
        rows, mapping = _renamed(unformatted(rows, where), column_mapping or {}, where, sides_are_right)
        rows = plain_rows(refuse_minors(rows, where), where, caption_lists)
        if streaming and split != "train":
            rows = first_rows(rows, STREAMED_ROWS)
        elif streaming and isinstance(rows, Dataset):
            rows = rows.to_iterable_dataset(min(SHARDS, max(1, len(rows))))
        for column, place in (("safe_image", safe_images), ("unsafe_image", unsafe_images)):
            if place:
                rows = join_images(rows, column, place, where, missing_images)
            elif column in _columns(rows) and name != DEMO:
                rows = local_images(rows, column, home) if home else confined_images(rows, column, name)
        check_columns(_columns(rows), where, _known_kinds(rows), mapping)
        if isinstance(rows, Dataset) and len(rows) == 0:
            raise UserError(f"{where} is empty; remove it or give it rows.")
        splits[split] = rows
    # pyrefly: ignore [no-matching-overload]: datasets has `NamedSplit` beside texts in the type of names
    checked = DatasetDict(splits)
    return hold_out_validation(checked) if hold_out and not streaming else checked


def _columns(rows: Dataset | IterableDataset) -> list[str]:
    return stream_columns(rows) if isinstance(rows, IterableDataset) else rows.column_names


def first_rows(rows: Dataset | IterableDataset, count: int) -> Dataset:
    """The first rows, out of a stream too, whose images are not decoded yet."""
    if isinstance(rows, Dataset):
        return cast(Dataset, rows.select(range(min(count, len(rows)))))
    rows = stored_images(rows)
    first = Dataset.from_list(list(rows.take(count)), features=rows.features)
    for column, feature in first.features.items():
        if isinstance(feature, Image):
            first = first.cast_column(column, Image())
    return first


def _renamed(
    rows: Dataset | IterableDataset, asked: Mapping[str, str | None], where: str, sides_are_right: bool
) -> tuple[Any, dict[str, str | None]]:
    """Rows under the schema's names, and how they were renamed: as is asked for, by how the schema's own names are
    written, and by a preset."""
    rows = parts_as_columns(rows, asked, where)
    columns = _columns(rows)
    mapping = check_mapping(asked, columns, where, sides_are_right)
    known = {folded(name): name for name in (*ITEM_COLUMNS, *LABEL_COLUMNS, *ABOUT_COLUMNS)}
    spelled = {old: known.get(folded(ENDING.sub("", old))) for old in columns if old not in mapping}
    alike = {old: new for old, new in spelled.items() if new is not None}
    taken = [*columns, *mapping.values()]
    alike = {old: new for old, new in alike.items() if new not in taken and list(alike.values()).count(new) == 1}
    if alike:
        logger.warning("%s: taking %s.", where, ", ".join(f"'{old}' as {new}" for old, new in alike.items()))
    mapping |= alike
    for column in columns:
        if (found := re.fullmatch(rf"({'|'.join(ITEM_COLUMNS)})\.\d+", column)) and found[1] in columns:
            logger.warning("%s has '%s' twice; the first of them is taken.", where, found[1])
    left_out = [old for old, new in mapping.items() if new is None]
    rows = cast(Dataset | IterableDataset, rows.remove_columns(left_out))
    # What is left to presets goes by the names that columns have now.
    now = [mapping.get(column) or column for column in _columns(rows)]
    features = rows.features and {mapping.get(old) or old: feature for old, feature in rows.features.items()}
    found = known_columns(now, features)
    captions = [old for old, new in found[1].items() if new in CAPTION_COLUMNS] if found else []
    own = [old for old in _columns(rows) if (mapping.get(old) or old) in captions]
    if found and not flag_columns(rows, own):
        preset, names = found
        names = {old: new for old, new in names.items() if old not in mapping.values()}
        summary = ", ".join(f"{old} as {new}" for old, new in names.items())
        if summary:
            logger.warning("%s has the columns of %s: taking %s.", where, preset, summary)
        mapping |= names
    after = [mapping.get(column) or column for column in _columns(rows)]
    for column in after:
        if after.count(column) > 1:
            raise UserError(f"--column_mapping gives {where} two columns '{column}'; rename the other one too.")
    renamed = {old: new for old, new in mapping.items() if new is not None and new != old}
    return (rows.rename_columns(renamed) if renamed else rows), mapping


def _known_kinds(rows: Dataset | IterableDataset) -> Mapping[str, Any] | None:
    """The kinds of columns; texts that are yes or no are no texts, so that none is proposed for captions."""
    sure, doubtful = guess_columns(_columns(rows), rows.features)
    texts = [name for name in (*sure, *doubtful) if is_text((rows.features or {}).get(name))]
    return rows.features and {**rows.features, **dict.fromkeys(flag_columns(rows, texts), Value("bool"))}


def check_mapping(
    mapping: Mapping[str, str | None], columns: Sequence[str], where: str, sides_are_right: bool = False
) -> dict[str, str | None]:
    """How columns are to be renamed, where they have these names.

    Raises:
        UserError: there is no such column, it is to have a name that only looks like one of the schema, or its own name
            says the other side.
    """
    found: dict[str, str | None] = {}
    for old, new in mapping.items():
        name = old if old in columns else next((each for each in columns if each.strip() == str(old).strip()), None)
        if name is None:
            raise UserError(
                f"--column_mapping renames '{old}', which {where} lacks; its columns are {_listed(columns)}."
            )
        if not isinstance(new, str | None) or new == "":
            raise UserError(
                f"--column_mapping calls '{old}' {new!r}, which is no name; those of the schema are "
                f"{_listed(ITEM_COLUMNS)}, and null leaves a column out."
            )
        if new is not None and new not in ITEM_COLUMNS:
            close = difflib.get_close_matches(folded(new), SPELLED, n=1, cutoff=0.85)
            if (close and new not in LABEL_COLUMNS) or " or " in str(new):
                raise UserError(
                    f"--column_mapping calls '{old}' '{new}', which is no column of the schema; those are "
                    f"{_listed(ITEM_COLUMNS)}."
                )
        unsafe = says_unsafe(name)
        if new in ITEM_COLUMNS and unsafe is not None and unsafe != new.startswith("unsafe"):
            says, side = ("unsafe", "safe") if unsafe else ("safe", "unsafe")
            doubt = f"--column_mapping makes '{old}' of {where} {new}, but its name says {says}, not {side}"
            if not sides_are_right:
                raise UserError(f"{doubt}. Swap the two sides, or go on with --sides_are_right if this is right.")
            logger.warning("%s.", doubt)
        found[name] = new
    return found


def hold_out_validation(splits: DatasetDict) -> DatasetDict:
    """Makes a fixed share of `train` a `validation` split, where there is none."""
    if "train" in splits and "validation" not in splits:
        rows = numbered(plain_rows(splits["train"], "split 'train'"))
        numbers = rows[ROW_COLUMN]
        known = list(dict.fromkeys(numbers))  # rows that were made of one stay together
        count = min(MAX_VALIDATION_ROWS, max(1, round(VALIDATION_SHARE * len(known))))
        if count < len(known):
            chosen = {known[place] for place in random.Random(0).sample(range(len(known)), count)}
            kept = [place for place, number in enumerate(numbers) if number not in chosen]
            held = [place for place, number in enumerate(numbers) if number in chosen]
            splits["train"] = cast(Dataset, rows.select(kept))
            splits["validation"] = cast(Dataset, rows.select(held))
    return splits


def check_columns(
    columns: Sequence[str],
    where: str,
    features: Mapping[str, Any] | None = None,
    mapping: Mapping[str, str | None] | None = None,
) -> None:
    """Warns of items that rows lack altogether.

    Args:
        columns: the names of the columns.
        where: what messages call the rows.
        features: of the columns, where they are known.
        mapping: how columns were renamed before, which messages undo.

    Raises:
        UserError: there is no item at all, or another column is likely meant for one that is missing.
    """
    missing = [column for column in ITEM_COLUMNS if column not in columns]
    if not missing:
        return
    mapping = dict(mapping or {})
    own = {new: old for old, new in mapping.items() if new is not None}
    sure, doubtful = guess_columns([name for name in columns if name not in {*STREAM_IDS, ROW_COLUMN}], features)
    lacks = f"{where} lacks the column{'s' * (len(missing) > 1)} {_listed(missing)}"
    absent = [column for column in missing if column in IMAGE_COLUMNS]
    elsewhere = f" Images in a folder or zip of their own are named by {' and '.join(f'--{c}s' for c in absent)}."
    if sure or doubtful or len(missing) == len(ITEM_COLUMNS):
        guesses = {own.get(name, name): new for name, new in sure.items()}
        open_ones = {own.get(name, name): " or ".join(places) for name, places in doubtful.items()}
        example = mapping | guesses if guesses else mapping | (open_ones or {"YOUR_COLUMN": missing[0]})
        unsure = "; ".join(f"say whether '{name}' is {places}, or neither" for name, places in open_ones.items())
        first = next(iter(guesses or open_ones or example))
        raise UserError(
            f"{lacks}; it has {_listed([own.get(name, name) for name in columns])}. Name them with --column_mapping "
            f"'{json.dumps(example)}'{f' ({unsure})' if unsure else ''}, or leave a column that is something else out "
            f"with '{{{json.dumps(first)}: null}}'.{elsewhere if absent else ''}"
        )
    logger.warning("%s: what needs none is trained and measured.%s", lacks, elsewhere if absent else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
