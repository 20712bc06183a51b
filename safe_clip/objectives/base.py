"""What objectives share: what they are given, how their terms are weighted and summed."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..ranges import AMOUNT, shown
from .batch import ITEMS, Makeup, QuadrupletEmbeds, ReferenceEmbeds, as_batch

# Of every objective: terms over states, which generators read, and what a row needs to have part in them (states.py).
STATE_NEEDS = {
    "preservation_text_states": ("safe_text",),
    "preservation_image_states": ("safe_image",),
    "redirection_text_states": ("unsafe_text", "safe_text"),
    "redirection_image_states": ("unsafe_image", "safe_image"),
}


def state_feeds(makeup: Makeup) -> dict[str, Tensor]:
    """Which of B rows have part in each term over states: B booleans."""
    return {name: makeup.having(*items) for name, items in STATE_NEEDS.items()}


# `term(rows, positions)` gives a loss for each position, whose mean is the term.
# `rows`: indices in the batch of all rows that feed the term.
# `positions`: indices into `rows` of those whose losses are asked for; contrasts are among all of `rows` still.
Term = Callable[[Tensor, Tensor], Tensor]

MAX_LOGITS = 2**18  # the most entries of a matrix of logits, queries x candidates, where a batch is large
MIN_QUERIES = 16  # the fewest queries at once, even where that makes more logits


def max_queries(count: int) -> int:
    """Queries whose logits among so many are few enough to be held at once."""
    return max(MIN_QUERIES, MAX_LOGITS // count)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """`1 - cos` of each row of two B x dimension tensors; in [0, 2]."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


def cosine_term(trained: Tensor, target: Tensor) -> Term:
    """The mean cosine distance of embeddings to their targets."""
    return lambda rows, positions: cosine_distance(trained[rows[positions]], target[rows[positions]])


def contrastive(queries: Tensor, targets: Tensor, logit_scale: float, positions: Tensor) -> Tensor:
    """Symmetric InfoNCE over B rows whose i-th query belongs to its i-th target: positions index them; at least 0.

    Returns:
        For each position, the mean of its query's and its target's cross-entropy over all rows.
    """
    queries, targets = F.normalize(queries, dim=-1), F.normalize(targets, dim=-1)

    def entropy(asked: Tensor, pool: Tensor) -> Tensor:
        return F.cross_entropy(logit_scale * asked[positions] @ pool.T, positions, reduction="none")

    return (entropy(queries, targets) + entropy(targets, queries)) / 2


def contrastive_term(trained: Tensor, target: Tensor, logit_scale: float) -> Term:
    """Symmetric InfoNCE of embeddings and their targets among the rows that feed the term."""
    return lambda rows, positions: contrastive(trained[rows], target[rows], logit_scale, positions)


