"""Results for every row, kept piece by piece, so that an interruption costs one piece."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from tqdm.auto import tqdm

from ..errors import UserError
from .images import IN_ZIP
from .items import items_there

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
) -> Dataset:
    """A row of results for each row, made in pieces of which each is cached, so that an interruption costs one.

    Args:
        rows: what has a length and `select`.
        features: of the results.
        arguments: of the generator, by a piece and the number of its first row.
        key: what a piece's results are known again by.
        generator: yields the results.
        desc, progress: of the bar.
    """
    size = max(PIECE, -(-len(rows) // MOST_PIECES))
    pieces = []
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one for every piece
    try:
        with tqdm(total=len(rows), desc=desc, disable=not progress) as bar:
            for first in range(0, len(rows), size):
                piece = rows.select(range(first, min(first + size, len(rows))))
                pieces.append(
                    Dataset.from_generator(
                        generator, features=features, gen_kwargs=arguments(piece, first), fingerprint=key(piece)
                    )
                )
                bar.update(len(piece))
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    return concatenate_datasets(pieces)


def stored_files(rows: Dataset, column: str) -> list[tuple] | None:
    """What tells whether files have changed, where a column holds paths and not the pictures themselves."""
    there = items_there(rows, column).nonzero()[0]
    if not len(there) or stored_path(rows[int(there[0])][column]) is None:
        return None
    known: dict[str, tuple] = {}  # of an archive, many pictures come
    facts = []
    for cell in rows[column]:
        path = stored_path(cell) or ""
        file = path.rpartition("::")[2] if path.startswith(IN_ZIP) else path
        if file not in known:
            stat = Path(file).stat() if file and Path(file).is_file() else None
            known[file] = (str(Path(file).absolute()), stat.st_size, stat.st_mtime_ns) if stat else ()
        facts.append((path, *known[file]))
    return facts


def stored_path(cell: Any) -> str | None:
    """The file behind a cell that does not hold the picture itself."""
    if isinstance(cell, dict):
        return cell.get("path") if cell.get("bytes") is None else None
    return cell if isinstance(cell, str) else None
