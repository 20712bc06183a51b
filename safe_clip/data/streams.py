"""Rows that come in a stream: too many to hold, or to count."""

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from ..errors import UserError, explained, first_line, hub_trouble
from ..items import Layout
from ..store.fingerprints import captions_digest, digest
from .allowance import check_bad_share
from .collator import QuadrupletCollator
from .columns import stream_columns
from .image_join import STREAM_IDS
from .items import CAPTION_COLUMNS, ITEM_COLUMNS, LABEL_COLUMNS, NOWHERE, ROW_COLUMN, layout_by_labels, read_label
from .plain import plain_rows
from .rows import StoredQuadruplet, undecoded

SHUFFLE_BUFFER = 1000  # rows that are held to draw the next one from
HEAD_ROWS = 1000  # by which a stream is known again
PATIENCE = 100  # rows after which the share of bad ones says something


class QuadrupletStream(TorchIterableDataset):
    """Checked quadruplets of a stream, as `QuadrupletRows` gives them but without numbers.

    Rows are shuffled anew in each epoch, in a buffer and by whole files, and shared out among processes and their
    workers, each row to one of them.

    Args:
        rows: a `datasets.IterableDataset` with some of the columns of a quadruplet, and maybe labels.
        seed: for shuffling.
        shuffle_buffer: rows that are held to draw the next one from; 0 keeps the order.
        bad_rows: a file in which rows that cannot be used are listed, in the first epoch, and left out; by default the
            first one raises.
        max_bad_fraction: the largest share of such rows that is still taken for bad luck.

    Raises:
        UserError: in iterating, a row cannot be used, or too many.
    """

    def __init__(
        self,
        rows: IterableDataset,
        seed: int = 0,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        bad_rows: Path | None = None,
        max_bad_fraction: float = 0.05,
    ):
        rows = plain_rows(rows)
        self.columns = stream_columns(rows)
        self.source = undecoded(rows, self.columns)
        self.rows = self.source.shuffle(seed, buffer_size=shuffle_buffer) if shuffle_buffer else self.source
        self.bad_rows, self.max_bad_fraction = bad_rows, max_bad_fraction
        self.augment: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # as of `QuadrupletRows`
        self.listed: frozenset[str] = frozenset()  # `row_keys` of bad rows that are listed already
        self.epoch = 0
        self.unread = 0  # quadruplets that each worker gives as `None` first, since they were trained on already

    @property
    def layout(self) -> Layout:
        """Which items there may be: one row for all quadruplets."""
        return Layout.of(np.array([[column in self.columns for column in ITEM_COLUMNS]]))

    def share(self, process: int, processes: int) -> "QuadrupletStream":
        """A process's share of the rows."""
        shared = copy.copy(self)
        shared.rows = split_dataset_by_node(self.rows, process, processes) if processes > 1 else self.rows
        return shared

    def set_epoch(self, epoch: int) -> None:
        """Changes the order of the rows."""
        self.rows.set_epoch(epoch)
        self.epoch = epoch

    def head(self, count: int) -> TorchDataset:
        """The first quadruplets, in the order of the source, the same on every process."""
        quadruplets = (
            each for number, row in enumerate(self.source) for each in file_row(row, number, self.source.features)
        )
        if self.bad_rows is not None:
            quadruplets = (each for each in quadruplets if each.fault() is None)
        return _Head(list(itertools.islice(quadruplets, count)))

    @cached_property
    def digest(self) -> dict[str, Any]:
        """What tells whether the rows are those that they were, as far as the first ones tell."""
        rows = list(itertools.islice(self.source, HEAD_ROWS))
        return {"rows": len(rows)} | {
            column: captions_digest([[row[column] for row in rows]])
            for column in CAPTION_COLUMNS
            if column in self.columns
        }

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        unread, bad = self.unread, 0
        for number, row in enumerate(_readable(self.rows)):
            try:
                quadruplets = file_row(row, number, self.source.features)
                if self.bad_rows is not None:  # bad rows must be found again, so that no others take their places
                    quadruplets = [self._read(each) for each in quadruplets]
            except UserError as error:
                if self.bad_rows is None:
                    raise
                bad += 1
                self._list(row, str(error), bad, number + 1)
                continue
            for each in quadruplets:
                if isinstance(each, dict):
                    yield each
                else:
                    yield None if unread else self._read(each)
                unread -= unread > 0

    def _read(self, stored: StoredQuadruplet) -> dict[str, Any]:
        quadruplet = stored.read()
        return quadruplet if self.augment is None else self.augment(quadruplet)

    def _list(self, row: dict[str, Any], fault: str, bad: int, seen: int) -> None:
        if self.epoch == 0 and _row_key(row) not in self.listed:  # in later ones they come again
            with open(self.bad_rows, "a", encoding="utf-8") as file:
                file.write(f"split 'train', {fault}\n")
        if seen >= PATIENCE:
            summary = f"{bad:,} of the first {seen:,} rows cannot be used"
            check_bad_share(
                bad, seen, self.max_bad_fraction, summary, f"; {self.bad_rows} lists them. The last: {fault}"
            )


