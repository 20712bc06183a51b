"""The objective of SafeR-CLIP (AAAI 2026, arXiv 2511.16743), after a summary of the paper."""

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .base import Objective, QuadrupletEmbeds, ReferenceEmbeds, cosine_distance


class SaferCLIPLoss(Objective):
    """Redirection of unsafe items to the nearest safe ones, with the unsafe counterpart as the only negative.

    The target of the i-th quadruplet's unsafe items is the training pair `(t', v')` whose caption the original finds
    nearest to the unsafe caption, `argmax cos(T0(t*_i), T0(t'))`, in place of the pair that the data give. The
    cross-modal term is relative, so that no safe pair is pushed away as a random negative:

    | term                        | value                                                        | weight |
    |-----------------------------|--------------------------------------------------------------|--------|
    | `preservation_text_cosine`  | d(T(t), T0(t))                                               | 1      |
    | `preservation_image_cosine` | d(V(v), V0(v))                                               | 1      |
    | `redirection_text_cosine`   | d(T(t*), T0(t'))                                             | 1      |
    | `redirection_image_cosine`  | d(V(v*), V0(v'))                                             | 1      |
    | `redirection_text_relative` | log(1 + exp(cos(T(t*), V0(v*)) - cos(T(t*), V0(v'))))        | 1      |
    | `redirection_image_relative`| log(1 + exp(cos(V(v*), T0(t*)) - cos(V(v*), T0(t'))))        | 1      |

    Curriculum, easy to hard: of a batch, the unsafe items whose target is nearest take part from the start, and the
    share that does grows linearly with training from `first_share` to all of them.

    Second-hand: the nearest caption as target, `redirection_image_relative` and "its mirror", and "an easy-to-hard
    curriculum" come from a summary. Equal weights, the pair's picture as target of unsafe pictures, cosine terms of
    preservation, and how the curriculum picks rows are our reading.

    Args:
        logit_scale: not used; the terms are made of cosines.
        weights: `{term: weight >= 0}` in place of the table's; a term of weight 0 is not computed.
        first_share: share of unsafe items that take part at the start, in (0, 1]; 1 is no curriculum.

    Raises:
        UserError: a weight or setting is out of range.
    """

    WEIGHTS = {
        "preservation_text_cosine": 1.0,
        "preservation_image_cosine": 1.0,
        "redirection_text_cosine": 1.0,
        "redirection_image_cosine": 1.0,
        "redirection_text_relative": 1.0,
        "redirection_image_relative": 1.0,
    }
    reads_unsafe = True
    anchors = None

    def __init__(
        self, logit_scale: float = 100.0, weights: Mapping[str, float] | None = None, first_share: float = 0.3
    ):
        super().__init__(logit_scale, weights)
        if not 0 < first_share <= 1:
            raise UserError(f"safer_clip wants a first_share above 0 and up to 1, not {first_share!r}.")
        self.first_share = first_share

    def terms(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds):
        captions, pictures = reference.safe_text, reference.safe_image
        if reference.anchor_text is not None:
            captions, pictures = reference.anchor_text, reference.anchor_image
        closeness, nearest = (reference.unsafe_text @ captions.T).max(dim=1)
        near_text, near_image = captions[nearest], pictures[nearest]
        share = self.first_share + (1 - self.first_share) * reference.progress
        easy = closeness.topk(max(1, round(share * len(closeness)))).indices
        text, image = embeds.unsafe_text[easy], embeds.unsafe_image[easy]
        return {
            "preservation_text_cosine": partial(cosine_distance, embeds.safe_text, reference.safe_text),
            "preservation_image_cosine": partial(cosine_distance, embeds.safe_image, reference.safe_image),
            "redirection_text_cosine": partial(cosine_distance, text, near_text[easy]),
            "redirection_image_cosine": partial(cosine_distance, image, near_image[easy]),
            "redirection_text_relative": partial(relative, text, near_image[easy], reference.unsafe_image[easy]),
            "redirection_image_relative": partial(relative, image, near_text[easy], reference.unsafe_text[easy]),
        }


def relative(queries: Tensor, wanted: Tensor, unwanted: Tensor) -> Tensor:
    """Mean of `log(1 + exp(cos(query, unwanted) - cos(query, wanted)))` over rows; in [0.12, 2.13]."""
    gap = F.cosine_similarity(queries, unwanted, dim=-1) - F.cosine_similarity(queries, wanted, dim=-1)
    return F.softplus(gap).mean()
