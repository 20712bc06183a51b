"""Files and bytes known by what they hold."""

from pathlib import Path

import xxhash

# What is larger is known by its size and by samples that are spread evenly from its beginning to its end and come to
# as much: enough to tell one image or file from another, at a cost that does not grow with them.
WHOLE_FILE = 1 << 23  # bytes
SAMPLES = 8


def file_digest(path: str | Path, whole: int = WHOLE_FILE) -> str:
    """A digest of a file's size and content, of which all is read up to `whole` bytes and as much in samples beyond."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        state = xxhash.xxh3_128(str(size).encode())
        for start, stop in sampled(size, whole):
            file.seek(start)
            state.update(file.read(stop - start))
    return state.hexdigest()


def sampled(size: int, whole: int) -> list[tuple[int, int]]:
    """Which bytes are read of so many."""
    if size <= whole:
        return [(0, size)]
    length = whole // SAMPLES
    starts = [number * (size - length) // (SAMPLES - 1) for number in range(SAMPLES)]
    return [(start, start + length) for start in starts]
