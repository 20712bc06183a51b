"""Rows as anybody stores them, made plain: no format, and a caption or none in each cell of captions."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain, cycle, islice, repeat
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, List, Value

from ..errors import UserError, first_line
from .columns import numbered, with_column
from .features import inner_feature, is_text, stored_images, texts_in
from .items import CAPTION_COLUMNS, IMAGE_COLUMNS, ROW_COLUMN

logger = logging.getLogger(__name__)


def plain_rows(rows: Any, where: str = "the data set", caption_lists: str = "spread") -> Any:
    """Rows without a format, whose captions are one text to a cell.

    Names of classes take the place of their numbers. Of lists of captions, each gets a row: of k safe and m unsafe ones
    as many as the longer list has, the shorter one going round; lists of one length are pairs, and an empty place in
    one is an empty cell of its row. Such rows keep the number of the row they are made of.

    Args:
        rows: a `Dataset` or `IterableDataset`, or a table of pandas, polars or pyarrow, which is made one; anything
            else is given back as it is.
        where: what messages call them.
        caption_lists: `"spread"` to rows, take the `"first"`, or `"error"`.

    Raises:
        UserError: rows have a transform, columns of captions hold images or parts, or images come in lists.
    """
    rows = _as_data_set(rows)
    if not isinstance(rows, Dataset | IterableDataset):
        return rows
    rows = _without_views(unformatted(rows, where))
    features = rows.features
    if features is None:
        first = next(iter(rows), {})
        features = {name: List(Value("string")) for name in CAPTION_COLUMNS if _is_list(first.get(name))}
    for column in {*CAPTION_COLUMNS, *IMAGE_COLUMNS} & set(features):
        _check(features[column], column, where)
    odd = {column: features[column] for column in CAPTION_COLUMNS if column in features and _is_odd(features[column])}
    if isinstance(rows, Dataset):
        rows = _without_numbers_of_nothing(rows)
    if not odd:
        return rows
    return (
        _read_stream(rows, odd, caption_lists)
        if isinstance(rows, IterableDataset)
        else _read(rows, odd, where, caption_lists)
    )


def _without_views(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Texts of type `string_view` as `string`: pyarrow 24 crashes where it picks rows of the former."""
    views = {name: Value("string") for name, kind in (rows.features or {}).items() if kind == Value("string_view")}
    return rows.cast(Features({**rows.features, **views})) if views and isinstance(rows, Dataset) else rows


def _as_data_set(rows: Any) -> Any:
    """A table of pandas, polars or pyarrow as a `Dataset`; anything else as it is."""
    kind, library = type(rows).__name__, type(rows).__module__.partition(".")[0]
    try:
        if (library, kind) == ("pandas", "DataFrame"):
            return Dataset.from_pandas(rows, preserve_index=False)
        if (library, kind) == ("polars", "DataFrame"):
            return Dataset.from_polars(rows)
        if (library, kind) == ("pyarrow", "Table"):
            return Dataset(rows)
        return rows
    except Exception as error:  # cells of images, of several types: each library has its own
        raise UserError(
            f"a {library} {kind} could not be made a data set ({first_line(error)}); pass datasets.Dataset.from_dict, "
            "with images as files or bytes."
        ) from error


def unformatted(rows: Any, where: str = "the data set") -> Any:
    """Rows as they are stored: `with_format` is undone.

    Raises:
        UserError: they have a transform of their own, which would be lost.
    """
    if not isinstance(rows, Dataset):
        return rows.with_format(None) if isinstance(rows, IterableDataset) else rows
    if rows.format["type"] == "custom":
        raise UserError(
            f"{where} has a transform (with_transform or set_transform), which changes rows as they are read; make its "
            "changes with rows.map(...), or leave it out with rows.with_format(None)."
        )
    columns = rows.format["columns"]
    return rows if rows.format["type"] is None and columns == rows.column_names else rows.with_format(None)


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple | np.ndarray)


def _is_odd(feature: Any) -> bool:
    """Whether captions of this kind have to be read in a way of their own."""
    inner = inner_feature(feature)
    listed = inner is not feature and (is_text(inner) or isinstance(inner, ClassLabel))
    return listed or isinstance(feature, ClassLabel) or _is_json(inner)


def _is_json(feature: Any) -> bool:
    """Whether cells are of several kinds, such as some texts and some lists of them."""
    return type(feature).__name__ == "Json"  # which older `datasets` lack


def _check(feature: Any, column: str, where: str) -> None:
    inner = inner_feature(feature)
    named = f"{where}: column '{column}'"
    if column in CAPTION_COLUMNS:
        if isinstance(inner, Image):
            raise UserError(f"{named} holds images, not captions; name another with --column_mapping.")
        if isinstance(inner, Mapping):
            part = next((name for name, each in inner.items() if is_text(each)), next(iter(inner), "text"))
            one = f"row['{column}']['{part}']"
            if inner is not feature:
                one = f"[each['{part}'] for each in row['{column}']]"
            raise UserError(
                f"{named} holds parts ({', '.join(inner)}), not captions; make one of them a column, such as with "
                f"rows.map(lambda row: {{'{column}': {one}}})."
            )
    elif inner is not feature and (isinstance(inner, Image | Mapping) or is_text(inner) or "binary" in str(inner)):
        raise UserError(f"{named} holds lists of images, but a row has one of each side; give each a row of its own.")


