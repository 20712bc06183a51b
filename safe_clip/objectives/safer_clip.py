"""The objective of SafeR-CLIP (AAAI 2026, arXiv 2511.16743), after a summary of the paper."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..items import MODALITIES, ItemBatch, Quadruplets, pairs, to
from .base import BatchTargets, Mean, Objective, cosine_distance, cosine_term, max_queries


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
    curriculum" come from a summary. Equal weights, the pair's image as target of unsafe images, cosine terms of
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
            raise UserError(f"safer_clip requires a first_share above 0 and up to 1, not {first_share!r}.")
        self.first_share = first_share

    def terms(self, embeds: Quadruplets, reference: BatchTargets) -> dict[str, Mean | Sequence[Mean]]:
        original = reference.items
        nearest = self._nearest(reference)
        near = dict(zip(MODALITIES, self._near(reference, nearest), strict=True))
        closeness = self._closeness(reference, nearest)
        share = self.first_share + (1 - self.first_share) * reference.progress

        def easy(name: str, losses: Callable[..., Tensor], target: str, other: str | None = None) -> Mean:
            """Over the rows whose targets are nearest.

            Args:
                name: of the term.
                losses: of the trained items, their targets and what they are led away from.
                target: the modality of the targets.
                other: the unsafe items that they are led away from.
            """
            trained, row = self.NEEDS[name][0], embeds.layout.rows(*self.NEEDS[name])
            at = to(row, closeness)
            tensors = [embeds[trained].take(row).embeds, near[target][at]]
            tensors += [] if other is None else [original[other].take(row).embeds]

            def term(positions: Tensor) -> Tensor:
                count = max(1, round(share * len(row)))
                chosen = torch.zeros(len(row), device=closeness.device)
                chosen[closeness[at].topk(count).indices] = len(row) / count  # so that the mean is over them alone
                return chosen[positions] * losses(*(tensor[positions] for tensor in tensors))

            return Mean(row, term)

        return {
            "preservation_text_cosine": cosine_term(embeds.safe_text, original.safe_text),
            "preservation_image_cosine": cosine_term(embeds.safe_image, original.safe_image),
            "redirection_text_cosine": easy("redirection_text_cosine", cosine_distance, "text"),
            "redirection_image_cosine": easy("redirection_image_cosine", cosine_distance, "image"),
            "redirection_text_relative": easy("redirection_text_relative", relative, "image", "unsafe_image"),
            "redirection_image_relative": easy("redirection_image_relative", relative, "text", "unsafe_text"),
        }

    def _nearest(self, reference: BatchTargets) -> tuple[Tensor, Tensor] | None:
        """For each unsafe caption the cosine and the index of the nearest caption of a safe pair, if there is any."""
        queries, captions = reference.items.unsafe_text, self._pool(reference)["text"]
        if not len(queries) or not len(captions):
            return None
        found = [(few @ captions.embeds.T).max(dim=1) for few in queries.embeds.split(max_queries(len(captions)))]
        cosines, places = zip(*found, strict=True)
        return torch.cat(cosines), torch.cat(places)

    def _pool(self, reference: BatchTargets) -> Mapping[str, ItemBatch]:
        """The pairs among which targets are looked for, by modality."""
        return reference.anchors or {"text": reference.items.safe_text, "image": reference.items.safe_image}

    def _closeness(self, reference: BatchTargets, nearest: tuple[Tensor, Tensor] | None) -> Tensor:
        """Of each of B rows, the cosine of its unsafe item to its target; -1 where it has none."""
        items = reference.items
        closeness = torch.full((len(items),), -1.0, device=items.device)
        unsafe, safe = items.unsafe_image, items.safe_image
        first, second = (to(index, closeness) for index in pairs(unsafe, safe))
        cosines = (unsafe.embeds[first] * safe.embeds[second]).sum(dim=1)
        closeness = closeness.index_copy(0, to(unsafe.row, closeness)[first], cosines)
        if nearest is None:
            return closeness
        return closeness.index_copy(0, to(items.unsafe_text.row, closeness), nearest[0])

    def _near(self, reference: BatchTargets, nearest: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The targets of B rows in each modality, B x dimension: their own safe items without an unsafe caption."""
        items, pool = reference.items, self._pool(reference)
        text, image = items.safe_text.dense(len(items)), items.safe_image.dense(len(items))
        if nearest is None:
            return text, image
        found, row = nearest[1], to(items.unsafe_text.row, text)
        text = text.index_copy(0, row, pool["text"].embeds[found])
        captions, images = pairs(pool["text"], pool["image"])
        if len(images):
            partner = torch.full((len(pool["text"]),), -1)
            partner[captions] = images  # of each caption, the image of its pair
            theirs = to(partner, text)[found]
            image = image.index_copy(
                0, row, torch.where((theirs >= 0)[:, None], pool["image"].embeds[theirs], image[row])
            )
        return text, image


def relative(queries: Tensor, target: Tensor, other: Tensor) -> Tensor:
    """`log(1 + exp(cos(query, other) - cos(query, target)))` of each row; in [0.12, 2.13]."""
    gap = F.cosine_similarity(queries, other, dim=-1) - F.cosine_similarity(queries, target, dim=-1)
    return F.softplus(gap)
