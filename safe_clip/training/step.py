"""The loss of a step: of one batch on one device, or of many chunks on many, as if they were one batch."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn

from ..data.collator import QuadrupletCollator, model_inputs
from ..errors import UserError
from ..items import ITEMS, ItemBatch, Layout, Quadruplets
from ..objectives.base import Objective, hidden_state_terms, row_counts
from .targets import Targets

CACHED = "cached"  # key of a chunk's inputs that holds its `CachedGradient`


@dataclass(frozen=True)
class CachedGradient:
    """Result, for one chunk, of the first pass over the chunks of a step (GradCache).

    Attributes:
        loss: loss of the whole step.
        gradients: gradients of the loss with respect to the chunk's embeddings, in the order of `ITEMS`.
        rows: for each term, the number of rows of the whole step that it is a mean over.
        chunks: number of chunks of the step.
        random_state: random state before the chunk's forward pass, so that the second pass draws the same dropout.
    """

    loss: Tensor
    gradients: list[Tensor]
    rows: dict[str, int]
    chunks: int
    random_state: tuple[Tensor, Tensor | None]


class ContrastiveStep:
    """The objective's loss over all quadruplets of an optimizer step, for whatever trains a CLIP.

    Where processes share a step, the embeddings of all are gathered; each process computes the loss of its share of the
    rows and its gradient with respect to all embeddings; gradients are summed over processes, and each keeps those of
    its own rows. Where a step has several chunks, a first pass embeds all of them under `no_grad` and computes the
    gradient with respect to the embeddings, and a second one embeds each chunk again and backpropagates that gradient
    (GradCache, Gao et al., 2021, arXiv 2101.06983). Either way the gradient with respect to the weights is that of the
    whole step in one batch on one device.

    Args:
        objective: what is minimised.
        targets: what its terms compare a batch with.
        accelerator: for the device, the precision and the other processes.
        not_finite: makes the error for what is not a finite number, such as `"gradient"`.

    Attributes:
        trained: terms that some row of training had the items of.
    """

    def __init__(
        self,
        objective: Objective,
        targets: Targets,
        accelerator: Accelerator,
        not_finite: Callable[[str], Exception] = lambda what: UserError(f"the {what} is not a finite number."),
    ):
        self.objective, self.targets, self.accelerator = objective, targets, accelerator
        self.not_finite = not_finite
        self.trained: set[str] = set()
        self._losses = []  # since the last step
        # Of each term, the sum over rows and their number.
        self._term_sums: dict[str, dict[str, Tensor]] = {"train": defaultdict(float), "eval": defaultdict(float)}

    def chunks(
        self, model: nn.Module, batches: Iterator, count: int, progress: float = 1.0, reader: "Reader | None" = None
    ) -> "Chunks":
        """The chunks of an optimizer step that share one contrastive batch, each to be passed to `loss`.

        Args:
            model: in training, through whatever wraps it.
            batches: of the collator, on the device.
            count: how many of them make the step.
            progress: share of training that is done.
            reader: reads a chunk again; by default it is kept in memory.
        """
        return Chunks(self._chunks(model, batches, count, progress, reader or Reader()), count)

    def _chunks(
        self, model: nn.Module, batches: Iterator, count: int, progress: float, reader: "Reader"
    ) -> Iterator[dict[str, Any]]:
        """Runs the first pass over the chunks of a step, then yields each chunk with its `CachedGradient`."""
        model.train()
        kept, states, embeds, targets = [], [], [], []
        for _ in range(count):
            inputs = next(batches)
            states.append(_random_state(self.accelerator.device))
            with torch.no_grad():
                embeds.append(self.embed(model, inputs))
            targets.append(self.targets.of(inputs, training=True))
            kept.append(reader.keep(inputs))
            del inputs
        loss, gradients, rows = self._contrast(embeds, targets, progress)
        sizes = zip(*([len(items) for items in part] for part in embeds), strict=True)
        parts = zip(
            *(column.split(size) for column, size in zip(gradients, map(list, sizes), strict=True)), strict=True
        )
        for each, state, part in zip(kept, states, parts, strict=True):
            cached = CachedGradient(loss, list(part), rows, count, state)
            yield reader.again(each) | {CACHED: cached}

    def loss(self, model: nn.Module, inputs: dict[str, Any], progress: float = 1.0) -> tuple[Tensor, Quadruplets]:
        """The objective's loss of a batch, or of the whole step that it is a chunk of, and the batch's embeddings.

        Its terms are added to the means that `pop_term_means` gives, of training or evaluation as the model's mode is.

        Args:
            model: through whatever wraps it.
            inputs: of the collator, on the device, or one of `chunks`.
            progress: share of training that is done.

        Raises:
            UserError: the loss is not finite.
        """
        cached: CachedGradient | None = inputs.pop(CACHED, None)
        processes = self.accelerator.num_processes
        if cached is None and not (model.training and processes > 1):
            reference = self.targets(inputs, model.training, progress)
            embeds = self.embed(model, inputs, hidden_states=True)
            loss, terms, rows = self.objective.of_batch(embeds, reference)
            sums = {name: (value, rows[name]) for name, value in terms.items()}
            self._note("train" if model.training else "eval", loss, sums)
            return loss, embeds
        if cached is not None:
            with _replayed(cached.random_state, self.accelerator.device):
                embeds = self.embed(model, inputs, hidden_states=True)
            loss, gradients, rows, chunks = cached.loss, cached.gradients, cached.rows, cached.chunks
        else:
            targets = self.targets.of(inputs, training=True)
            embeds = self.embed(model, inputs, hidden_states=True)
            loss, gradients, rows = self._contrast([embeds], [targets], progress)
            chunks = 1
        loss = self._loss_with(loss, gradients, embeds, chunks)
        if self.objective.hidden_state_terms:
            loss = loss + self._hidden_state_loss(embeds, inputs, rows) * (chunks * processes)
        return loss, embeds

    def embed(self, model: nn.Module, inputs: dict[str, Any], hidden_states: bool = False) -> Quadruplets:
        """The items of a batch, embedded by the trained model in one forward, through whatever wraps it.

        Args:
            model: the trained model.
            inputs: of the collator.
            hidden_states: with those of the terms that have a weight, where there are any.
        """
        hidden_states = hidden_states and bool(self.objective.hidden_state_terms)
        options = {"output_hidden_states": True} if hidden_states else {}
        output = model(**model_inputs(inputs), **options)
        layers = self.targets.family.hidden_states(output) if hidden_states else None
        return Quadruplets.of_sides(output.text_embeds, output.image_embeds, inputs["layout"], layers)

    def _hidden_state_loss(self, embeds: Quadruplets, inputs: dict[str, Any], rows: dict[str, int]) -> Tensor:
        """A chunk's share of the step's hidden-state terms, which need no first pass as each row has a loss of its own.

        Args:
            embeds: the chunk's items by the trained model, with hidden states.
            inputs: what they are of.
            rows: of the whole step, how many each term is over.
        """
        objective = self.objective
        means = objective.weighted(hidden_state_terms(embeds, self.targets.hidden_states(inputs)))
        terms, sums = {}, {}
        for name, value in objective.chunks(means, embeds.device, at_once=max(1, len(embeds))):
            mine = len(means[name][0].row)
            terms[name], sums[name] = value * (mine / rows[name]), (value, mine)
        loss = objective.total(terms) if terms else torch.zeros((), device=self.accelerator.device)
        self._note("train", loss, sums)
        return loss

    def _contrast(
        self, embeds: list[Quadruplets], targets: list[Quadruplets], progress: float
    ) -> tuple[Tensor, list[Tensor], dict[str, int]]:
        """The loss over the rows of all chunks and processes, its gradients with respect to this process's embeddings
        (of its chunks one after the other, in the order of `ITEMS`), and the number of rows that
        each term is a mean over.

        Args:
            embeds: of this process's chunks.
            targets: the original's embeddings of the same items.
            progress: share of training that is done.
        """
        accelerator = self.accelerator
        leaves, target = (
            Quadruplets.join(parts).map(lambda embeds: embeds.detach().float()) for parts in (embeds, targets)
        )
        sizes = [len(items) for items in leaves]
        starts = [0] * len(sizes)
        if accelerator.num_processes > 1:
            (leaves, target), starts = gathered((leaves, target), accelerator)
        leaves = leaves.map(Tensor.requires_grad_)
        reference = self.targets.complete(target, training=True, progress=progress)
        loss, terms = torch.zeros((), device=accelerator.device), {}
        with torch.enable_grad():
            means = self.objective.means(leaves, reference)
            shares = self.objective.chunks(means, leaves.device, accelerator.process_index, accelerator.num_processes)
            for name, value in shares:  # backward at once, so that the logits of few rows are held
                weighted = self.objective.total({name: value})
                weighted.backward(retain_graph=True)  # of what the chunks have in common
                loss, terms[name] = loss + weighted.detach(), terms.get(name, 0) + value.detach()
                del value, weighted
        counts = row_counts(means)
        # Each process has its share of the values, and all of the rows.
        share = 1 / accelerator.num_processes
        self._note("train", loss, {name: (value / share, counts[name] * share) for name, value in terms.items()})
        gradients = [torch.zeros_like(each.embeds) if each.embeds.grad is None else each.embeds.grad for each in leaves]
        if accelerator.num_processes > 1:
            loss, gradients = accelerator.reduce(loss), [accelerator.reduce(gradient) for gradient in gradients]
        gradients = [
            gradient[start : start + size] for gradient, start, size in zip(gradients, starts, sizes, strict=True)
        ]
        return loss, gradients, self.objective.term_counts(leaves.layout)

    def _loss_with(self, loss: Tensor, gradients: list[Tensor], embeds: Quadruplets, chunks: int = 1) -> Tensor:
        """A scalar that has the value of `loss` and whose backward pass sends `gradients` into the embeddings."""
        parts = [(gradient * items.embeds.float()).sum() for gradient, items in zip(gradients, embeds, strict=True)]
        # A trainer divides by the number of chunks, and gradients become a mean over processes.
        carrier = torch.stack(parts).sum() * self.accelerator.num_processes * chunks
        return loss + carrier - carrier.detach()

    def _note(self, mode: str, loss: Tensor, terms: dict[str, tuple[Tensor, float]]) -> None:
        """Accumulates the terms, given as pairs of their mean and number of rows, for the next log entry.

        Raises:
            UserError: the loss is not finite; checked only in evaluation and under a gradient scaler, since otherwise
                `check_gradient` detects it.
        """
        values = {name: value.detach() for name, (value, _) in terms.items()}
        self._losses = [*self._losses, (loss.detach(), values)] if mode == "train" else [(loss.detach(), values)]
        if mode == "eval" or self._scaler() is not None:
            self._check_losses()  # else `check_gradient` finds it, where the device is waited for anyway
        for name, weight in self.objective.weights.items():
            if weight:  # by every process for every term, even without rows: they are reduced one by one, in this order
                rows = terms[name][1] if name in terms else 0
                value = values.get(name, loss.new_zeros(()))
                self._term_sums[mode][name] += torch.stack([value * rows, torch.full_like(value, rows)])

    def pop_term_means(self, mode: str) -> dict[str, float]:
        """Means over the rows of all processes of each term since the last call; terms without any left out.

        Args:
            mode: `"train"` or `"eval"`.
        """
        sums = {name: self.accelerator.reduce(value) for name, value in self._term_sums[mode].items()}
        self._term_sums[mode].clear()
        if mode == "train":
            self.trained |= {name for name, (_, rows) in sums.items() if rows}
        return {name: (value / rows).item() for name, (value, rows) in sums.items() if rows}

    def forget_terms(self, mode: str) -> None:
        """Begins the means of terms anew."""
        self._term_sums[mode].clear()

    # ---- What is not finite ----

    def check_gradient(self, grad_norm: Any) -> None:
        """Raises `UserError` if the gradient's norm is not finite, before the optimizer's step.

        Under float16 the gradient scaler skips such steps itself.
        """
        if grad_norm is not None and self._scaler() is None and not math.isfinite(grad_norm):
            self._check_losses()
            raise self.not_finite("gradient")
        self._losses = []

    def _scaler(self) -> Any:
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    def _check_losses(self) -> None:
        """Raises `UserError` if one of the losses since the last step is not finite."""
        for loss, terms in self._losses:
            if not torch.isfinite(loss):
                bad = ", ".join(name for name, term in terms.items() if not torch.isfinite(term))
                raise self.not_finite(f"loss ({bad})")


def gathered(batches: Sequence[Quadruplets], accelerator: Accelerator) -> tuple[list[Quadruplets], list[int]]:
    """The quadruplets of all processes, one process's after another's, and the index of this process's first item of
    each of `ITEMS`.

    Args:
        batches: embeddings of the same quadruplets, by one model or another.
        accelerator: knows the other processes.
    """
    sizes = [[len(items) for items in batch] for batch in batches]
    parts = gather_object([(batches[0].layout, sizes)])
    layouts = [layout for layout, _ in parts]
    starts = np.cumsum([0, *map(len, layouts[:-1])]).tolist()
    whole = []
    for number, batch in enumerate(batches):
        made = []
        for place, (item, each) in enumerate(zip(ITEMS, batch, strict=True)):
            counts = [sizes[number][place] for _, sizes in parts]
            most = max(counts)  # only what is of one size can be gathered
            same = accelerator.gather(F.pad(each.embeds, (0, 0, 0, most - len(each)))).split(most) if most else ()
            embeds = [part[:count] for part, count in zip(same, counts, strict=False)]
            rows = [
                layout.rows(item)[:count] + start for layout, count, start in zip(layouts, counts, starts, strict=True)
            ]
            made.append(ItemBatch(torch.cat(embeds) if embeds else each.embeds, torch.cat(rows)))
        whole.append(Quadruplets(*made, Layout.join(layouts)))
    earlier = [sizes[0] for _, sizes in parts[: accelerator.process_index]]
    return whole, [sum(counts[place] for counts in earlier) for place in range(len(ITEMS))]


class Reader:
    """Stores a chunk between the two passes: its row indices if reading them again is fast and deterministic, otherwise
    its inputs on the CPU.

    Args:
        rows, collator: what the chunks are read from; without them, their inputs are kept.
    """

    def __init__(self, rows: Any = None, collator: Any = None):
        self.rows, self.collator = rows, collator

    def keep(self, inputs: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """What `again` makes the chunk of."""
        numbered = "row" in inputs and type(self.collator) is QuadrupletCollator and self.rows.augment is None
        fast = numbered and (self.rows.shape is not None or "pixel_values" not in inputs)
        return inputs["row"].cpu() if fast else send_to_device(inputs, "cpu")

    def again(self, kept: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        """The chunk's inputs, on the CPU."""
        if isinstance(kept, dict):
            return kept
        return dict(self.collator([self.rows[row] for row in kept.tolist()]))


class Chunks:
    """The batches of a step, as many as are said, made when they are asked for."""

    def __init__(self, batches: Iterator[dict[str, Any]], count: int):
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.batches


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of the CPU, and of the device if that is another."""
    return torch.get_rng_state(), None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


@contextlib.contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Runs what is inside under a random state that was kept, then brings back that of now."""
    now = _random_state(device)
    _set_random_state(state, device)
    try:
        yield
    finally:
        _set_random_state(now, device)


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])
