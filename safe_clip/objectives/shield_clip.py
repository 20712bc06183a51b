"""The objective of ShieldCLIP (2026, arXiv 2609.39688), after a summary of the paper."""

import torch
from torch import Tensor

from .base import Makeup, Objective, QuadrupletEmbeds, ReferenceEmbeds, Term, contrastive_term, cosine_term


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
        def over(items: tuple[str, ...], term: Term) -> Term:
            """A term over those of its rows that have some items; 0 where none has."""
            having = reference.makeup.having(*items)

            def among(rows: Tensor, positions: Tensor) -> Tensor:
                has = having[rows]
                mine = has[positions]
                values = torch.zeros(len(positions), device=rows.device)
                if mine.any():
                    theirs = (has.cumsum(dim=0) - 1)[positions[mine]]  # positions among the rows that have them
                    values[mine] = term(rows[has], theirs) * (len(rows) / has.sum())
                return values

            return among

        def cosine(trained: str, target: str) -> Term:
            needs = dict.fromkeys((trained, target))
            return over(tuple(needs), cosine_term(getattr(embeds, trained), getattr(reference, target)))

        def nce(trained: str, target: str) -> Term:
            term = contrastive_term(getattr(embeds, trained), getattr(reference, target), self.logit_scale)
            return over((trained, target), term)

        def together(*parts: Term) -> Term:
            return lambda rows, positions: sum(part(rows, positions) for part in parts)

        preserved = together(
            cosine("safe_text", "safe_text"),
            cosine("safe_image", "safe_image"),
            nce("safe_text", "safe_image"),
            nce("safe_image", "safe_text"),
        )
        redirected = together(cosine("unsafe_text", "safe_text"), cosine("unsafe_image", "safe_image"))
        return {
            "real": preserved,
            "safe": preserved,
            "redirect": redirected,
            "mixed": redirected,
            "coherence": contrastive_term(embeds.unsafe_text, embeds.unsafe_image, self.logit_scale),
        }
