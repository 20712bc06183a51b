"""What cannot be read back is told in one line, and made again."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from datasets.exceptions import DatasetGenerationError

from ..errors import UserError, first_line

logger = logging.getLogger(__name__)

Kept = TypeVar("Kept")


def read_kept(read: Callable[[], Kept], path: Path) -> Kept | None:
    """What is kept in a file or folder; `None` where there is nothing, or what cannot be read, which is removed.

    Args:
        read: reads it, and raises where it is damaged.
        path: the file or folder.
    """
    if not path.exists():
        return None
    try:
        return read()
    except Exception as error:  # of JSON, Arrow, safetensors, the system, each its own type; but not of the data
        if isinstance(error, DatasetGenerationError | UserError):
            raise
        logger.warning("The cache %s cannot be read (%s): it is made again.", path, first_line(error))
        remove(path)
    return None


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, as far as it may be removed; nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def made_again(make: Callable[[], Kept], folder: Path | None) -> Kept:
    """What is made, or read from a cache, which is removed and made again if it cannot be read.

    Args:
        make: reads what is in the folder, or fills it.
        folder: of the cache; nothing is made again where it was not there before.
    """
    found = None if folder is None else read_kept(make, folder)
    return make() if found is None else found
