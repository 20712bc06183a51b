"""What `datasets` keeps, made again where it is damaged."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError, first_line
from .digests import WHOLE_FILE, file_digest
from .fingerprints import weights_digest
from .known_files import write_whole

DIGESTS = "digests.json"  # of the files of a cache
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
    generator: Callable[..., Iterator[dict]],
    fingerprint: str,
    count: int | None = None,
    whole: int = WHOLE_FILE,
    **options: Any,
) -> Dataset:
    """`Dataset.from_generator`, whose cache is made again where it is damaged.

    Args:
        generator: yields rows.
        fingerprint: which the rows are known again by.
        count: how many there must be.
        whole: bytes up to which all of a file is read to tell whether it is damaged, and samples beyond.
        **options: as of `Dataset.from_generator`.
    """

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "generator" / f"default-fingerprint={fingerprint}"

    def make() -> Dataset:
        _check_files(folder, whole)
        rows = Dataset.from_generator(generator, fingerprint=fingerprint, **options)
        if count is not None and len(rows) != count:
            raise ValueError(f"it has {len(rows):,} rows and not {count:,}")
        if not (folder / DIGESTS).exists():
            known = {path.relative_to(folder).as_posix(): file_digest(path, whole) for path in folder.rglob("*.arrow")}
            write_whole(folder / DIGESTS, json.dumps(known))
        return rows

    return made_again(make, folder)


def _check_files(folder: Path, whole: int) -> None:
    """Raises `ValueError` where a file of a cache is not as it was made, be it one that can be read."""
    if (folder / DIGESTS).exists():
        for name, digest in json.loads((folder / DIGESTS).read_text(encoding="utf-8")).items():
            if file_digest(folder / name, whole) != digest:
                raise ValueError(f"{name} has been changed")


# ---- Tensors ----


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors, whole or not at all, with a digest of them."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial, {"digest": weights_digest(tensors.items())})
    partial.replace(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads what `save_tensors` wrote.

    Raises:
        ValueError, SafetensorError, OSError: it is damaged.
    """
    with safe_open(path, "pt") as file:
        digest = (file.metadata() or {}).get("digest")
    tensors = load_file(path)
    if digest != weights_digest(tensors.items()):
        raise ValueError("it does not hold what was written")
    return tensors
