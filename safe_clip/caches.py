"""What `datasets` keeps, made again where it is damaged."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from .errors import UserError, first_line

Made = TypeVar("Made")


def made_again(make: Callable[[], Made], folder: Path | None) -> Made:
    """What is made, or read from a cache, which is thrown away and made again if it cannot be read.

    Args:
        make: reads what is in the folder, or fills it.
        folder: of the cache; nothing is made again where it was not there before.
    """
    kept = folder is not None and folder.exists()
    try:
        return make()
    except Exception as error:  # of JSON, Arrow, the system, each its own type; but not of the data
        if not kept or isinstance(error, DatasetGenerationError | UserError):
            raise
        print(f"The cache {folder} cannot be read ({first_line(error)}): it is made again.", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    return make()


def generated(
    generator: Callable[..., Iterator[dict]], fingerprint: str, count: int | None = None, **options: Any
) -> Dataset:
    """`Dataset.from_generator`, whose cache is made again where it is damaged.

    Args:
        generator: yields rows.
        fingerprint: which the rows are known again by.
        count: how many there must be.
        **options: as of `Dataset.from_generator`.
    """

    def make() -> Dataset:
        rows = Dataset.from_generator(generator, fingerprint=fingerprint, **options)
        if count is not None and len(rows) != count:
            raise ValueError(f"it has {len(rows):,} rows and not {count:,}")
        return rows

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "generator" / f"default-fingerprint={fingerprint}"
    return made_again(make, folder)
