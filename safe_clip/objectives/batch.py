"""What objectives are given of a batch: embeddings by the trained model and by the original, and what is missing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

ITEMS = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")


class QuadrupletEmbeds(NamedTuple):
    """Unit-length embeddings of B quadruplets, each B x dimension, by the model in training; NaN for a missing item."""

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor


class Makeup(NamedTuple):
    """What B quadruplets are made of.

    Attributes:
        present: which of `ITEMS` each has; B x 4 booleans.
        generated: whether it is made of items of an unsafe side that turned out harmless; B booleans.
        mixed: whether one item of its unsafe side did so, and the other did not; B booleans.
    """

    present: Tensor
    generated: Tensor
    mixed: Tensor

    @classmethod
    def whole(cls, count: int, device: torch.device | None = None) -> "Makeup":
        """That of quadruplets that have all, without labels."""
        no = torch.zeros(count, dtype=torch.bool, device=device)
        return cls(torch.ones(count, len(ITEMS), dtype=torch.bool, device=device), no, no)

    @classmethod
    def of(cls, embeds: "QuadrupletEmbeds") -> "Makeup":
        """That of quadruplets of which these embeddings, NaN where an item is missing, are all that is known."""
        whole = cls.whole(len(embeds.safe_text), embeds.safe_text.device)
        return whole._replace(present=torch.stack([~column.isnan().any(dim=1) for column in embeds], dim=1))

    def having(self, *items: str) -> Tensor:
        """Whether quadruplets have all of some items; B booleans."""
        return self.present[:, [ITEMS.index(item) for item in items]].all(dim=1)


class ReferenceEmbeds(NamedTuple):
    """Unit-length embeddings by the frozen original, and what else is known of a batch of B quadruplets.

    Attributes:
        safe_text, safe_image: the safe items, B x dimension; NaN for a missing item.
        unsafe_text, unsafe_image: the unsafe items, B x dimension; there where the objective `reads_unsafe`.
        anchor_text, anchor_image: safe pairs drawn from the training data with replacement, those of the batch
            not left out, K x dimension; there where the objective wants `anchors` and training has begun. Of data
            without any pair, single items, NaN in the other modality.
        makeup: what the batch is made of; `None` where nothing is missing.
        progress: share of training that is done, in [0, 1].
    """

    safe_text: Tensor
    safe_image: Tensor
    unsafe_text: Tensor | None = None
    unsafe_image: Tensor | None = None
    anchor_text: Tensor | None = None
    anchor_image: Tensor | None = None
    makeup: Makeup | None = None
    progress: float = 1.0


def as_batch(given: tuple, reference: Any = None) -> tuple[QuadrupletEmbeds, ReferenceEmbeds]:
    """What an objective was called with, as its two arguments: see `Objective.forward`."""
    *given, last = given if given and isinstance(given[-1], ReferenceEmbeds) else (*given, reference)
    if len(given) == 2 and isinstance(given[0], QuadrupletEmbeds) and last is None:
        given, last = given[:1], given[1]
    if len(given) == 1 and isinstance(given[0], QuadrupletEmbeds) and isinstance(last, ReferenceEmbeds):
        return given[0], last
    given = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
    if len(given) != len(ITEMS):
        raise UserError(f"an objective takes the embeddings of {', '.join(ITEMS)}, in this order, not {len(given)}.")
    embeds = QuadrupletEmbeds(*_alike(given))
    if isinstance(last, ReferenceEmbeds):
        return embeds, last
    originals = [column.detach() for column in embeds] if last is None else list(last)
    if len(originals) == 2:
        return embeds, ReferenceEmbeds(*_alike(originals, embeds.safe_text))
    if len(originals) != len(ITEMS):
        raise UserError("the reference is the original's embeddings of safe captions and safe images, or of all four.")
    safe_text, unsafe_text, safe_image, unsafe_image = _alike(originals, embeds.safe_text)
    return embeds, ReferenceEmbeds(safe_text, safe_image, unsafe_text, unsafe_image)


def _alike(columns: Sequence[Tensor | None], like: Tensor | None = None) -> list[Tensor]:
    """Columns at unit length, NaN for one that is missing.

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
    return [torch.full_like(like, torch.nan) if each is None else F.normalize(each, dim=-1) for each in columns]
