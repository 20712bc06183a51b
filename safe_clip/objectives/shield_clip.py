"""The objective of ShieldCLIP (2026, arXiv 2609.39688), after a summary of the paper."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from .base import Makeup, Objective, QuadrupletEmbeds, ReferenceEmbeds, contrastive, cosine_distance


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

    def feeds(self, makeup: Makeup, reference: ReferenceEmbeds | None = None) -> dict[str, Tensor]:
        safe = makeup.having("safe_text") | makeup.having("safe_image")
        redirected = makeup.having("unsafe_text", "safe_text") | makeup.having("unsafe_image", "safe_image")
        return {
            "real": safe & ~makeup.generated,
            "safe": safe & makeup.generated,
            "redirect": redirected & ~makeup.mixed,
            "mixed": redirected & makeup.mixed,
            "coherence": makeup.having("unsafe_text", "unsafe_image"),
        }

    def terms(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds):
        nce = partial(contrastive, logit_scale=self.logit_scale)

        def mean(rows: Tensor, items: tuple[str, ...], value: Callable, *tensors: Tensor) -> Tensor | float:
            """A mean over those rows that have some items; 0 where none has."""
            rows = rows[reference.makeup.having(*items)[rows]]
            return value(*(tensor[rows] for tensor in tensors)) if len(rows) else 0.0

        def preserved(rows: Tensor) -> Tensor:
            text, image = ("safe_text",), ("safe_image",)
            return (
                mean(rows, text, cosine_distance, embeds.safe_text, reference.safe_text)
                + mean(rows, image, cosine_distance, embeds.safe_image, reference.safe_image)
                + mean(rows, text + image, nce, embeds.safe_text, reference.safe_image)
                + mean(rows, text + image, nce, embeds.safe_image, reference.safe_text)
            )

        def redirected(rows: Tensor) -> Tensor:
            text, image = ("unsafe_text", "safe_text"), ("unsafe_image", "safe_image")
            return mean(rows, text, cosine_distance, embeds.unsafe_text, reference.safe_text) + mean(
                rows, image, cosine_distance, embeds.unsafe_image, reference.safe_image
            )

        return {
            "real": preserved,
            "safe": preserved,
            "redirect": redirected,
            "mixed": redirected,
            "coherence": lambda rows: nce(embeds.unsafe_text[rows], embeds.unsafe_image[rows]),
        }
