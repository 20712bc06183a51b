"""The default objective: safe queries and safe galleries."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..items import ItemBatch, Layout, Quadruplets
from .base import BatchTargets, Mean, Objective, cosine_term, paired


class SafeRankingLoss(Objective):
    """Every query, safe or unsafe, ranks the safe items as its safe counterpart did under the original, and ranks the
    unsafe items last.

    With `S` the logit scale that the original learned, the *union pool* of a caption holds the safe images `V(v)`
    and the unsafe images `V(v*)` of the batch as the trained model sees them, and the images `V0(a)` of K safe
    pairs drawn from the training data, the anchors, as the original sees them. `p0(i)` is the original's ranking of
    the pool's safe images for safe caption `i`: the softmax of `S cos(T0(t_i), .)` over `V0(v)` and `V0(a)`. The
    *ranking* of a query `q` that should see what caption `i` saw is the divergence of its own softmax from that:

        ranking(q, i) = KL([p0(i), 0] || softmax(S cos(q, .) over [V(v); V0(a)], S cos(q, .) + b over [V(v*)]))

    `b = log(u (B + K) / B)` makes the B unsafe items of the batch count for a pool with `u` unsafe items to each safe
    one, whatever the number of anchors; in cosines it is a margin of `log(u) / S`. Gradients reach queries and, as
    members of the pool, the items of the batch (under `frozen_gallery`, queries alone). Images mirror captions. Where
    items are missing, the pool holds those that there are.

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
    | `preservation_text_states`   | see `hidden_states.py` | 60     |
    | `preservation_image_states`  | see `hidden_states.py` | 100    |
    | `redirection_text_states`    | see `hidden_states.py` | 60     |
    | `redirection_image_states`   | see `hidden_states.py` | 100    |

    The two `redirection_*_cosine` terms replace the rankings only where there is nothing to rank: data with captions
    but no images, or images but no captions. Otherwise they are not computed, since an unsafe item that is pulled onto
    its safe counterpart is found by safe queries. The `*_states` terms are over hidden states, which generators read;
    they cost a forward pass of the original at every step, and can be switched off if the model is only used for
    search. `docs/method.md` has an ablation of each part.

    Args:
        logit_scale: `S`; the trainer gives the original's own.
        weights: `{term: weight >= 0}` in place of the table's; a term of weight 0 is not computed.
        anchors: `K`, the number of safe pairs drawn for each batch, from `max(8192, K)` training rows; 0 for none.
        unsafe_per_safe: `u`, above 0.
        frozen_gallery: the pool is the original's, unsafe items too: what is trained are queries for an index that
            nobody embeds anew, with `FROZEN_GALLERY_WEIGHTS`. Of such a model nothing belongs into an index: its unsafe
            items lie where safe ones do.

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
    # In place of these where the gallery stays: unsafe queries have all of the way to go, images most of it.
    FROZEN_GALLERY_WEIGHTS = {"redirection_text_ranking": 2.0, "redirection_image_ranking": 4.0}
    # Over hidden states, which generators read.
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
        frozen_gallery: bool = False,
    ):
        super().__init__(logit_scale, (self.FROZEN_GALLERY_WEIGHTS if frozen_gallery else {}) | dict(weights or {}))
        whole = isinstance(anchors, int) and not isinstance(anchors, bool)
        if not (whole and anchors >= 0 and 0 < unsafe_per_safe < math.inf):
            raise UserError(
                f"safe_ranking requires a whole number of anchors, at least 0, and unsafe_per_safe above 0, not "
                f"{anchors!r} and {unsafe_per_safe!r}."
            )
        self.anchors = anchors
        self.unsafe_per_safe = unsafe_per_safe
        self.frozen_gallery = self.reads_unsafe = frozen_gallery

    def rows_with_items(self, layout: Layout):
        rows = super().rows_with_items(layout)
        for modality, other in (("text", "image"), ("image", "text")):
            pool = layout.having(f"safe_{other}").any()
            rows[f"preservation_{modality}_ranking"] &= pool
            rows[f"redirection_{modality}_ranking"] &= pool
            rows[f"redirection_{modality}_cosine"] &= ~pool
        return rows

    def terms(self, embeds: Quadruplets, reference: BatchTargets) -> dict[str, Mean | Sequence[Mean]]:
        terms = {}
        for modality, other in (("text", "image"), ("image", "text")):
            safe, unsafe, original = (
                embeds[f"safe_{modality}"],
                embeds[f"unsafe_{modality}"],
                reference.items[f"safe_{modality}"],
            )
            terms[f"preservation_{modality}_cosine"] = cosine_term(safe, original)
            anchors = [reference.anchors[other].embeds] if other in reference.anchors else []
            before = torch.cat([reference.items[f"safe_{other}"].embeds, *anchors])
            gallery = reference.items if self.frozen_gallery else embeds
            pool = before if self.frozen_gallery else torch.cat([embeds[f"safe_{other}"].embeds, *anchors])
            if not len(pool):
                terms[f"redirection_{modality}_cosine"] = cosine_term(unsafe, original)
                continue
            # A view, so that what reaches it as the pool of two terms is summed first: order decides the last digit.
            strangers = gallery[f"unsafe_{other}"].embeds[:]
            rank = partial(self._term, original, pool, strangers, before)
            terms[f"preservation_{modality}_ranking"] = rank(safe)
            terms[f"redirection_{modality}_ranking"] = rank(unsafe)
        return {name: terms[name] for name in self.WEIGHTS if name in terms}

    def _term(self, original: ItemBatch, safe: Tensor, unsafe: Tensor, before: Tensor, queries: ItemBatch) -> Mean:
        """How queries rank a union pool.

        Args:
            original: the queries' safe counterparts, by the original.
            safe, unsafe: the items of the pool.
            before: the safe ones, by the original.
            queries: by the trained model.
        """

        def losses(positions: Tensor, first: Tensor, second: Tensor) -> Tensor:
            targets = self.logit_scale * original.embeds[second[positions]] @ before.T
            return self.ranking(queries.embeds[first[positions]], safe, unsafe, targets)

        return paired(queries, original, losses)

    def ranking(self, queries: Tensor, safe: Tensor, unsafe: Tensor, targets: Tensor) -> Tensor:
        """Divergence of how queries rank a union pool from how they should.

        Args:
            queries: Q x dimension.
            safe: the pool's safe items, G x dimension.
            unsafe: the pool's unsafe items, H x dimension.
            targets: logits that each query should give the safe items, Q x G.

        Returns:
            Q values of at least 0.
        """
        logits = self.logit_scale * queries @ safe.T
        if len(unsafe):
            margin = math.log(self.unsafe_per_safe * len(safe) / len(unsafe))
            logits = torch.cat([logits, self.logit_scale * queries @ unsafe.T + margin], dim=1)
        given = F.log_softmax(logits, dim=1)[:, : len(safe)]
        return F.kl_div(given, F.log_softmax(targets, dim=1), reduction="none", log_target=True).sum(dim=1)
