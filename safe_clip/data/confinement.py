"""Images that rows name by path: from the folder where a data set lies, or, of one from elsewhere, inside it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, DownloadConfig, Image, IterableDataset, IterableDatasetDict
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable
from datasets.utils.file_utils import xopen
from huggingface_hub.file_download import repo_folder_name

from .cells import MOST_BYTES, OUTSIDE, is_inline
from .columns import with_column
from .features import is_text

ON_HUB = re.compile(r"hf://datasets/([^@]+?)(?:@([^/]+))?/(.*)")


def local_images(rows: Dataset | IterableDataset, column: str, home: Path) -> Dataset | IterableDataset:
    """Paths in a column of text, which are meant from a folder of this machine; the rest as it is."""

    return changed_cells(rows, column, lambda cell: str(path_from(home, cell)) if names_file(cell) else cell)


def names_file(cell: Any) -> bool:
    """Whether a cell of text is a path, and neither empty, an address, nor an image itself."""
    return isinstance(cell, str) and cell != "" and not is_inline(cell) and "://" not in cell


def path_from(home: Path, cell: str) -> Path:
    """The path that a cell means from a folder."""
    path = home / Path(cell).expanduser() if cell.startswith("~/") else home / cell
    if "\\" in cell and not path.exists():  # written on Windows
        path = home / cell.replace("\\", "/")
    return path


def confined_images(rows: Dataset | IterableDataset, column: str, name: str) -> Dataset | IterableDataset:
    """Paths in a column of a data set from elsewhere: what lies in what was downloaded is found, and no other file of
    this machine is.

    Args:
        rows: of one split.
        column: of images, or of text that names them.
        name: the id of the data set.
    """
    inside = _Inside(name, rows)
    if column in (rows.features or {}) and isinstance(rows.features[column], Image):
        if isinstance(rows, Dataset):
            return _changed_paths(rows, column, inside.path)
        rows = rows.cast_column(column, Image(decode=False))
    return changed_cells(rows, column, inside.cell)


def confined(splits: DatasetDict | IterableDatasetDict | Dataset, name: str) -> Any:
    """All splits, with their columns of images confined as by `confined_images`."""
    if isinstance(splits, Dataset | IterableDataset):
        for column, feature in (splits.features or {}).items():
            if isinstance(feature, Image):
                splits = confined_images(splits, column, name)
        return splits
    return type(splits)({split: confined(rows, name) for split, rows in splits.items()})


class _Inside:
    """What lies in a data set of the Hub, as far as it was downloaded."""

    def __init__(self, name: str, rows: Dataset | IterableDataset):
        files = [ON_HUB.fullmatch(address) for address in rows.info.download_checksums or ()]
        files = [found for found in files if found]
        self.ids = {name, *(found[1] for found in files)}
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        repositories = {each: cache / repo_folder_name(repo_id=each, repo_type="dataset") for each in self.ids}
        self.roots = [*repositories.values(), Path(datasets.config.DOWNLOADED_DATASETS_PATH)]
        self.roots = [root.resolve() for root in self.roots]
        # From where relative paths may be meant: the tables' folders, and the whole.
        snapshots = [(repositories[found[1]] / "snapshots" / found[2], found[3]) for found in files if found[2]]
        snapshots += [(folder, "") for root in repositories.values() for folder in sorted(root.glob("snapshots/*"))]
        homes = [
            home for snapshot, file in snapshots for home in ((snapshot / file).parent if file else snapshot, snapshot)
        ]
        self.homes = list(dict.fromkeys(homes))

    def path(self, path: str) -> str:
        """Where a named file lies, or, of one that lies outside, a name that is not opened."""
        if path.startswith(OUTSIDE):
            return path
        if "://" not in path and "::" not in path and "\0" not in path:
            for home in self.homes if not Path(path).is_absolute() else (Path("/"),):
                found = (home / path.replace("\\", "/")).resolve()
                if any(found.is_relative_to(root) for root in self.roots) and found.is_file():
                    return str(found)
        return OUTSIDE + path

    def cell(self, cell: Any) -> Any:
        """The same for a cell; of a stream, the image behind an address in the data set itself."""
        if isinstance(cell, dict):
            path = cell.get("path")
            if cell.get("bytes") is not None or path is None:
                return {"bytes": cell.get("bytes"), "path": _beside_bytes(path)}
            if self._is_own(path):
                with xopen(path, "rb", download_config=DownloadConfig()) as file:
                    return {"bytes": file.read(MOST_BYTES + 1), "path": None}
            return {"bytes": None, "path": self.path(path)}
        if not isinstance(cell, str) or not cell or is_inline(cell) or cell.startswith(("http://", "https://")):
            return cell
        return self.path(cell)

    def _is_own(self, address: str) -> bool:
        """Whether `datasets` itself wrote an address: of a file of the repository, or in an archive of it."""
        found = ON_HUB.fullmatch(re.sub(r"\Azip://[^:]*::", "", address))
        return found is not None and found[1] in self.ids and ".." not in found[3].split("/") and "::" not in found[3]


def changed_cells(
    rows: Dataset | IterableDataset, column: str, change: Callable[[Any], Any]
) -> Dataset | IterableDataset:
    """Rows whose cells of text, or of stored images of a stream, were changed."""
    feature = (rows.features or {}).get(column)
    if isinstance(rows, IterableDataset):
        if rows.features is not None and not is_text(feature) and not isinstance(feature, Image):
            return rows
        return rows.map(lambda row: {column: change(row[column])} if column in row else {}, features=rows.features)
    if not is_text(feature):
        return rows
    before = list(rows[column])
    after = [change(cell) for cell in before]
    if after == before:
        return rows
    return with_column(rows, column, after)


def _changed_paths(rows: Dataset, column: str, change: Callable[[str], str]) -> Dataset:
    """Rows whose images that are stored by path alone have other paths; what is stored with them is not copied."""
    before = rows.data.column(column).chunks
    chunks = [_with_paths(chunk, change) for chunk in before]
    if all(new is old for new, old in zip(chunks, before, strict=True)):
        return rows
    table = rows.data.table.set_column(rows.data.table.column_names.index(column), column, pa.chunked_array(chunks))
    fingerprint = Hasher.hash([rows._fingerprint, column, "confined"])
    return Dataset(InMemoryTable(table), rows.info, rows.split, indices_table=rows._indices, fingerprint=fingerprint)


def _with_paths(chunk: pa.StructArray, change: Callable[[str], str]) -> pa.StructArray:
    contents, paths = pc.struct_field(chunk, "bytes"), pc.struct_field(chunk, "path")
    before, held = paths.to_pylist(), pc.is_valid(contents).to_pylist()
    after = [
        _beside_bytes(path) if is_held else path and change(path) for path, is_held in zip(before, held, strict=True)
    ]
    if after == before:
        return chunk
    return pa.StructArray.from_arrays(
        [contents, pa.array(after, type=paths.type)], fields=list(chunk.type), mask=pc.is_null(chunk)
    )


def _beside_bytes(path: str | None) -> str | None:
    """A path that stands beside the image itself, if it is a mere name: `datasets` would take the file, if there is
    one, when it stores the cell anew."""
    return None if path is None or re.search(r"[/\\:]", path) else path
