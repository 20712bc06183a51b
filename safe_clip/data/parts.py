"""Columns that lie inside another, such as captions in the `.json` of a WebDataset sample."""

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from .column_names import folded
from .columns import with_column
from .features import inner_feature, stored_images
from .items import ABOUT_COLUMNS, ITEM_COLUMNS, LABEL_COLUMNS

logger = logging.getLogger(__name__)

SCHEMA = {folded(name) for name in (*ITEM_COLUMNS, *LABEL_COLUMNS, *ABOUT_COLUMNS)}
SIDED = {folded(name) for name in (*ITEM_COLUMNS, *LABEL_COLUMNS)}
OF_SAMPLES = "json"  # what WebDataset calls what is told of a sample


def parts_as_columns(rows: Dataset | IterableDataset, asked: Collection[str], where: str) -> Dataset | IterableDataset:
    """Rows with columns of their own in place of a column of parts that has some of the schema's or of `asked`.

    All texts, numbers and lists of them in it become columns, by their names, or with the names that they lie under
    (`meta.caption`) where those are taken or so asked for. The column `json` of WebDataset is always taken apart.

    Args:
        rows: a data set, whose columns must be known.
        asked: names of columns that the person speaks of.
        where: what messages call the rows.
    """
    for column, feature in dict(rows.features or {}).items():
        if not isinstance(feature, Mapping) or folded(column) in SCHEMA or column in asked:
            continue
        if {"bytes", "path"} <= set(feature):
            continue
        found = dict(_leaves(feature, ()))
        spoken = {".".join(path) for path in found} | {path[-1] for path in found}
        if column != OF_SAMPLES and not (set(asked) & spoken or SIDED & {folded(path[-1]) for path in found}):
            continue
        named: dict[str, tuple[str, ...]] = {}
        for path in found:
            whole = ".".join((column, *path))
            inside = ".".join(path)
            free = path[-1] not in rows.features and path[-1] not in named
            named[next((name for name in (whole, inside) if name in asked), path[-1] if free else whole)] = path
        kinds = {name: found[path] for name, path in named.items()}
        rows = _taken(rows, column, named, kinds)
        logger.warning("%s: of column '%s', %s are taken as columns.", where, column, ", ".join(map(repr, named)))
    return rows


def _leaves(feature: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The parts that are texts, numbers, classes or lists of them, by the names that lead to each."""
    if isinstance(feature, Mapping):
        for name, part in feature.items():
            yield from _leaves(part, (*path, name))
    elif isinstance(inner_feature(feature), Value | ClassLabel):
        yield path, feature


def _part(cell: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        cell = cell.get(name) if isinstance(cell, Mapping) else None
    return cell


def _taken(
    rows: Dataset | IterableDataset, column: str, named: Mapping[str, tuple[str, ...]], kinds: Mapping[str, Any]
) -> Dataset | IterableDataset:
    if isinstance(rows, Dataset):
        cells = rows[column][:]
        rows = rows.remove_columns([column]) if len(rows.column_names) > 1 else rows
        for name, path in named.items():
            rows = with_column(rows, name, [_part(cell, path) for cell in cells], kinds[name])
        return rows.remove_columns([column]) if column in rows.column_names and column not in named else rows
    rows = stored_images(rows)
    features = Features({**{name: kind for name, kind in rows.features.items() if name != column}, **kinds})
    return rows.map(
        lambda row: {name: _part(row[column], path) for name, path in named.items()},
        remove_columns=[column],
        features=features,
    )