class StreamLoader:
    """Batches of a stream without end, epoch after epoch.

    All processes see equally many in each epoch: where one has run out of rows before the others, it is given its last
    batch again, since none may take a step alone.

    Args:
        stream: the rows, shared out already.
        batch_size: quadruplets of a process and batch.
        collator: makes batches of them.
        accelerator: knows the other processes.
        start: batches that were trained on already.
        **options: of the `DataLoader`.
    """

    def __init__(
        self,
        stream: QuadrupletStream,
        batch_size: int,
        collator: QuadrupletCollator,
        accelerator: Accelerator,
        start: int = 0,
        **options: Any,
    ):
        self.stream, self.accelerator, self.start, self.batch_size = stream, accelerator, start, batch_size
        # Drawing from a generator of its own, it leaves the random state that training draws from alone.
        self.loader = DataLoader(
            stream, batch_size, collate_fn=_Collate(collator), generator=torch.Generator(), **options
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        left = self.start
        for epoch in itertools.count():
            self.stream.set_epoch(epoch)
            # Batches come from the workers in turn, so that each has its share of those that are not read again.
            self.stream.unread = left // max(1, self.loader.num_workers) * self.batch_size
            seen = 0
            for batch in self._even(iter(self.loader)):
                seen += 1
                if left:
                    left -= 1
                else:
                    yield send_to_device(batch, self.accelerator.device, non_blocking=True)
            if not seen:
                raise UserError("the stream of training rows is empty.")

    def _even(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        last = None
        while True:
            batch = next(batches, None)
            going = torch.tensor(int(batch is not None), device=self.accelerator.device)
            if not self.accelerator.reduce(going):
                return
            if batch is None and last == {}:  # it was not read again, but is now wanted
                self.stream.unread = 0
                last = deque(self.loader, maxlen=1).pop()
            last = last if batch is None else batch
            if last is None:
                raise UserError(
                    f"the stream has no rows for process {self.accelerator.process_index}; start fewer processes."
                )
            yield last


class _Collate:
    """A collator that takes what was not read for what it is."""

    def __init__(self, collator: QuadrupletCollator):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any] | None]) -> dict[str, Tensor]:
        return {} if rows[0] is None else self.collator(rows)


def file_row(row: dict[str, Any], number: int, features: Mapping[str, Any] | None = None) -> list[StoredQuadruplet]:
    """The quadruplets that a row is made into, as its labels say.

    Raises:
        UserError: a label is none.
    """
    number = _known_as(row, number)
    if not any(row.get(column) is not None for column in LABEL_COLUMNS):
        return [StoredQuadruplet(row, number)]
    there = [row.get(column) is not None for column in ITEM_COLUMNS]
    labels = [read_label(row.get(column), number, column, (features or {}).get(column)) for column in LABEL_COLUMNS]
    layout = layout_by_labels(np.array([there]), np.array([labels]))
    return [
        StoredQuadruplet(
            row, number, tuple(None if place == NOWHERE else ITEM_COLUMNS[place] for place in source), *facts
        )
        for source, *facts in zip(
            *(part.tolist() for part in (layout.source, layout.relabelled, layout.half_unsafe)), strict=True
        )
    ]


def row_keys(rows: Dataset) -> frozenset[str]:
    """What rows are known again by in a stream, which gives them other numbers: what their items hold."""
    return frozenset(map(_row_key, undecoded(rows, rows.column_names)))


def _row_key(row: dict[str, Any]) -> str:
    cells = [row.get(column) for column in ITEM_COLUMNS]
    held = [(cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell for cell in cells]
    held = [each if isinstance(each, bytes) else repr(each).encode(errors="surrogatepass") for each in held]
    return digest(part for each in held for part in (each, b"|"))


def _known_as(row: dict[str, Any], number: int) -> int | str:
    """What errors call a row, of which a stream that is shuffled and shared out does not know the number."""
    if row.get(ROW_COLUMN) is not None:
        return row[ROW_COLUMN]
    known = next((name for name in STREAM_IDS if row.get(name) is not None), None)
    return f"{number} of the stream, as it is read here" if known is None else f"of {known} {row[known]}"


def _readable(rows: IterableDataset) -> Iterator[dict[str, Any]]:
    """The rows, up to where a file of theirs cannot be read, which `datasets` meets on the way.

    Raises:
        UserError: there.
    """
    try:
        yield from rows
    except Exception as error:  # of pandas, pyarrow, tarfile and the system: each its own type
        if isinstance(error, UserError) or hub_trouble(error) or explained(error):
            raise
        raise UserError(
            f"the stream cannot be read on: a file of it is broken ({type(error).__name__}: {first_line(error)}). Mend "
            "or remove the file; without --streaming, it is named."
        ) from error


class _Head(TorchDataset):
    """Stored quadruplets, read one by one."""

    def __init__(self, quadruplets: list[StoredQuadruplet]):
        self.quadruplets = quadruplets

    def __len__(self) -> int:
        return len(self.quadruplets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.quadruplets[index].read(), "row": index}
