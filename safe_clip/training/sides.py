"""Whether the safe and the unsafe side of training data are the sides that they are called.

Trained with its sides swapped, a CLIP learns to find what is unsafe, and nothing in such a run looks wrong. So the data
are asked before it begins: which captions have words that say what is unsafe, and the original, to which a caption is
nearer to its own image than to the other side's.
"""

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Features
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..data.collator import QuadrupletCollator
from ..data.features import texts_in
from ..data.items import CONCEPT
from ..data.minors import readings
from ..data.rows import QuadrupletRows
from ..data.streams import QuadrupletStream
from ..data.unsafe_words import plain, unsafe_word
from ..embedding.embedder import Embedder
from ..errors import UserError
from ..items import ITEMS
from ..terminal import progress_bar

logger = logging.getLogger(__name__)

ROWS = 128  # of the training data, evenly spread, that are looked at
DEVIATIONS = 3.0  # from an even split, below which chance could be all that there is
# Share of rows that has to speak against the sides as they are called. Where the bundled demo's are right, 4 % of rows
# do at most by nearness, and 9 % by what words mean to the original.
NEARNESS, MEANING = 2 / 3, 0.8
WORDS, LEAST_WORDS = 0.25, 5  # share and number of rows where one side alone has words that say what is unsafe
TIMES = 2  # as many of which have to stand on one side as on the other
SHOWN = 3  # words that a message names
PAIRED = 0.6  # of captions are nearer to their own image than another row's, where an original can be asked
MANY = 64  # rows from which that is worth a warning


class Evidence(NamedTuple):
    """Whether sides look swapped: `True`, `False`, or `None` where nothing tells; and how that shows."""

    swapped: bool | None = None
    why: str = ""


def check_sides(rows: QuadrupletRows | QuadrupletStream, embedder: Embedder, collator: QuadrupletCollator) -> None:
    """Refuses training rows whose sides look swapped, in captions, in images or in both.

    Args:
        rows: the training rows, of which up to `ROWS` are looked at: the first of a stream, else evenly spread ones.
        embedder: of the original.
        collator: makes batches of them.

    Raises:
        UserError: they do, or a row cannot be used.
    """
    quadruplets, concepts = _sample(rows)
    captions, embeds, named = [], [], []
    bar = {"desc": "Asking the original about the sides", "disable": not embedder.progress, "leave": False}
    for start in progress_bar(range(0, len(quadruplets), embedder.batch_size), **bar):
        numbers = range(start, min(start + embedder.batch_size, len(quadruplets)))
        batch = [quadruplets[number] for number in numbers]
        captions += [
            (None, None)
            if row.get("relabelled") or row.get("half_unsafe")
            else (row["safe_caption"], row["unsafe_caption"])
            for row in batch
        ]
        embeds.append(embedder.quadruplets(collator(batch)))
        names = [{"safe_caption": ", ".join(concepts[number]) or None} for number in numbers]
        named.append(embedder.quadruplets(collator(names)).safe_text.dense(len(names)))
    columns = {item: torch.cat([each[item].dense(len(each)) for each in embeds]) for item in ITEMS}
    said = by_words(captions, concepts), by_nearness(columns), by_meaning(columns, torch.cat(named), concepts)
    found = swapped_sides(*said)
    if found is None and len(captions) >= MANY and all(each.swapped is None for each in said):
        logger.warning(
            "Neither words nor the original tell which side of the training rows is unsafe: see to it that the columns "
            "are what they are called."
        )
    if found is not None:
        raise UserError(
            f"the safe and the unsafe side of {found}. Trained like this, the model would learn to find what is "
            "unsafe. Exchange the names of their columns, in the data or in --column_mapping; if they are what they "
            "are called, go on with --sides_are_right."
        )


def swapped_sides(words: Evidence, nearness: Evidence, meaning: Evidence) -> str | None:
    """Which modalities look swapped, and why, in words; nothing where none does.

    Args:
        words: of captions, by the words in them.
        nearness: of one modality against the other.
        meaning: of images, by what is named as unsafe in them.
    """
    captions, images, crossed = words.swapped, meaning.swapped, nearness.swapped
    if crossed is not None:
        if captions is None and images is not None:
            captions = images != crossed
        elif images is None and captions is not None:
            images = captions != crossed
    why = "; ".join(each.why for each in (words, nearness, meaning) if each.swapped)
    if captions or images:
        return f"{' and '.join(['captions'] * bool(captions) + ['images'] * bool(images))} look swapped: {why}"
    return f"either captions or images look swapped: {why}" if crossed and captions is None else None