def _without_numbers_of_nothing(rows: Dataset) -> Dataset:
    """Rows whose columns of items are empty where they hold "not a number" alone, as pandas writes empty ones."""
    for column in (*CAPTION_COLUMNS, *IMAGE_COLUMNS):
        feature = rows.features.get(column)
        numbers = isinstance(feature, Value) and feature.dtype.startswith(("float", "double"))
        if numbers and all(cell is None or math.isnan(cell) for cell in rows[column]):
            rows = with_column(rows, column, [None] * len(rows))
    return rows


def _captions(feature: Any, cell: Any) -> list[Any]:
    """The captions of a cell, `None` for each place that is empty: none, one, or those of a list. What is no text stays
    as it is, for `check_caption` to name."""
    if _is_list(cell):
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
        return [caption for part in cell for caption in _captions(inner, part)]
    return list(texts_in(feature, cell)) if isinstance(feature, ClassLabel) and cell is not None else [cell]


def _spread(cells: Mapping[str, list[list[Any]]], how: str) -> tuple[list[int], dict[str, list[Any]]]:
    """The rows that each row is made into, and their captions.

    Args:
        cells: by column, the captions of N rows.
        how: `"first"` takes the first of each alone.
    """
    made = [_together(row, how) for row in zip(*cells.values(), strict=True)]
    rows = list(chain.from_iterable(repeat(row, len(each)) for row, each in enumerate(made)))
    captions = {column: [each[place] for row in made for each in row] for place, column in enumerate(cells)}
    return rows, captions


def _together(cells: Sequence[list[Any]], how: str) -> list[tuple[Any, ...]]:
    """The captions that stand together in each row that one row is made into, one of each column.

    Lists of one length are pairs, place by place; of others, the shorter one goes round.
    """
    if len({len(cell) for cell in cells}) > 1:
        cells = [[caption for caption in cell if caption is not None] for cell in cells]
        most = max(1, *map(len, cells))
        cells = [list(islice(cycle(cell or [None]), most)) for cell in cells]
    rows = [row for row in zip(*cells, strict=True) if any(caption is not None for caption in row)]
    rows = rows or [(None,) * len(cells)]
    # Of paired lists, the first place that both have.
    return [max(rows, key=lambda row: sum(caption is not None for caption in row))] if how == "first" else rows


def _kind(feature: Any, captions: Sequence[Any] | None = None) -> Any:
    """Of a column of captions that were read: texts, or JSON where a cell may be (or is) something else."""
    inner = inner_feature(feature)
    texts = captions is not None and all(isinstance(caption, str | None) for caption in captions)
    return inner if _is_json(inner) and not texts else Value("string")


def _stored(kind: Any, captions: list[Any]) -> list[Any]:
    """Captions as a column of this kind stores them; by itself, `datasets` takes the text "7" for a number."""
    if not _is_json(kind):
        return captions
    return [caption if caption is None else json.dumps(caption, ensure_ascii=False) for caption in captions]


def _read(rows: Dataset, odd: Mapping[str, Any], where: str, how: str) -> Dataset:
    cells = {column: [_captions(feature, cell) for cell in rows[column]] for column, feature in odd.items()}
    several = [row for row, each in enumerate(zip(*cells.values(), strict=True)) if len(_together(each, "spread")) > 1]
    number = rows[ROW_COLUMN][several[0]] if several and ROW_COLUMN in rows.column_names else (several or [0])[0]
    if several and how == "error":
        raise UserError(
            f"{where}: {len(several):,} rows have lists of captions, such as row {number}. --caption_lists spread "
            "gives each caption a row, --caption_lists first takes the first of each list."
        )
    places, captions = _spread(cells, how)
    made = numbered(rows).select(places) if several else rows
    for column, texts in captions.items():
        kind = _kind(odd[column], texts)
        made = with_column(made, column, _stored(kind, texts), kind)
    if several:
        became = "the first of each is taken" if how == "first" else f"spread to {len(made):,} rows, a caption in each"
        logger.warning("%s: %d of %d rows have lists of captions: %s.", where, len(several), len(rows), became)
    return made


def _read_stream(rows: IterableDataset, odd: Mapping[str, Any], how: str) -> IterableDataset:
    rows = stored_images(rows)

    def read(batch: dict[str, list]) -> dict[str, list]:
        cells = {column: [_captions(feature, cell) for cell in batch[column]] for column, feature in odd.items()}
        if how == "error" and any(len(_together(row, "spread")) > 1 for row in zip(*cells.values(), strict=True)):
            raise UserError("a row has a list of captions. --caption_lists spread gives each caption a row.")
        places, captions = _spread(cells, how)
        return {column: [cells[place] for place in places] for column, cells in batch.items()} | captions

    features = rows.features and Features({**rows.features, **{column: _kind(kind) for column, kind in odd.items()}})
    return rows.map(read, batched=True, batch_size=16, features=features)
