"""The objective of ShieldCLIP (2026, arXiv 2609.39688), after a summary of the paper."""

from functools import partial

import torch
from torch import Tensor

from .base import Objective, QuadrupletEmbeds, ReferenceEmbeds, contrastive, cosine_distance


class ShieldCLIPLoss(Objective):
    """Redirection by what each item of a generated pair is, with a term that keeps unsafe pairs coherent.

    A quadruplet's unsafe side is a generated pair `(t*, v*)`, of which either item may have come out harmless. The
    labels say which (`unsafe_caption_is_safe`, `unsafe_image_is_safe`); without them, all are unsafe.

    | term        | value                                                                 | over      | weight |
    |-------------|-----------------------------------------------------------------------|-----------|--------|
    | `real`      | d(T(t), T0(t)) + d(V(v), V0(v)) + NCE(T(t), V0(v)) + NCE(V(v), T0(t)) | all rows  | 0.1    |
    | `safe`      | the same for (t*, v*)                                                 | harmless  | 0.1    |
    | `redirect`  | d(T(t*), T0(t)) + d(V(v*), V0(v))                                     | unsafe    | 0.1    |
    | `mixed`     | d(T(t*), T0(t)) or d(V(v*), V0(v)), for the item that is unsafe       | one is    | 0.25   |
    | `coherence` | NCE(T(t*), V(v*))                                                     | unsafe    | 0.25   |

    Each is a mean over the rows that it concerns, and 0 for a batch without any.

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
    reads_unsafe = True

    def terms(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds):
        text_safe, image_safe = (
            torch.zeros(len(embeds.safe_text), dtype=torch.bool, device=embeds.safe_text.device)
            if labels is None
            else labels.to(embeds.safe_text.device)
            for labels in (reference.unsafe_text_is_safe, reference.unsafe_image_is_safe)
        )
        harmless, unsafe = text_safe & image_safe, ~(text_safe | image_safe)
        text_mixed, image_mixed = ~text_safe & image_safe, text_safe & ~image_safe
        text, image = embeds.unsafe_text, embeds.unsafe_image

        def redirected(texts: Tensor, images: Tensor) -> Tensor:
            return _over(texts, cosine_distance, text, reference.safe_text) + _over(
                images, cosine_distance, image, reference.safe_image
            )

        def coherence() -> Tensor:
            return _over(unsafe, partial(contrastive, logit_scale=self.logit_scale), text, image)

        def preserved(rows: Tensor, *tensors: Tensor) -> Tensor:
            return _over(rows, self._preserved, *tensors)

        everything = torch.ones_like(harmless)
        return {
            "real": partial(
                preserved,
                everything,
                embeds.safe_text,
                embeds.safe_image,
                reference.safe_text,
                reference.safe_image,
            ),
            "safe": partial(preserved, harmless, text, image, reference.unsafe_text, reference.unsafe_image),
            "redirect": partial(redirected, unsafe, unsafe),
            "mixed": partial(redirected, text_mixed, image_mixed),
            "coherence": coherence,
        }

    def _preserved(self, text: Tensor, image: Tensor, text_before: Tensor, image_before: Tensor) -> Tensor:
        return (
            cosine_distance(text, text_before)
            + cosine_distance(image, image_before)
            + contrastive(text, image_before, self.logit_scale)
            + contrastive(image, text_before, self.logit_scale)
        )


def _over(rows: Tensor, value, *tensors: Tensor) -> Tensor:
    """A mean over some of B rows; 0, with a gradient, where there is none."""
    if rows.any():
        return value(*(tensor[rows] for tensor in tensors))
    return 0.0 * sum(tensor.sum() for tensor in tensors)
