"""What objectives share: what they are given, how their terms are weighted and summed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..items import ITEMS, ItemBatch, Layout, Quadruplets, pairs, to
from ..ranges import AMOUNT, shown
from .batch import BatchTargets, as_batch
from .hidden_states import HIDDEN_STATE_NEEDS, nearest_state_distance, relative_error


@dataclass(frozen=True, eq=False)
class Mean:
    """A loss term, or one summand of it, as a mean over rows that can be computed a few rows at a time.

    Attributes:
        row: indices of the N rows of the batch that have the items the term needs; int64 on the CPU.
        losses: a function from P positions in `row` (int64, on the device) to the P losses of these rows. The negatives
            of a contrastive loss are all N rows, however few positions are given.
    """

    row: Tensor
    losses: Callable[[Tensor], Tensor]


MAX_LOGITS = 2**18  # the most entries of a matrix of logits, queries x candidates, where a batch is large
MIN_QUERIES = 16  # the fewest queries at once, even where that makes more logits


def max_queries(count: int) -> int:
    """Queries whose logits among so many are few enough to be held at once."""
    return max(MIN_QUERIES, MAX_LOGITS // count)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """`1 - cos` of each row of two B x dimension tensors; in [0, 2]."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


def paired(trained: ItemBatch, target: ItemBatch, losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Mean:
    """A mean over the N rows that have both of two items.

    Args:
        trained, target: the items.
        losses: of the positions of some of the N rows, and of the indices of all in the two batches of items.
    """
    first, second = pairs(trained, target)
    a, b = to(first, trained.embeds), to(second, target.embeds)
    return Mean(trained.row[first], lambda positions: losses(positions, a, b))


def cosine_term(trained: ItemBatch, target: ItemBatch) -> Mean:
    """The mean cosine distance of embeddings to their targets."""

    def losses(positions: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return cosine_distance(trained.embeds[first[positions]], target.embeds[second[positions]])

    return paired(trained, target, losses)


def contrastive(
    queries: Tensor, targets: Tensor, logit_scale: float, positions: Tensor, logit_bias: float | None = None
) -> Tensor:
    """The contrastive loss of B rows whose i-th query belongs to its i-th target: positions index them; at least 0.

    Symmetric InfoNCE, as CLIP is trained; or with a bias the sigmoid loss (Zhai et al., ICCV 2023, section 3.2), as
    SigLIP is.

    Returns:
        For each position, the mean of its query's and its target's loss: the cross-entropy over all rows, or the sum
        over all rows of what a sigmoid gives for each pair.
    """
    queries, targets = F.normalize(queries, dim=-1), F.normalize(targets, dim=-1)

    def loss(asked: Tensor, pool: Tensor) -> Tensor:
        logits = logit_scale * asked[positions] @ pool.T
        if logit_bias is None:
            return F.cross_entropy(logits, positions, reduction="none")
        belongs = torch.arange(len(pool), device=positions.device) == positions[:, None]
        return -F.logsigmoid(torch.where(belongs, 1, -1) * (logits + logit_bias)).sum(dim=1)

    return (loss(queries, targets) + loss(targets, queries)) / 2


def contrastive_term(
    trained: ItemBatch, target: ItemBatch, logit_scale: float, logit_bias: float | None = None
) -> Mean:
    """The contrastive loss of embeddings and their targets among the rows that have both."""

    def losses(positions: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return contrastive(trained.embeds[first], target.embeds[second], logit_scale, positions, logit_bias)

    return paired(trained, target, losses)


def hidden_state_terms(trained: Quadruplets, original: Quadruplets) -> dict[str, Mean]:
    """The terms over hidden states, which no objective needs to define; of items that have no hidden states, none.

    For images, the target of a patch is the hidden state of its safe counterpart at the same position. For captions,
    whose words move, the target of a token of an unsafe caption is the nearest hidden state of its safe counterpart.
    """
    terms = {}
    for name, items in HIDDEN_STATE_NEEDS.items():
        ours, theirs = trained[items[0]], original[items[-1]]
        if ours.hidden_states is None or theirs.hidden_states is None:
            continue
        distance = nearest_state_distance if name == "redirection_text_states" else relative_error
        layers = list(zip(ours.hidden_states, theirs.hidden_states, strict=True))
        terms[name] = paired(ours, theirs, partial(_mean_over_layers, distance, layers))
    return terms


def _mean_over_layers(
    distance: Callable[[Tensor, Tensor], Tensor],
    layers: Sequence[tuple[Tensor, Tensor]],
    positions: Tensor,
    first: Tensor,
    second: Tensor,
) -> Tensor:
    a, b = first[positions], second[positions]
    return torch.stack([distance(layer[a], before[b]) for layer, before in layers]).mean(0)


class Objective(nn.Module):
    """A weighted sum of named terms over the items of a batch, divided by the objective's `divisor`.

    A method is a subclass: its `WEIGHTS` name the terms, its `NEEDS` the items that a row needs for each, and its
    `terms` computes them. Every term is a mean over the rows that have its items. The terms over hidden states are the
    same for all objectives (`hidden_state_terms`), and are weighted and logged like any other.

    Args:
        logit_scale: factor before cosines in contrastive terms.
        weights: `{term: weight >= 0}` in place of the class's; a term of weight 0 is not computed.

    Attributes:
        logit_bias: what is added to scaled cosines in contrastive terms, which are then sigmoid losses, as of a SigLIP;
            `None` for those of a CLIP. Rankings and distances are the same with any.

    Raises:
        UserError: a weight names no term or is negative, or all are 0.
    """

    WEIGHTS: ClassVar[dict[str, float]]
    STATE_WEIGHTS: ClassVar[dict[str, float]] = dict.fromkeys(HIDDEN_STATE_NEEDS, 0.0)
    NEEDS: ClassVar[dict[str, tuple[str, ...]]]
    COHERENCE: ClassVar[tuple[str, ...]] = ()  # terms over unsafe items alone, which redirect nothing
    logit_bias: float | None = None
    # What the trainer has to provide in the `BatchTargets`.
    reads_unsafe: bool = False  # the original's embeddings of unsafe items
    anchors: int | None = 0  # safe pairs of the training data drawn for each batch; None for all of them

    def __init__(self, logit_scale: float = 100.0, weights: Mapping[str, float] | None = None):
        super().__init__()
        self.logit_scale = logit_scale
        known = self.WEIGHTS | self.STATE_WEIGHTS
        self.weights = known | check_weights(weights or {}, known)
        if sum(self.weights.values()) == 0:
            raise UserError("--loss_weights switches every term off; leave at least one above 0.")

    @property
    def hidden_state_terms(self) -> tuple[str, ...]:
        """The terms over hidden states that have a weight."""
        return tuple(name for name in HIDDEN_STATE_NEEDS if self.weights.get(name))

    @property
    def divisor(self) -> float:
        """What the weighted sum of all terms, those over hidden states included, is divided by."""
        return 1.0

    def terms(self, embeds: Quadruplets, reference: BatchTargets) -> dict[str, Mean | Sequence[Mean]]:
        """The terms of a batch, each a mean, or several whose sum it is.

        Args:
            embeds: by the trained model, in float32.
            reference: by the original, likewise.
        """
        raise NotImplementedError

    def rows_with_items(self, layout: Layout) -> dict[str, np.ndarray]:
        """Which rows of a whole data set have the items of each term: booleans by its name."""
        return {name: layout.having(*items) for name, items in self.NEEDS.items()}

    @property
    def redirecting(self) -> list[str]:
        """The weighted terms that redirect: those that a quadruplet loses if its unsafe items are removed."""
        one = Layout.whole(1).present
        captions, images = one & [True, True, False, False], one & [False, False, True, True]
        found = []
        for present in (one, captions, images):  # some terms are only computed for data of a single modality
            layout = Layout.of(present)
            whole, without = self.term_counts(layout), self.term_counts(_without_unsafe(layout))
            found += [name for name, count in whole.items() if count > without[name]]
        return [name for name in self.weights if name in found and name not in self.COHERENCE]

    def term_counts(self, layout: Layout) -> dict[str, int]:
        """How many rows of a whole data set have the items of each term that has a weight."""
        rows = self.rows_with_items(layout) | {n: layout.having(*items) for n, items in HIDDEN_STATE_NEEDS.items()}
        return {name: int(having.sum()) for name, having in rows.items() if self.weights[name]}

    def term_rows(self, layout: Layout) -> dict[str, int]:
        """As `term_counts`, but checks that something is redirected.

        Raises:
            UserError: the objective has weighted redirection terms, and no row has the items of any of them.
        """
        found, without = self.term_counts(layout), self.term_counts(_without_unsafe(layout))
        redirecting = self.redirecting
        if redirecting and all(found[name] == without[name] for name in redirecting):
            raise self.redirects_nothing()
        return found

    def redirects_nothing(self) -> UserError:
        """The error for data of which no row has the items of any term that redirects."""
        whole = self.term_counts(Layout.whole(1))
        named = ", ".join(name for name in self.redirecting if whole[name])
        return UserError(
            f"no training row has what {named} need, so nothing would be made safe: they require unsafe items beside "
            "safe ones. Name their columns with --column_mapping, or, where labels call all items safe, mend these."
        )

    def terms_without_rows(self, layout: Layout) -> list[str]:
        """The weighted terms that a complete quadruplet has the items of, but no row of this data set does."""
        found, whole = self.term_counts(layout), self.term_counts(Layout.whole(1))
        return [name for name, rows in found.items() if not rows and whole[name]]

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss of the terms that have a weight: their weighted sum by the `divisor`."""
        return sum((self.weights[name] * term for name, term in terms.items()), start=torch.zeros(())) / self.divisor

    def means(self, embeds: Quadruplets, reference: BatchTargets) -> dict[str, list[Mean]]:
        """The terms of a batch that have a weight and rows: for each the means whose sum it is.

        Args:
            embeds: by the trained model; with hidden states, where terms over these are to be among them.
            reference: by the original, likewise.
        """
        embeds, original = embeds.map(Tensor.float), reference.items.map(Tensor.float)
        lacking = (item for item in ("unsafe_text", "unsafe_image") if len(embeds[item]) and not len(original[item]))
        if self.reads_unsafe and any(lacking):
            raise UserError(f"{type(self).__name__} requires the original model's embeddings of unsafe items too.")
        with _exact(embeds.device):
            terms = self.terms(embeds, replace(reference, items=original)) | hidden_state_terms(embeds, original)
        return self.weighted(terms)

    def weighted(self, terms: Mapping[str, Mean | Sequence[Mean]]) -> dict[str, list[Mean]]:
        """Those of some terms that have a weight and rows."""
        parts = {name: [term] if isinstance(term, Mean) else term for name, term in terms.items() if self.weights[name]}
        parts = {name: [mean for mean in means if len(mean.row)] for name, means in parts.items()}
        return {name: means for name, means in parts.items() if means}

    def chunks(
        self,
        means: Mapping[str, Sequence[Mean]],
        device: torch.device,
        process: int = 0,
        processes: int = 1,
        at_once: int | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """The values of terms, few rows at a time.

        Args:
            means: as `means` gives them.
            device: of their tensors.
            process, processes: index of this process and number of processes that have the same batch; each computes
                the losses of its share of the rows.
            at_once: rows per chunk, which bounds the memory for logits; by default `max_queries(N)`.

        Yields:
            A term's name and a scalar in float32; all of a term's, by all processes, sum to its value.
        """
        for name, parts in means.items():
            for mean in parts:
                count = len(mean.row)
                positions = torch.arange(count, device=device)[process::processes]
                for few in positions.split(at_once or max_queries(count)):
                    with _exact(device):
                        value = mean.losses(few).sum() / count
                    yield name, value

    def forward(self, *embeds: Any, reference: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a batch.

        Args:
            *embeds: the trained model's embeddings of safe captions, unsafe captions, safe images and unsafe images,
                B x dimension each, of any length, `None` or rows of NaN for what is missing; or `Quadruplets`.
            reference: the original's embeddings of safe captions and safe images, or of all four; by default the
                trained model's own, detached, which are the same until training moves it. Of `Quadruplets`, a
                `BatchTargets`.

        Returns:
            The scalar loss and the unweighted value of each term that has a weight and rows, in float32.

        Raises:
            UserError: they are no such embeddings.
        """
        loss, terms, _ = self.of_batch(*as_batch(embeds, reference))
        return loss, terms

    def of_batch(
        self, embeds: Quadruplets, reference: BatchTargets
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
        """The loss of a batch, the values of its terms, and how many rows each is over."""
        means = self.means(embeds, reference)
        values: dict[str, Tensor] = {}
        for name, value in self.chunks(means, embeds.device, at_once=max(1, len(embeds))):
            values[name] = values[name] + value if name in values else value
        if values:
            return self.total(values), values, row_counts(means)
        # Every process takes part in every step, whatever it was dealt.
        return 0.0 * sum((items.embeds.float().sum() for items in embeds), start=torch.zeros(())), values, {}


def row_counts(means: Mapping[str, Sequence[Mean]]) -> dict[str, int]:
    """How many rows each term is over."""
    return {name: len(torch.cat([mean.row for mean in parts]).unique()) for name, parts in means.items()}


def _without_unsafe(layout: Layout) -> Layout:
    safe = np.array([not item.startswith("unsafe") for item in ITEMS])
    return replace(layout, present=layout.present & safe)


def _exact(device: torch.device) -> torch.autocast:
    """Switches autocast off, since logits of up to 100 lose too much precision in half precision."""
    return torch.autocast(device.type, enabled=False)


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
