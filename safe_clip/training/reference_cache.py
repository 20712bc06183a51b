"""Embeddings of the training rows by the frozen original, computed once and cached."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from ..data.collator import QuadrupletCollator, model_inputs
from ..data.rows import QuadrupletRows
from ..items import ITEMS, MODALITIES, SIDES, Layout, Quadruplets
from ..models.reference import FrozenReference
from ..store.fingerprints import settings_of
from ..store.tables import table_in_chunks
from ..terminal import progress_bar

WHOLE_CHUNK = 1 << 30  # bytes up to which a cached chunk is checked whole: one damaged embedding would spoil training
DESC = "Embedding the training rows by the original, once"


class ReferenceEmbedder:
    """Embeds the items of batches with the frozen original.

    Args:
        reference: the original.
        accelerator: the trainer's, for its device and precision, and its other processes.
        sides: of a quadruplet, those that are embedded.
    """

    def __init__(self, reference: FrozenReference, accelerator: Accelerator, sides: Sequence[str] = SIDES):
        self.reference, self.accelerator, self.sides = reference, accelerator, tuple(sides)

    @property
    def names(self) -> list[str]:
        """The items that are embedded, such as `safe_text`."""
        return [f"{side}_{modality}" for modality in MODALITIES for side in self.sides]

    def __call__(self, inputs: dict[str, Any]) -> Quadruplets:
        """The items of a batch, float32."""
        items = model_inputs(inputs, safe_only=self.sides == ("safe",))
        if not items:
            return self.nothing(inputs)
        with self.accelerator.autocast():
            output = self.reference(**items)
        embeds = (None if each is None else each.float() for each in (output.text_embeds, output.image_embeds))
        return Quadruplets.of_sides(*embeds, inputs["layout"], sides=self.sides)

    def nothing(self, inputs: dict[str, Any]) -> Quadruplets:
        """A batch's quadruplets with none of their items."""
        nothing = torch.empty(0, self.reference.dimension, device=self.accelerator.device)
        return Quadruplets.of_sides(nothing, nothing, inputs["layout"], sides=())

    def each(
        self, rows: TorchDataset, collator: QuadrupletCollator, batch_size: int, workers: int, bar: Any = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Embeddings of rows, batch after batch, on the CPU."""
        for batch in DataLoader(rows, batch_size, collate_fn=collator, num_workers=workers):
            made = self(send_to_device(batch, self.accelerator.device))
            yield {name: made[name].dense(len(made)).cpu().numpy() for name in self.names}
            if bar is not None:
                bar.update(len(made))


class ReferenceTable:
    """Embeddings of N rows by their numbers, in memory or on disk.

    Args:
        columns: for each name, arrays of rows that follow one another, M x dimension.
    """

    def __init__(self, columns: dict[str, list[np.ndarray]]):
        self.columns = columns
        self.ends = np.cumsum([len(part) for part in next(iter(columns.values()))])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The embeddings of B rows: for each name, B x dimension float32, NaN for a missing item."""
        parts = np.searchsorted(self.ends, rows, side="right")
        starts = np.concatenate([[0], self.ends[:-1]])
        taken = {}
        for name, column in self.columns.items():
            taken[name] = np.empty((len(rows), column[0].shape[1]), dtype=np.float32)
            for part in np.unique(parts):
                mine = parts == part
                taken[name][mine] = column[part][rows[mine] - starts[part]]
        return {name: torch.from_numpy(column) for name, column in taken.items()}

    def items(self, rows: np.ndarray, layout: Layout, device: torch.device) -> Quadruplets:
        """The embedded items of B rows, which have this layout."""
        taken = self.take(rows)
        packed = Quadruplets.packed([taken.get(item) for item in ITEMS], layout)
        return packed.map(lambda embeds: embeds.to(device, non_blocking=True))


def table_size(embedder: ReferenceEmbedder, count: int) -> int:
    """Bytes that the table of so many rows takes."""
    return count * len(embedder.names) * embedder.reference.dimension * np.dtype(np.float32).itemsize


def embed_in_memory(
    embedder: ReferenceEmbedder,
    rows: TorchDataset,
    collator: QuadrupletCollator,
    batch_size: int,
    workers: int,
    progress: bool,
) -> ReferenceTable:
    """Embeds rows that are few, or have no fingerprint to cache them by, into memory; every process embeds all rows."""
    with progress_bar(total=len(rows), desc=DESC, disable=not progress) as bar:
        made = list(embedder.each(rows, collator, batch_size, workers, bar))
    return ReferenceTable({name: [batch[name] for batch in made] for name in embedder.names})


def embed_on_disk(
    embedder: ReferenceEmbedder,
    rows: QuadrupletRows,
    collator: QuadrupletCollator,
    batch_size: int,
    workers: int,
    progress: bool,
) -> ReferenceTable:
    """The table of a data set's rows, memory-mapped from the cache of `datasets`.

    The cache key is a fingerprint of the original's weights and settings, the rows and the precision. The table is
    computed in chunks, which are divided among the processes; chunks of an earlier or interrupted run are reused.

    Raises:
        UserError: a row cannot be used.
    """
    accelerator = embedder.accelerator
    known_by = Hasher.hash(
        [
            embedder.reference.weights,
            settings_of(embedder.reference.config, collator.processor),
            collator.max_length,
            rows.fingerprint,
            accelerator.mixed_precision if accelerator.native_amp else "no",  # as under DeepSpeed
            accelerator.device.type,
        ]
    )
    shape = ListOf(Value("float32"), length=embedder.reference.dimension)
    features = Features(dict.fromkeys(embedder.names, shape))

    def arguments(chunk: "_Chunk", first: int) -> dict[str, Any]:
        return {"embedder": embedder, "chunk": chunk, "collator": collator, "batch": batch_size, "workers": workers}

    def key(chunk: "_Chunk") -> str:
        return Hasher.hash([known_by, embedder.sides, chunk.numbers.start, chunk.numbers.stop])

    every, how = _Chunk(rows, range(len(rows))), (DESC, progress, "reference_embeddings", accelerator)
    made = table_in_chunks(every, features, arguments, key, _embeddings, *how, whole=WHOLE_CHUNK)
    return ReferenceTable({name: _arrays(made, name) for name in embedder.names})


class _Chunk:
    """Rows that follow one another."""

    def __init__(self, rows: QuadrupletRows, numbers: range):
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, numbers: range) -> "_Chunk":
        return _Chunk(self.rows, self.numbers[numbers.start : numbers.stop])


def _embeddings(
    embedder: ReferenceEmbedder, chunk: _Chunk, collator: QuadrupletCollator, batch: int, workers: int
) -> Iterator[dict[str, np.ndarray]]:
    for made in embedder.each(Subset(chunk.rows, chunk.numbers), collator, batch, workers):
        for index in range(len(next(iter(made.values())))):
            yield {name: column[index] for name, column in made.items()}


def _arrays(table: Dataset, name: str) -> list[np.ndarray]:
    """Views of a column as it lies on disk: rows x dimension, chunk after chunk."""
    length = table.features[name].length
    chunks = table.data.column(name).chunks
    return [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, length) for chunk in chunks if len(chunk)]
