"""What objectives are given of a batch: items embedded by the trained model, and by the frozen original."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..items import ITEMS, ItemBatch, Layout, Quadruplets


@dataclass(frozen=True, eq=False)
class BatchTargets:
    """What the frozen original makes of a batch of B quadruplets.

    Attributes:
        items: the safe items, embedded by the original; the unsafe ones too where the objective `reads_unsafe`.
        anchors: by modality, the items of K safe pairs drawn from the training data, which may include pairs of the
            batch; empty if the objective uses no anchors or there is no training data. Single items if the data has no
            pairs.
        progress: share of training that is done, in [0, 1].
    """

    items: Quadruplets
    anchors: Mapping[str, ItemBatch] = field(default_factory=dict)
    progress: float = 1.0


def as_batch(given: tuple, reference: Any = None) -> tuple[Quadruplets, BatchTargets]:
    """What an objective was called with, as its two arguments: see `Objective.forward`."""
    if given and isinstance(given[0], Quadruplets):
        embeds, *rest = given
        last = rest[0] if rest else reference
        if not isinstance(last, BatchTargets) or len(rest) > 1:
            raise UserError("an objective takes Quadruplets together with BatchTargets.")
        return embeds, last
    given = tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given
    if len(given) != len(ITEMS):
        raise UserError(f"an objective takes the embeddings of {', '.join(ITEMS)}, in this order, not {len(given)}.")
    columns = _alike(given)
    like = next(column for column in columns if column is not None)
    present = [_present(column, len(like)) for column in columns]
    embeds = Quadruplets.packed(columns, Layout.of(np.stack(present, axis=1)))
    if isinstance(reference, BatchTargets):
        return embeds, reference
    originals = [column if column is None else column.detach() for column in columns]
    if reference is not None:
        originals = list(reference)
        if len(originals) == 2:
            originals = [originals[0], None, originals[1], None]
        if len(originals) != len(ITEMS):
            raise UserError(
                "the reference is the original's embeddings of safe captions and safe images, or of all four."
            )
        originals = _alike(originals, like)
    return embeds, BatchTargets(Quadruplets.packed(originals, embeds.layout))


def _present(column: Tensor | None, count: int) -> np.ndarray:
    return np.zeros(count, dtype=bool) if column is None else ~column.isnan().any(dim=1).cpu().numpy()


def _alike(columns: Sequence[Tensor | None], like: Tensor | None = None) -> list[Tensor | None]:
    """Columns at unit length, in float32.

    Raises:
        UserError: they are not B x dimension alike, or all are missing.
    """
    there = [column for column in columns if column is not None]
    if not there or any(not isinstance(each, Tensor) or not each.is_floating_point() for each in there):
        raise UserError("embeddings are tensors of numbers with a fraction, B x dimension, or None; one is required.")
    like = there[0] if like is None else like
    if like.ndim != 2 or any(each.shape != like.shape for each in there):
        shapes = ", ".join(" x ".join(map(str, each.shape)) for each in [like, *there])
        raise UserError(f"embeddings of a batch are B x dimension, all alike, not {shapes}.")
    return [column if column is None else F.normalize(column.float(), dim=-1) for column in columns]
