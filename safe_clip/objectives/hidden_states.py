"""Distances between what generators read of a CLIP: the hidden states of tokens and patches, before they are pooled.

Stable Diffusion's UNet looks at every token's last state, padding included, SDXL's at those before the last layer, and
LLaVA's projector at those of patches before the last layer. A loss of pooled embeddings alone leaves all of them free.
"""

import torch
from torch import Tensor

# The hidden-state terms, which all objectives share, and the items that a row needs for each.
HIDDEN_STATE_NEEDS = {
    "preservation_text_states": ("safe_text",),
    "preservation_image_states": ("safe_image",),
    "redirection_text_states": ("unsafe_text", "safe_text"),
    "redirection_image_states": ("unsafe_image", "safe_image"),
}


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

    Cross-attention over tokens ignores their order, and the words of an unsafe caption stand at other positions than
    those of its safe counterpart. So the target of each state is the nearest state of the counterpart: states of shared
    words hardly change, and states of unsafe words move to those of some safe word.

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
