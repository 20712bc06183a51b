"""Tables that lie in several folders, each with its images beside it: paths in their rows count from their own."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, concatenate_datasets, load_dataset

from .cells import is_inline
from .confinement import changed_cells
from .schema import PICTURES

PEEKED_TABLES, PEEKED_ROWS = 16, 100


def load_files(
    kind: str, files: dict[str, list[str]], folders: dict[str, list[Path]], **options: Any
) -> DatasetDict | IterableDatasetDict:
    """`load_dataset` of files; where the first rows of a table name images that lie beside it, each table's paths are
    made whole.

    Args:
        kind: of files, as `datasets` calls it.
        files: by split.
        folders: where each of them lies for the person who named it, which is not where links and copies of it do.
        **options: for `load_dataset`.
    """
    listed = [(file, folder) for split in files for file, folder in zip(files[split], folders[split], strict=True)]
    columns = _columns_of_paths(kind, listed, options) if len({folder for _, folder in listed}) > 1 else []
    if not columns:
        return load_dataset(kind, data_files=files, **options)
    parts: dict[str, list[str]] = {}
    homes: dict[str, tuple[str, Path]] = {}
    for split in files:
        names: dict[Path, str] = {}
        for file, folder in zip(files[split], folders[split], strict=True):
            name = names.setdefault(folder, f"{split}.part{len(names)}")
            parts.setdefault(name, []).append(file)
            homes[name] = split, folder
    loaded = load_dataset(kind, data_files=parts, **options)
    found: dict[str, list[Dataset | IterableDataset]] = {}
    for name, rows in loaded.items():
        split, folder = homes[name]
        for column in columns:
            rows = changed_cells(rows, column, lambda cell, folder=folder: _beside(cell, folder) or cell)
        found.setdefault(split, []).append(rows)
    return type(loaded)({split: concatenate_datasets(rows) for split, rows in found.items()})


def _columns_of_paths(kind: str, listed: list[tuple[str, Path]], options: dict[str, Any]) -> list[str]:
    """The columns in which a table names images that lie beside it."""
    options = {**options, "streaming": True}
    for file, folder in listed[:PEEKED_TABLES]:
        rows = load_dataset(kind, data_files=file, split="train", **options)
        rows = rows.take(PEEKED_ROWS)
        found = {name: None for row in rows for name, cell in row.items() if _beside(cell, folder)}
        if found:
            return list(found)
    return []


def _beside(cell: Any, folder: Path) -> str | None:
    """The image that a cell names from a folder, if there is one."""
    if not isinstance(cell, str) or is_inline(cell) or not cell.lower().endswith(PICTURES) or Path(cell).is_absolute():
        return None
    try:
        return next((str(folder / each) for each in (cell, cell.replace("\\", "/")) if (folder / each).is_file()), None)
    except (OSError, ValueError):  # too long, or with NUL characters
        return None
