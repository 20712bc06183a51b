"""What is there more than once, found without comparing everything with everything."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.compute as pc

from .reading import FIELDS, ReadColumn

NEAR = 4  # of a perceptual hash's 64 bits that may differ; of unrelated scenes hardly fewer than 8 do
BANDS = NEAR + 1  # of so many, one at least is the same in two hashes that are as near as that
SAME_COLOUR = 5.0  # levels of 255 by which the mean colours of fields may differ on average
AT_ONCE = 1 << 22  # pairs compared in one go


def repeated_rows(columns: Sequence[ReadColumn]) -> np.ndarray:
    """For each row of a split, the number of the first row that has the same items, or -1 where it is the first.

    Args:
        columns: all columns of the split.
    """
    digests = np.stack([each.digest for each in columns], axis=1)
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    same = first[inverse.ravel()]
    return np.where((same < np.arange(len(same))) & digests.any(axis=1), same, -1)


def same_captions(earlier: Sequence[ReadColumn], later: ReadColumn) -> np.ndarray:
    """For each caption, the place of an earlier one of the same wording, or -1.

    Args:
        earlier: columns of captions; places count through them, laid end to end.
        later: another.
    """
    known, first = np.unique(np.concatenate([each.numbers("wording") for each in earlier]), return_index=True)
    wanted = later.numbers("wording")
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where((known[places] == wanted) & (wanted != 0), first[places], -1)


def near_images(earlier: Sequence[ReadColumn], later: ReadColumn) -> np.ndarray:
    """For each image, the place of an earlier one that looks the same, or -1.

    Two images look the same if their perceptual hashes differ in at most `NEAR` bits, and if their colours do, which
    those hashes do not tell: to them all plain images are one.

    Args:
        earlier: columns of images; places count through them, laid end to end.
        later: another.
    """
    found = np.full(len(later.digest), -1)
    known = np.concatenate([np.flatnonzero(each.digest) + begin for each, begin in _laid(earlier)])
    wanted = np.flatnonzero(later.digest)
    hashes = np.concatenate([each.numbers("phash") for each in earlier]).view(np.uint64)[known]
    colours = np.concatenate([_colours(each) for each in earlier])[known]
    own_hashes, own_colours = later.numbers("phash").view(np.uint64)[wanted], _colours(later)[wanted]
    for band in np.array_split(np.arange(64, dtype=np.uint64), BANDS):
        mask = np.bitwise_or.reduce(np.uint64(1) << band)
        order = np.argsort(hashes & mask, kind="stable")
        keys = (hashes & mask)[order]
        begins, ends = (np.searchsorted(keys, own_hashes & mask, side=side) for side in ("left", "right"))
        for own, place in _pairs(begins, ends):
            other = order[place]
            near = np.bitwise_count(own_hashes[own] ^ hashes[other]) <= NEAR
            own, other = own[near], other[near]
            apart = own_colours[own].astype(np.int16) - colours[other]
            alike = np.abs(apart).mean(axis=1) <= SAME_COLOUR
            found[wanted[own[alike]]] = known[other[alike]]
    return found


def _laid(columns: Sequence[ReadColumn]) -> Iterator[tuple[ReadColumn, int]]:
    """Columns and the places where they begin when they are laid end to end."""
    begin = 0
    for each in columns:
        yield each, begin
        begin += len(each.digest)


def at_place(columns: Sequence[ReadColumn], place: int) -> tuple[ReadColumn, int]:
    """The column that a place lies in, and the row."""
    return next((each, place - begin) for each, begin in _laid(columns) if place < begin + len(each.digest))


def _colours(items: ReadColumn) -> np.ndarray:
    width = FIELDS * FIELDS * 3
    cells = pc.fill_null(items.facts.data.column("colours"), bytes(width))
    return np.frombuffer(b"".join(cells.to_pylist()), dtype=np.uint8).reshape(-1, width)


def _pairs(begins: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of a number and one of its range, about `AT_ONCE` at a time."""
    counts = ends - begins
    part = np.cumsum(counts) // AT_ONCE
    for own in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(part)) + 1):
        repeated = np.repeat(own, counts[own])
        within = np.arange(len(repeated)) - np.repeat(np.cumsum(counts[own]) - counts[own], counts[own])
        yield repeated, begins[repeated] + within
