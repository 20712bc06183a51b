"""The objective of Safe-CLIP (Poppi et al., ECCV 2024, arXiv 2311.16254, section 3.3)."""

from collections.abc import Sequence

from ..items import Quadruplets
from .base import BatchTargets, Mean, Objective, contrastive_term, cosine_term


class SafeCLIPLoss(Objective):
    """Redirection of unsafe items onto their safe counterparts, preservation of safe items.

    Every target is the embedding of a safe item by the frozen original. With `T, V` the trained
    encoders, `T0, V0` the original ones, `(t, v)` a safe pair, `(t*, v*)` its unsafe counterpart,
    `d = 1 - cos` and `NCE` the symmetric in-batch InfoNCE (of a SigLIP its sigmoid loss):

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

    The weights are those of the paper's released script. As there, they are normalised to sum to 1
    and the sum is divided by 8. Terms over hidden states, which the paper lacks, are divided by the same.

    Args:
        logit_scale: factor before the cosines of the contrastive terms (the script: 100).
        weights: `{term: weight >= 0}` in place of the table's; a term of weight 0 is not computed.

    Raises:
        UserError: a weight names no term or is negative, or all are 0.

    Example:
        >>> loss, terms = SafeCLIPLoss()(safe_text, unsafe_text, safe_image, unsafe_image)  # B x dimension each
        >>> loss, terms = SafeCLIPLoss()(*embeds, reference=(original_safe_text, original_safe_image))
    """

    WEIGHTS = {
        "preservation_text_cosine": 0.1,
        "redirection_text_cosine": 0.1,
        "preservation_image_cosine": 0.1,
        "redirection_image_cosine": 0.2,
        "preservation_text_contrastive": 0.25,
        "redirection_text_contrastive": 0.25,
        "preservation_image_contrastive": 0.25,
        "redirection_image_contrastive": 0.5,
    }

    NEEDS = {
        "preservation_text_cosine": ("safe_text",),
        "redirection_text_cosine": ("unsafe_text", "safe_text"),
        "preservation_image_cosine": ("safe_image",),
        "redirection_image_cosine": ("unsafe_image", "safe_image"),
        "preservation_text_contrastive": ("safe_text", "safe_image"),
        "redirection_text_contrastive": ("unsafe_text", "safe_image"),
        "preservation_image_contrastive": ("safe_image", "safe_text"),
        "redirection_image_contrastive": ("unsafe_image", "safe_text"),
    }

    def terms(self, embeds: Quadruplets, reference: BatchTargets) -> dict[str, Mean | Sequence[Mean]]:
        def term(name: str, trained: str, target: str):
            items = embeds[trained], reference.items[target]
            if name.endswith("_cosine"):
                return cosine_term(*items)
            return contrastive_term(*items, self.logit_scale, self.logit_bias)

        return {name: term(name, items[0], items[-1]) for name, items in self.NEEDS.items()}

    @property
    def divisor(self) -> float:
        own = sum(self.weights[name] for name in self.WEIGHTS)
        return (own or sum(self.weights.values())) * len(self.WEIGHTS)