def by_words(captions: Sequence[tuple[str | None, str | None]], concepts: Sequence[Sequence[str]]) -> Evidence:
    """What words say of the sides of captions: a row speaks where one side alone has words of what is unsafe.

    Args:
        captions: safe and unsafe ones, a pair for each row.
        concepts: for each row, what it names as unsafe, such as `["mug of beer"]`.
    """
    found: list[list[str | None]] = []  # for each row that has a safe caption, a word in each of its captions
    one_sided = True
    for pair, named in zip(captions, concepts, strict=True):
        if pair[0] is not None:
            one_sided &= pair[1] is None
            names = [plain(name) for name in named]
            found.append(
                [None if text is None else unsafe_word(f"{plain(text)}\n{readings(text)}", names) for text in pair]
            )
    safe_alone = [safe for safe, unsafe in found if safe and not unsafe]
    unsafe_alone = sum(bool(unsafe) and not safe for safe, unsafe in found)
    enough = max(LEAST_WORDS, (0.5 if one_sided else WORDS) * len(found))  # with nothing beside it, a word says less
    if len(safe_alone) >= max(enough, TIMES * unsafe_alone):
        words = ", ".join(repr(word) for word, _ in Counter(safe_alone).most_common(SHOWN))
        return Evidence(
            True,
            f"words that say what is unsafe, such as {words}, stand in the safe caption alone in {len(safe_alone)} of "
            f"{len(found)} rows, and in the unsafe one alone in {unsafe_alone}",
        )
    return Evidence(False if unsafe_alone >= max(enough, TIMES * len(safe_alone)) else None)


def by_nearness(columns: dict[str, Tensor]) -> Evidence:
    """Whether captions of one side belong to the images of the other, by the original.

    A row speaks by (safe - unsafe caption) x (safe - unsafe image), in which what draws all captions to some images
    cancels. Where one item of a modality is missing, the mean of the other's side stands in for it.

    Args:
        columns: `safe_text`, `unsafe_text`, `safe_image` and `unsafe_image`, each N x dimension, NaN for missing items.
    """
    text, image = ([columns[f"{side}_{modality}"] for side in ("safe", "unsafe")] for modality in ("text", "image"))
    whole = [torch.stack(sides).nanmean(dim=0) for sides in (text, image)]
    pairs = _sum_product(*(each - each.roll(1, 0) for each in whole))
    paired = _share(pairs > 0, pairs)
    if paired is None or paired < PAIRED:  # an original that cannot tell rows apart cannot tell sides apart
        if paired is not None and len(pairs) >= MANY:
            logger.warning(
                "The original finds only %.0f %% of captions nearer to their own image than to another row's: check "
                "that captions and images of a row belong together.",
                100 * paired,
            )
        return Evidence()
    there = ~torch.stack([*text, *image]).isnan()[:, :, 0]
    one_whole = there[:2].all(dim=0) | there[2:].all(dim=0)
    values = _sum_product(_difference(*text), _difference(*image)).masked_fill(~one_whole, torch.nan)
    return _evidence(
        values, NEARNESS, "to the original, captions are nearer to the other side's image than to their own"
    )


def by_meaning(columns: dict[str, Tensor], named: Tensor, concepts: Sequence[Sequence[str]]) -> Evidence:
    """Whether what rows name as unsafe is in their safe image rather than in the unsafe one, by the original.

    Args:
        columns: as for `by_nearness`.
        named: the embedding of what each row names, N x dimension; NaN where it names nothing.
        concepts: as for `by_words`.
    """
    if len({tuple(names) for names in concepts if names}) < 3:  # of one word, only what draws all images to it is seen
        return Evidence()
    values = _sum_product(columns["unsafe_image"] - columns["safe_image"], named - named.nanmean(dim=0, keepdim=True))
    return _evidence(
        values, MEANING, "to the original, what `concept` names is in the safe image rather than the unsafe"
    )


def _evidence(values: Tensor, needed: float, why: str) -> Evidence:
    """What rows say, of which each speaks for its sides by a number above 0 and against them by one below."""
    count = int((~values.isnan()).sum())
    against = _share(values < 0, values)
    if against is None or abs(against - 0.5) * 2 * count**0.5 < DEVIATIONS:
        return Evidence()
    if against >= needed:
        return Evidence(True, f"{why} in {round(against * count)} of {count} rows")
    return Evidence(False if against <= 1 - needed else None)


def _share(which: Tensor, values: Tensor) -> float | None:
    """The share of values, of those that are numbers."""
    there = ~values.isnan()
    return (which & there).sum().item() / there.sum().item() if there.any() else None


def _difference(safe: Tensor, unsafe: Tensor) -> Tensor:
    """Safe minus unsafe embeddings of rows; N x dimension."""
    safe_apart, unsafe_apart = safe - safe.nanmean(dim=0), unsafe - unsafe.nanmean(dim=0)
    alone = torch.where(safe.isnan(), -unsafe_apart, safe_apart)
    return torch.where((safe - unsafe).isnan(), alone, safe - unsafe)


def _sum_product(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=-1)


def _sample(rows: QuadrupletRows | QuadrupletStream) -> tuple[Dataset, list[list[str]]]:
    """Quadruplets to look at, and of each what its row names as unsafe."""
    unchanged = copy.copy(rows)
    unchanged.augment = None
    if isinstance(rows, QuadrupletStream):
        head = unchanged.head(ROWS)
        return head, [_concepts(each.row, rows.source.features) for each in head.quadruplets]
    numbers = np.unique(np.linspace(0, len(rows) - 1, ROWS).astype(int)).tolist()
    features = getattr(rows.rows, "features", None)
    return Subset(unchanged, numbers), [_concepts(rows.stored_row(number), features) for number in numbers]


def _concepts(row: dict[str, Any], features: Features | None) -> list[str]:
    return list(texts_in((features or {}).get(CONCEPT), row.get(CONCEPT)))
