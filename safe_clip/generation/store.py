"""Work that is kept on disk piece by piece, so that an interruption costs one piece."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import first_line
from ..store.caches import load_tensors, save_tensors
from .arguments import PIECE

logger = logging.getLogger(__name__)

# Of some numbers, in order: tensors whose first dimension they are, and a record of each.
Made = tuple[dict[str, Tensor], list[dict[str, Any]]]


def in_pieces(
    folder: Path,
    count: int,
    make: Callable[[range], Made],
    desc: str,
    accelerator: Accelerator | None = None,
    batch_size: int = PIECE,
) -> Made | None:
    """Makes what is not made yet, and reads all of it.

    Args:
        folder: of this work alone, on a disk that all processes see; its name says what decides the results.
        count: how many there are to make.
        make: makes some of them, `batch_size` at most.
        desc: of the progress bar.
        accelerator: who shares the pieces; all its processes must call this. By default this one makes all.
        batch_size: how many are made at a time.

    Returns:
        What `make` gives, of all; on processes other than the main one, `None`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, PIECE)
    mine = starts
    if accelerator is not None:
        mine = starts[accelerator.process_index :: accelerator.num_processes]
    with_tensors = any(_tensors(folder, start).exists() for start in starts)
    missing = [start for start in mine if not _is_whole(folder, start, len(_numbers(start, count)), with_tensors)]
    quiet = accelerator is not None and not accelerator.is_local_main_process
    with tqdm(total=sum(len(_numbers(start, count)) for start in mine), desc=desc, unit="", disable=quiet) as bar:
        bar.update(bar.total - sum(len(_numbers(start, count)) for start in missing))
        for start in missing:
            made = []
            for numbers in _batches(_numbers(start, count), batch_size):
                made.append(make(numbers))
                bar.update(len(numbers))
            _write(folder, start, _joined(made))
    if accelerator is not None:
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return None
    return _joined([_read(folder, start) for start in starts])


def _numbers(start: int, count: int) -> range:
    return range(start, min(start + PIECE, count))


def _batches(numbers: range, size: int) -> Iterator[range]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def _joined(parts: list[Made]) -> Made:
    tensors = {name: torch.cat([each[name] for each, _ in parts]) for name in parts[0][0]} if parts else {}
    return tensors, [record for _, records in parts for record in records]


def _record(folder: Path, start: int) -> Path:
    return folder / f"{start:07}.json"


def _write(folder: Path, start: int, made: Made) -> None:
    """Whole or not at all: a piece is there where its record is, which comes last."""
    tensors, records = made
    record = _record(folder, start)
    if tensors:
        save_tensors(tensors, _tensors(folder, start))
    partial = record.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)


def _tensors(folder: Path, start: int) -> Path:
    return _record(folder, start).with_suffix(".safetensors")


def _is_whole(folder: Path, start: int, count: int, with_tensors: bool) -> bool:
    """Whether a piece is there with so many records; a damaged one is told of, and will be made again."""
    record = _record(folder, start)
    if not record.exists():
        return False
    try:
        tensors, records = _read(folder, start)
        lengths = {len(records), *(len(tensor) for tensor in tensors.values())}
        if lengths == {count} and bool(tensors) == with_tensors:
            return True
        reason = f"it has not all of {count} records"
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        reason = first_line(error)
    logger.warning("The cache %s cannot be read (%s): it is made again.", record, reason)
    return False


def _read(folder: Path, start: int) -> Made:
    tensors = _tensors(folder, start)
    return load_tensors(tensors) if tensors.exists() else {}, json.loads(_record(folder, start).read_text("utf-8"))
