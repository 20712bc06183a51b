"""What cannot be read back is told in one line, and made again."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from datasets.exceptions import DatasetGenerationError

from ..errors import UserError, first_line
from .fingerprints import WHOLE_FILE, file_digest
from .folders import DIGESTS, KIND
from .writing import remove, write_whole

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


def made_again(make: Callable[[], Kept], folder: Path | None) -> Kept:
    """What is made, or read from a cache, which is removed and made again if it cannot be read.

    Args:
        make: reads what is in the folder, or fills it.
        folder: of the cache; nothing is made again where it was not there before.
    """
    found = None if folder is None else read_kept(make, folder)
    return make() if found is None else found


def note_digests(folder: Path, files: Iterable[Path], whole: int = WHOLE_FILE, kind: str | None = None) -> None:
    """Notes digests of files in a folder, for `check_digests`, besides those that are noted already.

    Args:
        folder: where they are kept.
        files: those that lie in it, at any depth, and are not changed any more.
        whole: bytes up to which all of a file is read, and samples beyond.
        kind: what sort of table it is.
    """
    known = _noted(folder)
    new = {path.relative_to(folder).as_posix(): path for path in files}
    if missing := new.keys() - known.keys():
        facts = known | ({KIND: kind} if kind else {})
        write_whole(folder / DIGESTS, json.dumps(facts | {name: file_digest(new[name], whole) for name in missing}))


def check_digests(folder: Path, whole: int = WHOLE_FILE) -> bool:
    """Whether files of a folder were noted.

    Raises:
        ValueError: one of them is not as it was, be it one that can be read.
    """
    known = _noted(folder)
    for name, digest in known.items():
        if name != KIND and file_digest(folder / name, whole) != digest:
            raise ValueError(f"{name} has been changed")
    return bool(known)


def _noted(folder: Path) -> dict[str, str]:
    return json.loads((folder / DIGESTS).read_text(encoding="utf-8")) if (folder / DIGESTS).exists() else {}
