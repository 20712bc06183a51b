"""Results for every row, kept piece by piece, so that an interruption costs one piece."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import datasets
from accelerate import Accelerator
from datasets import Dataset, Features, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from tqdm.auto import tqdm

from ..errors import UserError
from .caches import generated
from .digests import WHOLE_FILE

PIECE = 1000  # rows that a file of the cache holds: what an interruption can cost
MOST_PIECES = 500


def in_pieces(
    rows: Any,
    features: Features,
    arguments: Callable[[Any, int], dict],
    key: Callable[[Any], str],
    generator: Callable[..., Iterator[dict]],
    desc: str,
    progress: bool,
    accelerator: Accelerator | None = None,
    whole: int = WHOLE_FILE,
) -> Dataset:
    """A row of results for each row, made in pieces of which each is cached, so that an interruption costs one.

    Args:
        rows: what has a length and `select`.
        features: of the results.
        arguments: of the generator, by a piece and the number of its first row.
        key: what a piece's results are known again by.
        generator: yields the results.
        desc, progress: of the bar.
        accelerator: knows the processes that share the pieces out among themselves; by default this one makes all.
        whole: as of `generated`.
    """
    size = max(PIECE, -(-len(rows) // MOST_PIECES))
    firsts = range(0, len(rows), size)

    def made(first: int) -> Dataset:
        piece = rows.select(range(first, min(first + size, len(rows))))
        known_by, given = key(piece), arguments(piece, first)
        return generated(generator, known_by, len(piece), whole, features=features, gen_kwargs=given)

    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one for every piece
    try:
        if accelerator is not None and accelerator.num_processes > 1:
            mine = firsts[accelerator.process_index :: accelerator.num_processes]
            for first in tqdm(mine, desc=f"{desc}: this process's share", disable=not progress, unit="piece"):
                made(first)
            accelerator.wait_for_everyone()
            here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
            if here < accelerator.num_processes:  # machines without a common disk have to make those of the others
                for first in firsts[accelerator.local_process_index :: here]:
                    made(first)
                accelerator.wait_for_everyone()
        pieces = []
        with tqdm(total=len(rows), desc=desc, disable=not progress) as bar:
            for first in firsts:
                pieces.append(made(first))
                bar.update(len(pieces[-1]))
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    return concatenate_datasets(pieces)
