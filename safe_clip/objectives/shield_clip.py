"""The objective of ShieldCLIP (2026, arXiv 2609.39688), after a summary of the paper."""

from collections.abc import Sequence

import numpy as np

from ..items import Layout, Quadruplets
from .base import BatchTargets, Mean, Objective, contrastive_term, cosine_term


class ShieldCLIPLoss(Objective):
    """Redirection by what each item of a generated pair is, with a term that keeps unsafe pairs coherent.

    A quadruplet's unsafe side is a generated pair `(t*, v*)`, of which either item may have come out harmless. The
    labels say which; without them, all are unsafe.

    | term        | value                                                                 | over      | weight |
    |-------------|-----------------------------------------------------------------------|-----------|--------|
    | `real`      | d(T(t), T0(t)) + d(V(v), V0(v)) + NCE(T(t), V0(v)) + NCE(V(v), T0(t)) | all rows  | 0.1    |
    | `safe`      | the same for the harmless items of `(t*, v*)`                         | harmless  | 0.1    |
    | `redirect`  | d(T(t*), T0(t)) + d(V(v*), V0(v))                                     | unsafe    | 0.1    |
    | `mixed`     | d(T(t*), T0(t)) or d(V(v*), V0(v)), for the item that is unsafe       | one is    | 0.25   |
    | `coherence` | NCE(T(t*), V(v*))                                                     | unsafe    | 0.25   |

    Each part of a term is a mean over the rows that have its items.

    Second-hand: the five weights, "safe items are preserved even when they came from the generator (cosine and
    InfoNCE to the frozen model)", "only the unsafe modality is redirected (cosine to the safe anchor)" and the
    coherence term come from a summary. How a term is summed over modalities is our reading.

    Args:
        logit_scale: factor before the cosines of the InfoNCE terms.
        weights: `{term: weight >= 0}` in place of the table's; a term of weight 0 is not computed.

    Raises:
        UserError: a weight names no term or is negative, or all are 0.
    """

    WEIGHTS = {"real": 0.1, "safe": 0.1, "redirect": 0.1, "mixed": 0.25, "coherence": 0.25}
    COHERENCE = ("coherence",)

    def rows_with_items(self, layout: Layout):
        safe = layout.having("safe_text") | layout.having("safe_image")
        redirected = layout.having("unsafe_text", "safe_text") | layout.having("unsafe_image", "safe_image")
        return {
            "real": safe & ~layout.relabelled,
            "safe": safe & layout.relabelled,
            "redirect": redirected & ~layout.half_unsafe,
            "mixed": redirected & layout.half_unsafe,
            "coherence": layout.having("unsafe_text", "unsafe_image"),
        }

    def terms(self, embeds: Quadruplets, reference: BatchTargets) -> dict[str, Mean | Sequence[Mean]]:
        original, layout = reference.items, embeds.layout

        def preserved(which: np.ndarray) -> list[Mean]:
            text, image = (embeds[item].among(which) for item in ("safe_text", "safe_image"))
            return [
                cosine_term(text, original.safe_text),
                cosine_term(image, original.safe_image),
                contrastive_term(text, original.safe_image, self.logit_scale, self.logit_bias),
                contrastive_term(image, original.safe_text, self.logit_scale, self.logit_bias),
            ]

        def redirected(which: np.ndarray) -> list[Mean]:
            return [
                cosine_term(embeds.unsafe_text.among(which), original.safe_text),
                cosine_term(embeds.unsafe_image.among(which), original.safe_image),
            ]

        return {
            "real": preserved(~layout.relabelled),
            "safe": preserved(layout.relabelled),
            "redirect": redirected(~layout.half_unsafe),
            "mixed": redirected(layout.half_unsafe),
            "coherence": contrastive_term(embeds.unsafe_text, embeds.unsafe_image, self.logit_scale, self.logit_bias),
        }
