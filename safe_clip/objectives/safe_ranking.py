"""The default objective: safe queries and safe galleries."""

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .base import Objective, QuadrupletEmbeds, ReferenceEmbeds, cosine_distance


class SafeRankingLoss(Objective):
    """Every query, safe or unsafe, ranks the safe items as its safe counterpart did under the original, and ranks the
    unsafe items last.

    With `S` the logit scale that the original learned, `G` the original's embeddings of safe pictures (those of the
    batch and of K more pairs of the training data, the anchors), `p0(i) = softmax(S T0(t_i) G^T)` the original's
    ranking for safe caption `i`, `V(v*)` the unsafe pictures of the batch as the trained model sees them, the *ranking*
    of a query `q` is the divergence of its softmax over the **union pool** `[G; V(v*)]` from `[p0(i), 0]`:

        ranking(q, i) = KL([p0(i), 0] || softmax([S q G^T; S q V(v*)^T + b])),    b = log(u |G| / B)

    `b` makes the B unsafe items of the batch count for a pool with `u` unsafe items to each safe one, whatever the
    number of anchors; in cosines it is a margin of `log(u) / S`. Gradients reach the query, and the unsafe items as
    members of the gallery. Pictures mirror captions.

    | term                         | value              | weight |
    |------------------------------|--------------------|--------|
    | `preservation_text_cosine`   | d(T(t), T0(t))     | 200    |
    | `preservation_image_cosine`  | d(V(v), V0(v))     | 200    |
    | `preservation_text_ranking`  | ranking(T(t), i)   | 1      |
    | `preservation_image_ranking` | ranking(V(v), i)   | 1      |
    | `redirection_text_ranking`   | ranking(T(t*), i)  | 1      |
    | `redirection_image_ranking`  | ranking(V(v*), i)  | 1      |

    Nothing pulls an unsafe item to where its safe counterpart lies, where safe queries would find it. `docs/method.md`
    says what each part is good for.

    Args:
        logit_scale: `S`; the trainer gives the original's own.
        weights: `{term: weight >= 0}` in place of the table's; a term of weight 0 is not computed.
        anchors: `K`, safe pairs drawn for each batch; 0 for the batch alone.
        unsafe_per_safe: `u`, above 0.
        soft_targets: with `False`, the quadruplet's own safe item takes all of `p0`, as in InfoNCE.

    Raises:
        UserError: a weight or setting is out of range.
    """

    WEIGHTS = {
        "preservation_text_cosine": 200.0,
        "preservation_image_cosine": 200.0,
        "preservation_text_ranking": 1.0,
        "preservation_image_ranking": 1.0,
        "redirection_text_ranking": 1.0,
        "redirection_image_ranking": 1.0,
    }

    def __init__(
        self,
        logit_scale: float = 100.0,
        weights: Mapping[str, float] | None = None,
        anchors: int = 2048,
        unsafe_per_safe: float = 8.0,
        soft_targets: bool = True,
    ):
        super().__init__(logit_scale, weights)
        if not (isinstance(anchors, int) and anchors >= 0 and unsafe_per_safe > 0):
            raise UserError(
                f"safe_ranking wants a whole number of anchors, at least 0, and unsafe_per_safe above 0, not "
                f"{anchors!r} and {unsafe_per_safe!r}."
            )
        self.anchors = anchors
        self.unsafe_per_safe = unsafe_per_safe
        self.soft_targets = soft_targets

    def terms(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds):
        images, texts = reference.safe_image, reference.safe_text
        if reference.anchor_text is not None:
            images = torch.cat([images, reference.anchor_image])
            texts = torch.cat([texts, reference.anchor_text])
        text = partial(self.ranking, before=reference.safe_text, safe=images, unsafe=embeds.unsafe_image)
        image = partial(self.ranking, before=reference.safe_image, safe=texts, unsafe=embeds.unsafe_text)
        return {
            "preservation_text_cosine": partial(cosine_distance, embeds.safe_text, reference.safe_text),
            "preservation_image_cosine": partial(cosine_distance, embeds.safe_image, reference.safe_image),
            "preservation_text_ranking": partial(text, embeds.safe_text),
            "preservation_image_ranking": partial(image, embeds.safe_image),
            "redirection_text_ranking": partial(text, embeds.unsafe_text),
            "redirection_image_ranking": partial(image, embeds.unsafe_image),
        }

    def ranking(self, queries: Tensor, before: Tensor, safe: Tensor, unsafe: Tensor) -> Tensor:
        """Mean divergence of how queries rank a union pool from how their safe counterparts ranked its safe items.

        Args:
            queries: Q x dimension, trained.
            before: the original's embeddings of their safe counterparts, Q x dimension.
            safe: the original's embeddings of the safe items, G x dimension; the i-th belongs to the i-th query.
            unsafe: the unsafe items, B x dimension, trained.

        Returns:
            A scalar of at least 0.
        """
        margin = math.log(self.unsafe_per_safe * len(safe) / len(unsafe))
        logits = torch.cat([self.logit_scale * queries @ safe.T, self.logit_scale * queries @ unsafe.T + margin], dim=1)
        given = F.log_softmax(logits, dim=1)[:, : len(safe)]
        if not self.soft_targets:
            return -given.diagonal().mean()
        wanted = F.log_softmax(self.logit_scale * before @ safe.T, dim=1)
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True)
