"""The default objective: safe queries and safe galleries."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .base import Makeup, Objective, QuadrupletEmbeds, ReferenceEmbeds, Term, cosine_term


class SafeRankingLoss(Objective):
    """Every query, safe or unsafe, ranks the safe items as its safe counterpart did under the original, and ranks the
    unsafe items last.

    With `S` the logit scale that the original learned, the *union pool* of a caption holds the safe pictures `V(v)`
    and the unsafe pictures `V(v*)` of the batch as the trained model sees them, and the pictures `V0(a)` of K safe
    pairs drawn from the training data, the anchors, as the original sees them. `p0(i)` is the original's ranking of
    the pool's safe pictures for safe caption `i`: the softmax of `S cos(T0(t_i), .)` over `V0(v)` and `V0(a)`. The
    *ranking* of a query `q` that should see what caption `i` saw is the divergence of its own softmax from that:

        ranking(q, i) = KL([p0(i), 0] || softmax(S cos(q, .) over [V(v); V0(a)], S cos(q, .) + b over [V(v*)]))

    `b = log(u (B + K) / B)` makes the B unsafe items of the batch count for a pool with `u` unsafe items to each safe
    one, whatever the number of anchors; in cosines it is a margin of `log(u) / S`. Gradients reach queries and, as
    members of the pool, the items of the batch. Pictures mirror captions. Where items are missing, the pool holds those
    that there are.

    | term                         | value              | weight |
    |------------------------------|--------------------|--------|
    | `preservation_text_cosine`   | d(T(t), T0(t))     | 400    |
    | `preservation_image_cosine`  | d(V(v), V0(v))     | 400    |
    | `preservation_text_ranking`  | ranking(T(t), i)   | 2      |
    | `preservation_image_ranking` | ranking(V(v), i)   | 2      |
    | `redirection_text_ranking`   | ranking(T(t*), i)  | 1      |
    | `redirection_image_ranking`  | ranking(V(v*), i)  | 1      |
    | `redirection_text_cosine`    | d(T(t*), T0(t))    | 400    |
    | `redirection_image_cosine`   | d(V(v*), V0(v))    | 400    |
    | `preservation_text_states`   | see `states.py`    | 60     |
    | `preservation_image_states`  | see `states.py`    | 100    |
    | `redirection_text_states`    | see `states.py`    | 60     |
    | `redirection_image_states`   | see `states.py`    | 100    |

    The last two cosines stand in for rankings where there is nothing to rank: captions alone, without any picture, or
    pictures without any caption. Elsewhere nothing pulls an unsafe item to where its safe counterpart lies, where safe
    queries would find it. The terms over states are for generators, and cost a forward of the original at every step;
    for search alone they can be switched off. `docs/method.md` says what each part is good for.

    Args:
        logit_scale: `S`; the trainer gives the original's own.
        weights: `{term: weight >= 0}` in place of the table's; a term of weight 0 is not computed.
        anchors: `K`, safe pairs drawn for each batch, from 8,192 training rows or as many as that; 0 for the batch
            alone.
        unsafe_per_safe: `u`, above 0.

    Raises:
        UserError: a weight or setting is out of range.
    """

    WEIGHTS = {
        "preservation_text_cosine": 400.0,
        "preservation_image_cosine": 400.0,
        "preservation_text_ranking": 2.0,
        "preservation_image_ranking": 2.0,
        "redirection_text_ranking": 1.0,
        "redirection_image_ranking": 1.0,
        "redirection_text_cosine": 400.0,
        "redirection_image_cosine": 400.0,
    }
    # Over states, which generators read (states.py).
    STATE_WEIGHTS = {
        "preservation_text_states": 60.0,
        "preservation_image_states": 100.0,
        "redirection_text_states": 60.0,
        "redirection_image_states": 100.0,
    }
    NEEDS = {
        "preservation_text_cosine": ("safe_text",),
        "preservation_image_cosine": ("safe_image",),
        "preservation_text_ranking": ("safe_text",),
        "preservation_image_ranking": ("safe_image",),
        "redirection_text_ranking": ("unsafe_text", "safe_text"),
        "redirection_image_ranking": ("unsafe_image", "safe_image"),
        "redirection_text_cosine": ("unsafe_text", "safe_text"),
        "redirection_image_cosine": ("unsafe_image", "safe_image"),
    }

    def __init__(
        self,
        logit_scale: float = 100.0,
        weights: Mapping[str, float] | None = None,
        anchors: int = 2048,
        unsafe_per_safe: float = 16.0,
    ):
        super().__init__(logit_scale, weights)
        whole = isinstance(anchors, int) and not isinstance(anchors, bool)
        if not (whole and anchors >= 0 and 0 < unsafe_per_safe < math.inf):
            raise UserError(
                f"safe_ranking wants a whole number of anchors, at least 0, and unsafe_per_safe above 0, not "
                f"{anchors!r} and {unsafe_per_safe!r}."
            )
        self.anchors = anchors
        self.unsafe_per_safe = unsafe_per_safe

    def feeds(self, makeup: Makeup, reference: ReferenceEmbeds | None = None) -> dict[str, Tensor]:
        feeds = super().feeds(makeup, reference)
        for modality, other in (("text", "image"), ("image", "text")):
            anchors = reference and getattr(reference, f"anchor_{other}")
            pool = makeup.having(f"safe_{other}").any()
            if anchors is not None:
                pool = pool | ~anchors.isnan().all()
            feeds[f"preservation_{modality}_ranking"] &= pool
            feeds[f"redirection_{modality}_ranking"] &= pool
            feeds[f"redirection_{modality}_cosine"] &= ~pool
        return feeds

    def terms(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds):
        def ranking(modality: str, other: str) -> Callable[[Tensor], Term]:
            """For queries of a modality, which search the other one, their term."""
            there = reference.makeup.having(f"safe_{other}")
            before, safe = getattr(reference, f"safe_{other}")[there], getattr(embeds, f"safe_{other}")[there]
            anchors = getattr(reference, f"anchor_{other}")
            if anchors is not None:
                anchors = anchors[~anchors.isnan().any(dim=1)]
                before, safe = torch.cat([before, anchors]), torch.cat([safe, anchors])
            unsafe = getattr(embeds, f"unsafe_{other}")[reference.makeup.having(f"unsafe_{other}")]
            counterparts = getattr(reference, f"safe_{modality}")

            def term_of(queries: Tensor) -> Term:
                def term(rows: Tensor, positions: Tensor) -> Tensor:
                    asked = rows[positions]
                    wanted = self.logit_scale * counterparts[asked] @ before.T
                    return self.ranking(queries[asked], safe, unsafe, wanted)

                return term

            return term_of

        text, image = ranking("text", "image"), ranking("image", "text")
        return {
            "preservation_text_cosine": cosine_term(embeds.safe_text, reference.safe_text),
            "preservation_image_cosine": cosine_term(embeds.safe_image, reference.safe_image),
            "preservation_text_ranking": text(embeds.safe_text),
            "preservation_image_ranking": image(embeds.safe_image),
            "redirection_text_ranking": text(embeds.unsafe_text),
            "redirection_image_ranking": image(embeds.unsafe_image),
            "redirection_text_cosine": cosine_term(embeds.unsafe_text, reference.safe_text),
            "redirection_image_cosine": cosine_term(embeds.unsafe_image, reference.safe_image),
        }

    def ranking(self, queries: Tensor, safe: Tensor, unsafe: Tensor, wanted: Tensor) -> Tensor:
        """Divergence of how queries rank a union pool from how they should.

        Args:
            queries: Q x dimension.
            safe: the pool's safe items, G x dimension.
            unsafe: the pool's unsafe items, H x dimension.
            wanted: logits of the safe items for each query, Q x G.

        Returns:
            Q values of at least 0.
        """
        logits = self.logit_scale * queries @ safe.T
        if len(unsafe):
            margin = math.log(self.unsafe_per_safe * len(safe) / len(unsafe))
            logits = torch.cat([logits, self.logit_scale * queries @ unsafe.T + margin], dim=1)
        given = F.log_softmax(logits, dim=1)[:, : len(safe)]
        return F.kl_div(given, F.log_softmax(wanted, dim=1), reduction="none", log_target=True).sum(dim=1)
