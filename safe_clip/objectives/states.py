"""Terms over what generators read of a CLIP: the states of tokens and patches, before they are pooled.

Stable Diffusion's UNet looks at every token's last state, padding included, SDXL's at those before the last layer, and
LLaVA's projector at those of patches before the last layer. A loss of pooled embeddings alone leaves all of them free.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Makeup, state_feeds


class States(NamedTuple):
    """States of all positions, N x length x width each, of one layer or several; `None` where there are no items.

    Attributes:
        text: of captions, those before the last layer and the last ones, normalised as the text encoder gives them.
        image: of pictures, those before the last layer.
    """

    text: tuple[Tensor, ...] | None = None
    image: tuple[Tensor, ...] | None = None


def relative_error(states: Tensor, original: Tensor) -> Tensor:
    """Relative squared error of states: how far they lie from where they were, in shares of their length.

    Args:
        states, original: N x length x width.

    Returns:
        `|h - h0|^2 / |h0|^2`, the mean over positions; N values of at least 0. It is 1 for a state that was lost.
    """
    states, original = states.float(), original.float()
    return ((states - original).square().sum(-1) / original.square().sum(-1)).mean(-1)


def nearest_state_distance(states: Tensor, allowed: Tensor) -> Tensor:
    """How far states lie from the nearest of those that are allowed: a one-sided Chamfer distance.

    An attention that reads the states of words does not ask for their order, and an unsafe caption has other positions
    than its safe counterpart. So each state may go to whichever of the counterpart's is next to it: what both have in
    common stays, and what only the unsafe one says becomes something that the safe one says too.

    Args:
        states: N x length x width.
        allowed: N x another length x width.

    Returns:
        `min_k |h - h0_k|^2 / |h0_k|^2`, the mean over positions; N values of at least 0.
    """
    states, allowed = states.float(), allowed.float()
    lengths = allowed.square().sum(-1)
    with torch.no_grad():
        apart = states.square().sum(-1).unsqueeze(2) + lengths.unsqueeze(1) - 2 * states @ allowed.transpose(1, 2)
        nearest = (apart / lengths.unsqueeze(1)).argmin(dim=2)
    return relative_error(states, allowed.gather(1, nearest.unsqueeze(2).expand(-1, -1, allowed.shape[2])))


def state_values(names: Iterable[str], trained: States, original: States, makeup: Makeup) -> dict[str, Tensor]:
    """The values of terms.

    Args:
        names: which terms.
        trained: by the trained model, first of the safe items that there are, then of the unsafe ones.
        original: by the frozen original, of the safe items.
        makeup: which items the rows have.

    Returns:
        For each term one value for each row that feeds it, in float32.
    """
    values, feeds = {}, state_feeds(makeup)
    for name in names:
        rows = feeds[name]
        modality = "text" if "_text_" in name else "image"
        ours, theirs = getattr(trained, modality), getattr(original, modality)
        if ours is None or not rows.any():
            continue
        safe = makeup.having(f"safe_{modality}")
        targets = (safe.cumsum(0) - 1)[rows]
        if name.startswith("preservation"):
            each = [relative_error(layer[targets], before[targets]) for layer, before in zip(ours, theirs, strict=True)]
        else:
            # A patch's position means something: there, the counterpart's own state is wanted, or, as far as the unsafe
            # picture does not tell it, the mean of what it may be.
            distance = nearest_state_distance if modality == "text" else relative_error
            unsafe = safe.sum() + makeup.having(f"unsafe_{modality}").cumsum(0) - 1
            each = [distance(layer[unsafe[rows]], before[targets]) for layer, before in zip(ours, theirs, strict=True)]
        values[name] = torch.stack(each).mean(0)
    return values
