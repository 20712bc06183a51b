"""Files that are written whole or not at all, and what is in the way removed."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

STAGE = ".safe_clip-"  # begins the name of a file, or of a folder of files, that is not whole yet


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a file to write, of the same ending, which takes the place of another when all is written.

    No other process writes it, on this machine or on another with the same disk.
    """
    partial = path.with_name(f"{STAGE}{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(text.encode())


def make_public_modes(files: Collection[Path] | Iterator[Path]) -> None:
    """Gives files the mode that the umask says, which safetensors does not ask."""
    mode = None
    for path in files:
        if mode is None:
            probe = path.with_name(f"{STAGE}{os.getpid()}.mode")
            probe.touch()
            mode = probe.stat().st_mode & 0o777
            probe.unlink()
        path.chmod(mode)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, as far as it may be removed; nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
