"""What a metric is given, as tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize


def as_embeddings(values: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Tensor:
    """N x dimension float32 embeddings of length 1, on the GPU where CUDA has one (others lack float64).

    Raises:
        ValueError: they are no N x dimension numbers, or one is not finite or has no direction.
    """
    embeds = torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values).float()
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(f"embeddings are N x dimension, not of shape {tuple(embeds.shape)}.")
    if torch.cuda.is_available():
        embeds = embeds.cuda()
    lengths = embeds.norm(dim=1)
    if not torch.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError("an embedding is not finite or has no direction.")
    # Scaling what has length 1 already would only add rounding, and a copy.
    return embeds if (lengths - 1).abs().max() < 1e-5 else normalize(embeds, dim=1)
