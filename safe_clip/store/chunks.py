"""Tensors and records that are computed once and kept in chunks, so that an interruption costs one chunk."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..terminal import progress_bar
from .damaged import read_kept
from .fingerprints import weights_digest
from .writing import whole_file, write_whole

# Of N items, in order: tensors whose first dimension is N, and N records, which JSON can hold, or none.
Chunk = tuple[dict[str, Tensor], list[dict[str, Any]]]


def in_chunks(
    folder: Path | None,
    count: int,
    make: Callable[[list[range]], Iterable[Chunk]],
    desc: str,
    chunk_size: int,
    batch_size: int,
    accelerator: Accelerator | None = None,
    leave: bool = True,
    is_final: Callable[[Chunk], bool] = lambda chunk: True,
    main_only: bool = False,
    progress: bool = True,
) -> list[Chunk] | None:
    """Makes what is not made yet, and reads all of it.

    A chunk is a safetensors file and, if it has records, a JSON file of them. It is written whole or not at all, and
    known by a digest of both. One that is damaged is told of and made again.

    Args:
        folder: of this work alone, whose name says what decides the results; `None` keeps nothing.
        count: how many items there are.
        make: makes the items of these batches, batch by batch.
        desc: of the progress bar, which is shown where anything is to be made.
        chunk_size: items of a chunk.
        batch_size: items of a batch, at most; no batch is of two chunks.
        accelerator: who shares the chunks; all its processes must call this. By default this one makes all.
        leave: keep the progress bar when it is full.
        is_final: whether a kept chunk may be used; where it returns False, this call makes it again, and also tells
            that it is damaged where it raises.
        main_only: read the results on the main process alone.
        progress: show the bar.

    Returns:
        The chunks, whose tensors are those of the files, mapped into memory, where they are kept; `None` where they are
        not read.
    """
    chunks = [range(start, min(start + chunk_size, count)) for start in range(0, count, chunk_size)]
    done: dict[range, Chunk] = {}
    quiet = not progress or (accelerator is not None and not accelerator.is_local_main_process)

    def final(items: range) -> Chunk | None:
        chunk = _load(folder, items)
        return chunk if is_final(chunk) else None

    def work(share: Sequence[range]) -> None:
        for items in share if folder else ():
            if items not in done and (chunk := read_kept(partial(final, items), _file(folder, items))):
                done[items] = chunk
        batches = [
            items[first : first + batch_size]
            for items in share
            if items not in done
            for first in range(0, len(items), batch_size)
        ]
        total = sum(map(len, share))
        made: list[Chunk] = []
        with progress_bar(total=total, desc=desc, unit="", leave=leave, disable=quiet or not batches) as bar:
            bar.update(total - sum(map(len, batches)))
            for batch, part in zip(batches, make(batches) if batches else (), strict=True):
                made.append(part)
                bar.update(len(batch))
                items = chunks[batch[0] // chunk_size]
                if batch[-1] == items[-1]:
                    chunk, made = joined(made), []
                    if folder:
                        _save(chunk, folder, items)
                    else:
                        done[items] = chunk

    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        share_out(chunks, work, accelerator)
    else:
        work(chunks)
    if main_only and accelerator is not None and not accelerator.is_main_process:
        return None
    return [done.get(items) or _load(folder, items) for items in chunks]


def share_out(chunks: Sequence, work: Callable[[Sequence], None], accelerator: Accelerator | None) -> None:
    """Has each process make its share of some chunks, and waits until all are made.

    Args:
        chunks: what is to be made.
        work: makes some of them, those that are not made yet.
        accelerator: knows the processes; by default this one makes all.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return work(chunks)
    work(chunks[accelerator.process_index :: accelerator.num_processes])
    accelerator.wait_for_everyone()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    if here < accelerator.num_processes:  # without a common disk, each machine makes the chunks of the others too
        work(chunks[accelerator.local_process_index :: here])
        accelerator.wait_for_everyone()


def joined(parts: list[Chunk]) -> Chunk:
    """Chunks that follow one another as one, in memory."""
    tensors = {name: torch.cat([each[name] for each, _ in parts]) for name in parts[0][0]} if parts else {}
    return tensors, [record for _, records in parts for record in records]


def _file(folder: Path, items: range) -> Path:
    return folder / f"{items.start:07}.safetensors"


def _digest(tensors: dict[str, Tensor], records: bytes | None) -> str:
    known = dict(tensors)
    if records is not None:
        known["records.json"] = torch.frombuffer(bytearray(records), dtype=torch.uint8)
    return weights_digest(known.items())


def _save(chunk: Chunk, folder: Path, items: range) -> None:
    """Whole or not at all: a chunk is there where its tensors are, which come last."""
    tensors, records = {name: tensor.contiguous() for name, tensor in chunk[0].items()}, None
    file = _file(folder, items)
    if chunk[1]:
        text = json.dumps(chunk[1], indent=1) + "\n"
        write_whole(file.with_suffix(".json"), text)
        records = text.encode()
    with whole_file(file) as part:
        save_file(tensors, part, {"digest": _digest(tensors, records)})


def _load(folder: Path, items: range) -> Chunk:
    """Reads what `_save` wrote.

    Raises:
        ValueError, SafetensorError, OSError: it is damaged.
    """
    file = _file(folder, items)
    with safe_open(file, "pt") as opened:
        digest = (opened.metadata() or {}).get("digest")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    record = file.with_suffix(".json")
    records = record.read_bytes() if record.exists() else None
    if digest != _digest(tensors, records):
        raise ValueError("it does not hold what was written")
    loaded = [] if records is None else json.loads(records)
    if {*map(len, tensors.values()), *([len(loaded)] if loaded else [])} != {len(items)}:
        raise ValueError(f"it has not {len(items)} rows")
    return tensors, loaded