class Objective(nn.Module):
    """A weighted sum of named terms over the embeddings of a batch, divided by the objective's `divisor`.

    A method is a subclass: its `WEIGHTS` name the terms, its `NEEDS` the items without which a row has no part in a
    term, and its `terms` gives a function for each. Every term is a mean over the rows of the batch that have part in
    it. The terms over states, which are the same for all (`STATE_NEEDS`), have weights too and are the trainer's to
    compute and to add, since they are of no embeddings.

    Args:
        logit_scale: factor before cosines in contrastive terms.
        weights: `{term: weight >= 0}` in place of the class's; a term of weight 0 is not computed.

    Raises:
        UserError: a weight names no term or is negative, or all are 0.
    """

    WEIGHTS: ClassVar[dict[str, float]]
    STATE_WEIGHTS: ClassVar[dict[str, float]] = dict.fromkeys(STATE_NEEDS, 0.0)
    NEEDS: ClassVar[dict[str, tuple[str, ...]]]
    COHERENCE: ClassVar[tuple[str, ...]] = ()  # terms over unsafe items alone, which redirect nothing
    # What the trainer has to bring along.
    reads_unsafe: ClassVar[bool] = False  # the original's embeddings of unsafe items
    anchors: int | None = 0  # safe pairs of the training data drawn for each batch; None for all of them

    def __init__(self, logit_scale: float = 100.0, weights: Mapping[str, float] | None = None):
        super().__init__()
        self.logit_scale = logit_scale
        known = self.WEIGHTS | self.STATE_WEIGHTS
        self.weights = known | check_weights(weights or {}, known)
        if sum(self.weights.values()) == 0:
            raise UserError("--loss_weights switches every term off; leave at least one above 0.")

    @property
    def state_weights(self) -> dict[str, float]:
        """What the terms over states that have a weight are multiplied by in the loss, on the scale of all others."""
        return {name: weight / self.divisor for name in STATE_NEEDS if (weight := self.weights.get(name))}

    @property
    def divisor(self) -> float:
        """What the weighted sum of all terms, those over states included, is divided by."""
        return 1.0

    def terms(self, embeds: QuadrupletEmbeds, reference: ReferenceEmbeds) -> dict[str, Term]:
        """A function for each term, called where the term has a weight and rows that feed it."""
        raise NotImplementedError

    def feeds(self, makeup: Makeup, reference: ReferenceEmbeds | None = None) -> dict[str, Tensor]:
        """Which of B rows have part in each term.

        Args:
            makeup: what the rows are made of.
            reference: what else is known of a batch; without it, rows are those of all the data.

        Returns:
            B booleans for each term.
        """
        return {name: makeup.having(*items) for name, items in self.NEEDS.items()}

    @property
    def redirecting(self) -> list[str]:
        """The terms with a weight that make something safe: in which no row without unsafe items has part."""
        whole = Makeup.whole(3)
        present = whole.present.clone()
        present[1, 2:] = present[2, :2] = False  # some terms stand in where there is one modality
        found = [self._counts(Makeup.whole(1)._replace(present=row[None])) for row in present]
        without = [self._counts(_without_unsafe(Makeup.whole(1)._replace(present=row[None]))) for row in present]
        return [
            name
            for name in found[0]
            if name not in self.COHERENCE and any(a[name] > b[name] for a, b in zip(found, without, strict=True))
        ]

    def _counts(self, makeup: Makeup) -> dict[str, int]:
        feeds = self.feeds(makeup) | state_feeds(makeup)
        return {name: int(rows.sum()) for name, rows in feeds.items() if self.weights[name]}

    def term_rows(self, makeup: Makeup) -> dict[str, int]:
        """How many rows of all the data feed each term that has a weight.

        Raises:
            UserError: none feeds any that redirects, though some term with a weight would.
        """
        found, without = self._counts(makeup), self._counts(_without_unsafe(makeup))
        redirecting = self.redirecting
        if redirecting and all(found[name] == without[name] for name in redirecting):
            raise self.redirects_nothing()
        return found

    def redirects_nothing(self) -> UserError:
        """The error for data of which no row feeds any term that redirects."""
        whole = self._counts(Makeup.whole(1))
        named = ", ".join(name for name in self.redirecting if whole[name])
        return UserError(
            f"no training row has what {named} need, so nothing would be made safe: they require unsafe items beside "
            "safe ones. Name their columns with --column_mapping, or, where labels call all items safe, mend these."
        )

    def unfed(self, makeup: Makeup) -> list[str]:
        """The terms with a weight that whole rows would feed, but no row of all the data does."""
        found, whole = self._counts(makeup), self._counts(Makeup.whole(1))
        return [name for name, rows in found.items() if not rows and whole[name]]

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss of the terms that have a weight: their weighted sum by the `divisor`."""
        return sum(self.weights[name] * term for name, term in terms.items()) / self.divisor

    def pieces(
        self,
        embeds: QuadrupletEmbeds,
        reference: ReferenceEmbeds,
        process: int = 0,
        processes: int = 1,
        at_once: int | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """The terms that have a weight and rows that feed them, few rows at a time.

        Args:
            embeds: by the trained model.
            reference: by the original.
            process, processes: where several have the same batch, which of them this is: each takes its share of rows.
            at_once: rows of a piece, so that the logits of no more have to be held; by default `max_queries` them.

        Yields:
            A term's name and a scalar in float32; all of a term's, by all processes, sum to its value.
        """
        # Logits of up to 100 have no business in half precision.
        exact = partial(torch.autocast, embeds.safe_text.device.type, enabled=False)
        with exact():
            embeds = QuadrupletEmbeds(*map(_float32, embeds))
            reference = ReferenceEmbeds(*map(_float32, reference))
            if self.reads_unsafe and (reference.unsafe_text is None or reference.unsafe_image is None):
                raise UserError(f"{type(self).__name__} requires the original's embeddings of unsafe items too.")
            makeup = Makeup.of(embeds) if reference.makeup is None else reference.makeup
            feeds = self.feeds(makeup, reference)
            terms = self.terms(embeds, reference._replace(makeup=makeup))
        for name, term in terms.items():
            rows = feeds[name].nonzero().flatten()
            if not self.weights[name] or not len(rows):
                continue
            positions = torch.arange(len(rows), device=rows.device)[process::processes]
            for piece in positions.split(at_once or max_queries(len(rows))):
                with exact():
                    value = term(rows, piece).sum() / len(rows)
                yield name, value

    def forward(self, *embeds: Any, reference: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a batch.

        Args:
            *embeds: `QuadrupletEmbeds` and `ReferenceEmbeds`; or, in this order, the trained model's embeddings of safe
                captions, unsafe captions, safe images and unsafe images, B x dimension each, of any length, `None` or
                rows of NaN for what is missing.
            reference: in the second case, the original's embeddings: of safe captions and safe images, or of all four;
                by default the trained model's own, detached, which are the same until training moves it.

        Returns:
            The scalar loss and the unweighted value of each term that has a weight and rows that feed it, in float32.

        Raises:
            UserError: they are no such embeddings.
        """
        embeds, reference = as_batch(embeds, reference)
        values = dict(self.pieces(embeds, reference, at_once=len(embeds.safe_text)))
        if values:
            return self.total(values), values
        # Every process takes part in every step, whatever it was dealt.
        return 0.0 * sum(items.float().nansum() for items in embeds), values


def _without_unsafe(makeup: Makeup) -> Makeup:
    kept = torch.tensor([not item.startswith("unsafe") for item in ITEMS], device=makeup.present.device)
    return makeup._replace(present=makeup.present & kept)


def _float32(value):
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def check_weights(weights: Mapping[str, float], terms: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights as floats, or raises `UserError` for one that names no term or is negative."""
    for name, weight in weights.items():
        if name not in terms:
            raise UserError(f"--loss_weights names '{name}'; the terms are {', '.join(terms)}.")
        if AMOUNT.fault(weight):
            raise UserError(
                f"--loss_weights sets '{name}' to {shown(weight)}; a weight is a number of at least 0, and finite."
            )
    return {name: float(weight) for name, weight in weights.items()}
