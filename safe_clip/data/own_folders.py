"""Tables that lie in several folders, each with its images beside it: paths in their rows count from their own."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, concatenate_datasets, load_dataset

from .confinement import changed_cells, names_file, path_from
from .features import is_text
from .image_join import IMAGE_SUFFIXES

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
    listed = [(split, *each) for split in files for each in zip(files[split], folders[split], strict=True)]
    columns = _columns_of_paths(kind, listed, options) if len({folder for *_, folder in listed}) > 1 else []
    if not columns:
        return load_dataset(kind, data_files=files, **options)
    groups: dict[tuple[str, Path], list[str]] = {}
    for split, file, folder in listed:
        groups.setdefault((split, folder), []).append(file)
    parts = {f"{split}.part{number}": files for number, ((split, _), files) in enumerate(groups.items())}
    loaded = load_dataset(kind, data_files=parts, **options)
    found: dict[str, list[Dataset | IterableDataset]] = {}
    for (split, folder), part in zip(groups, parts, strict=True):
        rows = loaded[part]
        for column in columns:
            rows = changed_cells(rows, column, lambda cell, folder=folder: _beside(cell, folder) or cell)
        found.setdefault(split, []).append(rows)
    return type(loaded)({split: concatenate_datasets(rows) for split, rows in found.items()})


def _columns_of_paths(kind: str, listed: list[tuple[str, str, Path]], options: dict[str, Any]) -> list[str]:
    """The columns in which the first rows of the first tables name images that lie beside their table."""
    found: dict[str, None] = {}
    for _, file, folder in listed[:PEEKED_TABLES]:
        rows = load_dataset(kind, data_files=file, split="train", **options | {"streaming": True})
        if rows.features is not None:  # images that a table holds need not be decoded
            rows = rows.select_columns([name for name, feature in rows.features.items() if is_text(feature)])
        for row in rows.take(PEEKED_ROWS):
            found |= {name: None for name, cell in row.items() if _beside(cell, folder)}
    return list(found)


def _beside(cell: Any, folder: Path) -> str | None:
    """The whole path of the image that a cell names from a folder, if there is one."""
    if not names_file(cell) or not cell.lower().endswith(IMAGE_SUFFIXES) or Path(cell).is_absolute():
        return None
    try:
        path = path_from(folder.absolute(), cell)
        return str(path) if path.is_file() else None
    except (OSError, ValueError):  # too long, or with NUL characters
        return None
