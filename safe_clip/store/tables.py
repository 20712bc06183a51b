"""Tables that `datasets` keeps and maps into memory, in chunks, so that an interruption costs one chunk."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator
from datasets import Dataset, Features, concatenate_datasets
from datasets.config import DATASET_INFO_FILENAME
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import UserError
from ..terminal import progress_bar
from .chunks import share_out
from .damaged import check_digests, made_again, note_digests
from .folders import folder_of

CHUNK = 1000  # rows that a file of the cache holds: what an interruption can cost
MOST_CHUNKS = 500


def table_in_chunks(
    rows: Any,
    features: Features,
    arguments: Callable[[Any, int], dict],
    key: Callable[[Any], str],
    generator: Callable[..., Iterator[dict]],
    desc: str,
    progress: bool,
    kind: str,
    accelerator: Accelerator | None = None,
) -> Dataset:
    """A row of results for each row, made in chunks of which each is kept, so that an interruption costs one.

    Args:
        rows: what has a length and `select`.
        features: of the results.
        arguments: of the generator, by a chunk and the number of its first row.
        key: what a chunk's results are known again by.
        generator: yields the results.
        desc, progress: of the bar.
        kind: as of `kept_table`.
        accelerator: knows the processes that share the chunks out among themselves; by default this one makes all.
    """
    size = max(CHUNK, -(-len(rows) // MOST_CHUNKS))
    firsts = range(0, len(rows), size)
    done: dict[int, Dataset] = {}

    def chunk(first: int) -> Dataset:
        some = rows.select(range(first, min(first + size, len(rows))))
        known_by, given = key(some), arguments(some, first)
        return kept_table(generator, known_by, kind, len(some), features=features, gen_kwargs=given)

    def work(share: Sequence[int]) -> None:
        label = desc if len(share) == len(firsts) else f"{desc}: this process's share"
        total = sum(min(size, len(rows) - first) for first in share)
        with progress_bar(total=total, desc=label, disable=not progress) as bar:
            for first in share:
                done[first] = done[first] if first in done else chunk(first)
                bar.update(len(done[first]))

    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one for every chunk
    try:
        share_out(firsts, work, accelerator)
        if len(done) < len(firsts):
            work(firsts)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    return concatenate_datasets([done[first] for first in firsts])


def one_by_one(rows: TorchDataset, workers: int) -> Iterator[dict]:
    """For `generator`: what a data set gives, read by so many processes beside this one."""
    try:
        yield from DataLoader(rows, batch_size=None, num_workers=workers)
    except UserError as error:
        # Whose frames would keep the workers alive until garbage is collected, when each is waited for in vain.
        raise error.with_traceback(None) from None


def kept_table(
    generator: Callable[..., Iterator[dict]],
    fingerprint: str,
    kind: str,
    count: int | None = None,
    **options: Any,
) -> Dataset:
    """`Dataset.from_generator`, whose cache is made again where it is damaged.

    Args:
        generator: yields rows.
        fingerprint: which the rows are known again by.
        kind: what `safe-clip cache` lists them as.
        count: how many there must be.
        **options: as of `Dataset.from_generator`.
    """

    folder = folder_of(kind) / f"default-fingerprint={fingerprint}"

    def make() -> Dataset:
        noted = check_digests(folder)
        rows = Dataset.from_generator(generator, fingerprint=fingerprint, **options)
        if count is not None and len(rows) != count:
            raise ValueError(f"it has {len(rows):,} rows and not {count:,}")
        if not noted:
            note_digests(folder, files_of(rows), kind=kind)
        return rows

    return made_again(make, folder)


def files_of(rows: Dataset) -> set[Path]:
    """The files that `datasets` has written of rows, and will not change."""
    tables = {Path(file["filename"]) for file in rows.cache_files}
    infos = {path.with_name(DATASET_INFO_FILENAME) for path in tables}
    return tables | {path for path in infos if path.is_file()}
