"""The objective of Safe-CLIP (Poppi et al., ECCV 2024, arXiv 2311.16254, section 3.3)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

# The weights of the paper's released script.
PAPER_WEIGHTS = {
    "preservation_text_cosine": 0.1,
    "redirection_text_cosine": 0.1,
    "preservation_image_cosine": 0.1,
    "redirection_image_cosine": 0.2,
    "preservation_text_contrastive": 0.25,
    "redirection_text_contrastive": 0.25,
    "preservation_image_contrastive": 0.25,
    "redirection_image_contrastive": 0.5,
}


class QuadrupletEmbeds(NamedTuple):
    """Unit-length embeddings of B quadruplets, each B x dimension, by the model in training."""

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor


class ReferenceEmbeds(NamedTuple):
    """Unit-length embeddings of the B safe items, each B x dimension, by the frozen original."""

    text: Tensor
    image: Tensor


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of `1 - cos` over the rows of two B x dimension tensors; in [0, 2]."""
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()


def contrastive(queries: Tensor, targets: Tensor, logit_scale: float) -> Tensor:
    """Symmetric InfoNCE over a batch whose i-th query belongs to its i-th target; at least 0."""
    logits = logit_scale * F.normalize(queries, dim=-1) @ F.normalize(targets, dim=-1).T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class SafeCLIPLoss(nn.Module):
    """Redirection of unsafe items onto their safe counterparts, preservation of safe items.

    Every target is the embedding of a safe item by the frozen original. With `T, V` the trained
    encoders, `T0, V0` the original ones, `(t, v)` a safe pair, `(t*, v*)` its unsafe counterpart,
    `d = 1 - cos` and `NCE` the symmetric in-batch InfoNCE:

    | term                             | value             | weight |
    |----------------------------------|-------------------|--------|
    | `preservation_text_cosine`       | d(T(t), T0(t))    | 0.1    |
    | `redirection_text_cosine`        | d(T(t*), T0(t))   | 0.1    |
    | `preservation_image_cosine`      | d(V(v), V0(v))    | 0.1    |
    | `redirection_image_cosine`       | d(V(v*), V0(v))   | 0.2    |
    | `preservation_text_contrastive`  | NCE(T(t), V0(v))  | 0.25   |
    | `redirection_text_contrastive`   | NCE(T(t*), V0(v)) | 0.25   |
    | `preservation_image_contrastive` | NCE(V(v), T0(t))  | 0.25   |
    | `redirection_image_contrastive`  | NCE(V(v*), T0(t)) | 0.5    |

    As in the released script, weights are normalised to sum to 1 and the sum is divided by 8.

    Args:
        logit_scale: factor before the cosines of the contrastive terms (the script: 100).
        weights: `{term: weight >= 0}` in place of the table's; a term of weight 0 is not computed.

    Raises:
        UserError: a weight names no term or is negative, or all are 0.

    Example:
        >>> loss, terms = SafeCLIPLoss()(embeds, reference)
    """

    def __init__(self, logit_scale: float = 100.0, weights: Mapping[str, float] | None = None):
        super().__init__()
        self.logit_scale = logit_scale
        self.weights = PAPER_WEIGHTS | check_weights(weights or {})
        if sum(self.weights.values()) == 0:
            raise UserError("--loss_weights switches every term off; leave at least one above 0.")

    def forward(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a batch.

        Returns:
            The scalar loss and the unweighted value of each term that has a weight, in float32.
        """
        # Logits of up to 100 have no business in half precision.
        with torch.autocast(embeds.safe_text.device.type, enabled=False):
            return self._forward(embeds, reference)

    def _forward(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds) -> tuple[Tensor, dict[str, Tensor]]:
        embeds = QuadrupletEmbeds(*(tensor.float() for tensor in embeds))
        reference = ReferenceEmbeds(*(tensor.float() for tensor in reference))
        # (what is trained, the original of the same modality, the original of the other one)
        items = {
            "preservation_text": (embeds.safe_text, reference.text, reference.image),
            "redirection_text": (embeds.unsafe_text, reference.text, reference.image),
            "preservation_image": (embeds.safe_image, reference.image, reference.text),
            "redirection_image": (embeds.unsafe_image, reference.image, reference.text),
        }
        terms = {}
        for name, (trained, same, other) in items.items():
            if self.weights[f"{name}_cosine"]:
                terms[f"{name}_cosine"] = cosine_distance(trained, same)
            if self.weights[f"{name}_contrastive"]:
                terms[f"{name}_contrastive"] = contrastive(trained, other, self.logit_scale)
        total = sum(self.weights[name] * term for name, term in terms.items())
        return total / sum(self.weights.values()) / len(self.weights), terms


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights as floats, or raises `UserError` for one that names no term or is negative."""
    for name, weight in weights.items():
        if name not in PAPER_WEIGHTS:
            raise UserError(f"--loss_weights names '{name}'; the terms are {', '.join(PAPER_WEIGHTS)}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise UserError(f"--loss_weights sets '{name}' to {weight!r}; a weight is a number of at least 0.")
    return {name: float(weight) for name, weight in weights.items()}
