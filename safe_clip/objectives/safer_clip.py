"""The objective of SafeR-CLIP (AAAI 2026, arXiv 2511.16743), after a summary of the paper."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .base import Objective, QuadrupletEmbeds, ReferenceEmbeds, Term, cosine_distance, cosine_term, max_queries


class SaferCLIPLoss(Objective):
    """Redirection of unsafe items to the nearest safe ones, with the unsafe counterpart as the only negative.

    The target of the i-th quadruplet's unsafe items is the training pair `(t', v')` whose caption the original finds
    nearest to the unsafe caption, `argmax cos(T0(t*_i), T0(t'))`, in place of the pair that the data give; rows without
    an unsafe caption keep theirs. The cross-modal term is relative, so that no safe pair is pushed away as a random
    negative:

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
    NEEDS = {
        "preservation_text_cosine": ("safe_text",),
        "preservation_image_cosine": ("safe_image",),
        "redirection_text_cosine": ("unsafe_text", "safe_text"),
        "redirection_image_cosine": ("unsafe_image", "safe_image"),
        "redirection_text_relative": ("unsafe_text", "safe_image", "unsafe_image"),
        "redirection_image_relative": ("unsafe_image", "safe_text", "unsafe_text"),
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
        has = reference.makeup.having
        near_text, near_image = reference.safe_text.clone(), reference.safe_image.clone()
        closeness = torch.where(
            has("unsafe_image", "safe_image"), (reference.unsafe_image * reference.safe_image).sum(dim=1), -1.0
        )
        asking = has("unsafe_text") & ~captions.isnan().all()
        if asking.any():
            found = [
                (queries @ captions.T).nan_to_num(-1).max(dim=1)
                for queries in reference.unsafe_text[asking].split(max_queries(len(captions)))
            ]
            closeness[asking], nearest = (torch.cat(parts) for parts in zip(*found, strict=True))
            near_text[asking] = captions[nearest]
            if pictures is not None:
                theirs = pictures[nearest]
                near_image[asking] = torch.where(theirs.isnan(), near_image[asking], theirs)
        share = self.first_share + (1 - self.first_share) * reference.progress

        def easy(value: Callable, *tensors: Tensor) -> Term:
            def term(rows: Tensor, positions: Tensor) -> Tensor:
                count = max(1, round(share * len(rows)))
                chosen = torch.zeros(len(rows), device=rows.device)
                chosen[closeness[rows].topk(count).indices] = len(rows) / count  # so that the mean is over them alone
                return chosen[positions] * value(*(tensor[rows[positions]] for tensor in tensors))

            return term

        return {
            "preservation_text_cosine": cosine_term(embeds.safe_text, reference.safe_text),
            "preservation_image_cosine": cosine_term(embeds.safe_image, reference.safe_image),
            "redirection_text_cosine": easy(cosine_distance, embeds.unsafe_text, near_text),
            "redirection_image_cosine": easy(cosine_distance, embeds.unsafe_image, near_image),
            "redirection_text_relative": easy(relative, embeds.unsafe_text, near_image, reference.unsafe_image),
            "redirection_image_relative": easy(relative, embeds.unsafe_image, near_text, reference.unsafe_text),
        }


def relative(queries: Tensor, wanted: Tensor, unwanted: Tensor) -> Tensor:
    """`log(1 + exp(cos(query, unwanted) - cos(query, wanted)))` of each row; in [0.12, 2.13]."""
    gap = F.cosine_similarity(queries, unwanted, dim=-1) - F.cosine_similarity(queries, wanted, dim=-1)
    return F.softplus(gap)
