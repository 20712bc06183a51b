"""An index: embeddings of length 1 in Parquet, with what identifies each; opened and searched exactly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import UserError, first_line
from ..store.fingerprints import processor_settings
from .embedder import Embedder

TABLE, FACTS = "index.parquet", "index.json"
KEY = b"safe_clip"  # of the facts in the metadata of the Parquet schema
BLOCK = 2**16  # embeddings that a search holds at a time
PASSING = ("_name_or_path", "transformers_version", "dtype")  # of a configuration, what changes no embedding


def index_settings(embedder: Embedder) -> str:
    """A digest of a model's configuration and processor, whatever the versions of libraries."""
    config = {name: value for name, value in embedder.model.config.to_dict().items() if name not in PASSING}
    known = json.dumps(config, sort_keys=True, default=str)
    return Hasher.hash([known, *processor_settings(embedder.processor)])


class Index:
    """An index of embeddings, as `safe-clip embed` writes it, opened to be searched.

    Args:
        folder: holds `index.parquet`; or that file.

    Attributes:
        facts: what it says of itself: `model` and `model_revision`, by which it was embedded, `weights`, their digest,
            `dimension`, `items` (the modalities), `dataset` and more.

    Raises:
        UserError: there is no whole index.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) if Path(folder).is_file() else Path(folder) / TABLE
        if not self.path.is_file():
            begun = (Path(folder) / FACTS).is_file()
            cure = "it was begun and is not whole: give the command that began it again"
            other = f"it has no {TABLE}: safe-clip embed writes one"
            raise UserError(f"--index {folder} is no index; {cure if begun else other}.")
        try:
            self._file = pq.ParquetFile(self.path)
            said = (self._file.schema_arrow.metadata or {}).get(KEY)
            self.facts: dict[str, Any] = json.loads(said) if said else {}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"--index {folder}: {TABLE} cannot be read ({first_line(error)}). Write it anew."
            ) from error
        if not self.facts:
            raise UserError(
                f"--index {folder}: {TABLE} does not say which model embedded it: safe-clip embed writes one."
            )

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.facts["dimension"]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The ids and embeddings of some items after the other: N int64, N x dimension float32."""
        for batch in self._file.iter_batches(BLOCK, columns=["id", "embedding"]):
            vectors = torch.from_numpy(batch["embedding"].flatten().to_numpy().reshape(-1, self.dimension).copy())
            yield torch.from_numpy(batch["id"].to_numpy().copy()), vectors

    def unsafe(self) -> Tensor | None:
        """Which items are labelled unsafe, in their order: N booleans; `None` where nothing is labelled so."""
        if "unsafe" not in self._file.schema_arrow.names:
            return None
        column = self._file.read(columns=["unsafe"])["unsafe"]
        marked = torch.tensor([cell is True for cell in column.to_pylist()])
        return marked if marked.any() else None

    def search(self, queries: Tensor, k: int = 10) -> list[list[dict[str, Any]]]:
        """Finds the items of the largest cosines, exactly; of equal ones, those that stand first.

        Args:
            queries: Q x dimension embeddings, of any length.
            k: how many items to find for each.

        Returns:
            For each query, best first, items as `{"id", "cosine", "modality", ...}` with all columns of the index but
            the embedding.

        Raises:
            UserError: the queries are of another dimension.
        """
        if queries.shape[-1] != self.dimension:
            raise UserError(
                f"the index has embeddings of dimension {self.dimension}, and the query's is {queries.shape[-1]}: "
                "search with the model that made the index, or with one trained from it."
            )
        queries = normalize(queries.float().cpu(), dim=1)
        best, places = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        start = 0
        for _, vectors in self.blocks():
            here = torch.arange(start, start + len(vectors)).expand(len(queries), -1)
            scores, numbers = torch.cat([best, queries @ vectors.T], dim=1), torch.cat([places, here], dim=1)
            order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
            best, places = scores.gather(1, order), numbers.gather(1, order)
            start += len(vectors)
        rows = self._rows(sorted(set(places.flatten().tolist())))
        return [
            [rows[place] | {"cosine": cosine} for place, cosine in zip(*each, strict=True)]
            for each in zip(places.tolist(), best.tolist(), strict=True)
        ]

    def _rows(self, places: list[int]) -> dict[int, dict[str, Any]]:
        """What is known of items, by their places; of each row group, what is needed alone."""
        names = [name for name in self._file.schema_arrow.names if name != "embedding"]
        found, start = {}, 0
        for group in range(self._file.num_row_groups):
            stop = start + self._file.metadata.row_group(group).num_rows
            here = [place for place in places if start <= place < stop]
            if here:
                table = self._file.read_row_group(group, columns=names)
                taken = table.take([place - start for place in here]).to_pylist()
                found |= dict(zip(here, taken, strict=True))
            start = stop
        return found


def open_index(folder: str | Path) -> Index:
    """Opens what `safe-clip embed` wrote.

    Args:
        folder: its `--output_dir`.

    Returns:
        The index, with `facts` about its model and `search(queries, k)`, which gives ids, cosines and what is known of
        the items, for Q x dimension embeddings of queries.

    Raises:
        UserError: there is no whole index.
    """
    return Index(folder)
