"""Columns of a data set: their names, numbers of rows, and cells in place of others."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from .items import ROW_COLUMN

NEW_COLUMN = "safe_clip_new"  # a name that nobody has


def stream_columns(rows: IterableDataset) -> list[str]:
    """The names of a stream's columns, for which its first row may have to be read."""
    return list(next(iter(rows), {})) if rows.column_names is None else rows.column_names


def numbered(rows: Dataset) -> Dataset:
    """Rows that still know their numbers when some are picked out."""
    return rows if ROW_COLUMN in rows.column_names else rows.add_column(ROW_COLUMN, list(range(len(rows))))


def with_column(rows: Dataset, column: str, cells: Sequence[Any], feature: Any = None) -> Dataset:
    """Rows with a column of these cells, in place of the one of that name, if there is one."""
    if column not in rows.column_names:
        return rows.add_column(column, list(cells), feature=feature)
    # Without any column, rows would forget how many they are.
    made = rows.add_column(NEW_COLUMN, list(cells), feature=feature)
    return made.remove_columns([column]).rename_column(NEW_COLUMN, column)
