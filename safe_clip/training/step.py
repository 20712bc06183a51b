"""The loss of a step: of one batch on one device, or of many chunks on many, as if they were one batch."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ..data.collator import QuadrupletCollator, model_inputs, place
from ..errors import UserError
from ..objectives.base import Makeup, Objective, QuadrupletEmbeds, ReferenceEmbeds, state_feeds
from ..objectives.states import States, state_values
from .targets import Targets

CACHED = "cached"  # in a chunk's inputs, what is known of its step already


@dataclass(frozen=True)
class CachedGradient:
    """What the first pass over a step's chunks found out for one of them.

    Attributes:
        loss: of the whole step.
        gradients: of the loss by the chunk's embeddings.
        rows: of the whole step, how many feed each term over states.
        chunks: of the step.
        random_state: before its forward, so that the second one drops the same.
    """

    loss: Tensor
    gradients: QuadrupletEmbeds
    rows: dict[str, Tensor]
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
        fed: terms that rows had part in, in training.
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
        self.fed: set[str] = set()
        self._losses = []  # since the last step
        # Of each term, the sum over rows and their number.
        self._term_sums: dict[str, dict[str, Tensor]] = {"train": defaultdict(float), "eval": defaultdict(float)}

    def chunks(
        self, model: nn.Module, batches: Iterator, count: int, progress: float = 1.0, reader: "Reader | None" = None
    ) -> "Chunks":
        """The batches of a step that is one contrastive batch, each for `loss`, with what is known of the whole step.

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
        """Runs the first pass over the chunks of a step, then gives each with what was found out."""
        model.train()
        kept, states, embeds, targets = [], [], [], []
        for _ in range(count):
            inputs = next(batches)
            states.append(_random_state(self.accelerator.device))
            with torch.no_grad():
                embeds.append(self.embed(model, inputs)[0])
            targets.append(self.targets.of(inputs, training=True))
            kept.append(reader.keep(inputs))
            del inputs
        whole = QuadrupletEmbeds(*map(torch.cat, zip(*embeds, strict=True)))
        sizes = [len(part.safe_text) for part in embeds]
        joined = {name: torch.cat([each[name] for each in targets]) for name in targets[0]}
        loss, gradients, rows = self._contrast(whole, joined, progress)
        parts = zip(*(column.split(sizes) for column in gradients), strict=True)
        for each, state, part in zip(kept, states, parts, strict=True):
            cached = CachedGradient(loss, QuadrupletEmbeds(*part), rows, count, state)
            yield reader.again(each) | {CACHED: cached}

    def loss(self, model: nn.Module, inputs: dict[str, Any], progress: float = 1.0) -> tuple[Tensor, QuadrupletEmbeds]:
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
        reads = bool(self.objective.state_weights)
        mode, processes = "train" if model.training else "eval", self.accelerator.num_processes
        rows, times = None, 1  # in the whole step, and the scale from the sum over its parts to its mean
        if cached is not None:
            with _replayed(cached.random_state, self.accelerator.device):
                embeds, states = self.embed(model, inputs, reads)
            loss = self._loss_with(cached.loss, cached.gradients, embeds, cached.chunks)
            rows, times = cached.rows, cached.chunks * processes
        elif model.training and processes > 1:
            targets = self.targets.of(inputs, training=True)
            embeds, states = self.embed(model, inputs, reads)
            loss, gradients, rows = self._contrast(embeds, targets, progress)
            loss, times = self._loss_with(loss, gradients, embeds), processes
        else:
            reference = self.targets(inputs, model.training, progress)
            embeds, states = self.embed(model, inputs, reads)
            loss, terms = self.objective(embeds, reference)
            self._note(loss, terms, reference, mode)
        if reads:
            loss = loss + self._state_loss(states, inputs, mode, rows, times)
        return loss, embeds

    def embed(
        self, model: nn.Module, inputs: dict[str, Tensor], states: bool = False
    ) -> tuple[QuadrupletEmbeds, States]:
        """The trained model's embeddings of a batch, and the states, where they are asked for: one forward for all that
        there is, through whatever wraps the model."""
        wanted = {"output_hidden_states": True} if states else {}
        output = model(**model_inputs(inputs), **wanted)
        present = inputs["present"]
        made = output.text_embeds if output.image_embeds is None else output.image_embeds
        text, image = (
            made.new_empty(0, made.shape[1]) if embeds is None else embeds
            for embeds in (output.text_embeds, output.image_embeds)
        )
        embeds = QuadrupletEmbeds(*place(text, present[:, :2]), *place(image, present[:, 2:]))
        return embeds, self.targets.embed.reference.family.states(output) if states else States()

    def _state_loss(
        self, states: States, inputs: dict[str, Tensor], mode: str, rows: dict[str, Tensor] | None, times: int
    ) -> Tensor:
        """The weighted terms over states, of which no row needs another one's.

        Args:
            states: by the trained model.
            inputs: what they are of.
            mode: `"train"` or `"eval"`, whose log the terms are added to.
            rows: that feed each term, in the whole step; by default those of these inputs.
            times: chunks x processes, by which gradients are divided later, so that the loss is multiplied by it here.
        """
        weights, makeup = self.objective.state_weights, Makeup(*(inputs[name] for name in Makeup._fields))
        original = self.targets.states(inputs, weights)
        loss, terms = torch.zeros((), device=self.accelerator.device), {}
        made = state_values(weights, states, original, makeup)
        for name, weight in weights.items():
            values = made.get(name, loss.new_zeros(0))
            # By every process for every term, even without rows: they are reduced one by one, in this order.
            self._term_sums[mode][name] += torch.stack([values.detach().sum(), values.new_tensor(len(values))])
            if len(values):
                count = len(values) if rows is None else rows[name]
                terms[name] = values.sum() / count * times
                loss = loss + weight * terms[name]
        self._losses.append((loss.detach(), {name: value.detach() for name, value in terms.items()}))
        if mode == "eval" or self._scaler() is not None:
            self._check_losses()
        return loss

    def _contrast(
        self, embeds: QuadrupletEmbeds, targets: dict[str, Tensor], progress: float
    ) -> tuple[Tensor, QuadrupletEmbeds, dict[str, Tensor]]:
        """The loss over the rows of all processes, its gradients by this process's embeddings, and how many of the rows
        feed each term over states.

        Args:
            embeds: this process's, B x dimension each.
            targets: the original's embeddings of the same rows, and what the rows are made of.
            progress: share of training that is done.
        """
        accelerator = self.accelerator
        leaves = [column.detach().float() for column in embeds]
        if accelerator.num_processes > 1:
            # The last batches of a stream may differ in size: rows without any item have no part in anything.
            leaves, targets = accelerator.gather(accelerator.pad_across_processes((leaves, targets)))
        leaves = QuadrupletEmbeds(*(column.requires_grad_() for column in leaves))
        reference = self.targets.complete(targets, training=True, progress=progress)
        loss, terms = torch.zeros((), device=leaves.safe_text.device), {}
        shares = self.objective.pieces(leaves, reference, accelerator.process_index, accelerator.num_processes)
        with torch.enable_grad():
            for name, value in shares:  # backward at once, so that the logits of few rows are held
                weighted = self.objective.total({name: value})
                weighted.backward(retain_graph=True)  # of what the pieces have in common
                loss, terms[name] = loss + weighted.detach(), terms.get(name, 0) + value.detach()
                del value, weighted
        self._note(loss, terms, reference, "train", accelerator.num_processes)
        # What is missing has no gradient, whatever was computed with its NaN.
        gradients = [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.masked_fill(leaf.isnan(), 0) for leaf in leaves
        ]
        if accelerator.num_processes > 1:
            loss, gradients = accelerator.reduce(loss), [accelerator.reduce(gradient) for gradient in gradients]
            padded = len(gradients[0]) // accelerator.num_processes
            first = accelerator.process_index * padded
            gradients = [gradient[first : first + len(embeds.safe_text)] for gradient in gradients]
        rows = {name: fed.sum() for name, fed in state_feeds(reference.makeup).items()}
        return loss, QuadrupletEmbeds(*gradients), rows

    def _loss_with(
        self, loss: Tensor, gradients: QuadrupletEmbeds, embeds: QuadrupletEmbeds, chunks: int = 1
    ) -> Tensor:
        """A tensor of the value of a loss, whose gradient by the weights comes from known ones by embeddings."""
        parts = [
            (gradient * column.float().nan_to_num()).sum() for gradient, column in zip(gradients, embeds, strict=True)
        ]
        # A trainer divides by the number of chunks, and gradients become a mean over processes.
        carrier = torch.stack(parts).sum() * self.accelerator.num_processes * chunks
        return loss + carrier - carrier.detach()

    def _note(
        self, loss: Tensor, terms: dict[str, Tensor], reference: ReferenceEmbeds, mode: str, processes: int = 1
    ) -> None:
        """Adds terms to the next log; of several processes, each holds its share of a term's value.

        Raises:
            UserError: the loss is not finite, where the gradient would not tell.
        """
        terms = {name: value.detach() for name, value in terms.items()}
        self._losses = [*self._losses, (loss.detach(), terms)] if mode == "train" else [(loss.detach(), terms)]
        if mode == "eval" or self._scaler() is not None:
            self._check_losses()  # else `check_gradient` finds it, where the device is waited for anyway
        feeds = self.objective.feeds(reference.makeup, reference)
        for name, fed in feeds.items():
            if self.objective.weights[name]:
                rows = fed.sum().float()
                value = terms.get(name, torch.zeros_like(rows))
                self._term_sums[mode][name] += torch.stack([value * rows, rows / processes])

    def pop_term_means(self, mode: str) -> dict[str, float]:
        """Means over the rows of all processes that fed each term since the last call; terms that none fed left out.

        Args:
            mode: `"train"` or `"eval"`.
        """
        sums = {name: self.accelerator.reduce(value) for name, value in self._term_sums[mode].items()}
        self._term_sums[mode].clear()
        if mode == "train":
            self.fed |= {name for name, (_, rows) in sums.items() if rows}
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


class Reader:
    """Keeps what a chunk is made of again: the numbers of its rows where reading is fast and always the same, else its
    inputs on the CPU.

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
