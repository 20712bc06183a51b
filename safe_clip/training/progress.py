"""What a training shows: on what it runs, a bar or lines of progress, and losses that a person can read."""

import math
import textwrap
import time
from typing import Any

import transformers
from accelerate import Accelerator
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import has_length

from ..card.training import hardware, precision, trained_parameters
from ..objectives.base import Objective
from ..terminal import draws_bars, progress_bar, say

LINES = 20  # of progress, that a training leaves in a file
FIRST = 30.0  # seconds after which the first one says how long it will take
BETWEEN = 10.0  # seconds at least between two
VERBS = {"redirection": "redirect", "preservation": "preserve"}
PARTS = ("text", "image", "")
# Of a log line: what is told elsewhere, or on the line in words.
NOT_TOLD = {"loss", "learning_rate", "epoch", "step", "grad_norm", "total_flos"}
RATES = ("runtime", "samples_per_second", "steps_per_second")
WIDTH = 110  # characters of a line of metrics


class TrainingProgress(TrainerCallback):
    """Takes the place of the Trainer's own callbacks for bars and log lines.

    A log line gives the loss and its parts: the weighted terms, summed by what they do (redirect, preserve) and to what
    (captions, images). Their sum is the loss. All terms by their own names are in `trainer.state.log_history` and in
    what `report_to` names.

    Args:
        objective: whose terms are logged.
        accelerator: the trainer's.
    """

    def __init__(self, objective: Objective, accelerator: Accelerator):
        self.objective, self.accelerator = objective, accelerator
        self.training_bar = self.evaluation_bar = None
        self.begun = self.told = 0.0
        self.first = self.told_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.begun = self.told = time.perf_counter()
        self.first = self.told_step = state.global_step
        if not state.is_world_process_zero:
            return
        say(f"Training {trained_parameters(model)} on {hardware(args)}, in {precision(self.accelerator)}.")
        size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rows = getattr(kwargs.get("train_dataloader"), "dataset", None)  # of a stream none
        count = len(rows) if has_length(rows) else size
        epochs = f", {state.num_train_epochs} epochs" if args.max_steps <= 0 else ""
        begun = f", from step {self.first:,} on" if self.first else ""
        say(f"{state.max_steps:,} steps of {min(size, count):,} rows{epochs}{begun}.")
        if not args.disable_tqdm and draws_bars():
            self.training_bar = progress_bar(
                total=state.max_steps, initial=self.first, desc="Training", unit=" steps", delay=0
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.training_bar is not None:
            self.training_bar.update(state.global_step - self.training_bar.n)
        elif state.is_world_process_zero and not (args.disable_tqdm or control.should_log) and self._is_due(state):
            self._tell(state, "")

    def _is_due(self, state: TrainerState) -> bool:
        """Whether a file should get a line of progress: after a twentieth of the steps, the first one sooner."""
        silent, steps = time.perf_counter() - self.told, state.global_step - self.told_step
        first = self.told_step == self.first and silent >= FIRST
        return state.global_step < state.max_steps and (
            first or (steps >= state.max_steps / LINES and silent >= BETWEEN)
        )

    def _tell(self, state: TrainerState, parts: str) -> None:
        """A line that begins with the step, and ends with the time that is left where no bar shows it."""
        self.told, self.told_step = time.perf_counter(), state.global_step
        done = state.global_step - self.first
        pace = ""
        if self.training_bar is None and done and state.global_step < state.max_steps:
            each = (self.told - self.begun) / done
            pace = f"  {number(each).strip()} s/step, {span(each * (state.max_steps - state.global_step))} left"
        width = len(str(state.max_steps))
        say(f"step {state.global_step:{width}}/{state.max_steps}{parts}{pace}")

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "train_runtime" in logs:
            steps, seconds = state.global_step - self.first, logs["train_runtime"]
            each = f", {number(seconds / steps).strip()} s/step" if steps else ""
            say(f"Trained {steps:,} steps in {span(seconds)}{each}.")
            return
        evaluated = any(name.startswith("eval_") for name in logs)
        terms = {name.removeprefix("eval_"): value for name, value in logs.items()}
        lines = loss_parts(terms, self.objective)
        if "learning_rate" in terms:
            lines += f"  lr {terms['learning_rate']:.2g}"
        self._tell(state, f"{'  evaluated:' if evaluated else ''}{lines}")
        others = [
            f"{name} {number(value)}"
            for name, value in terms.items()
            if name not in NOT_TOLD and name not in self.objective.weights and not name.endswith(RATES)
            and isinstance(value, int | float)
        ]  # fmt: skip
        if others:
            say(textwrap.fill(", ".join(others), WIDTH, initial_indent="  ", subsequent_indent="  "))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if args.disable_tqdm or not state.is_world_process_zero or not has_length(eval_dataloader):
            return
        if self.training_bar is not None:
            self.training_bar.set_description("Evaluating")
        elif self.evaluation_bar is None:
            self.evaluation_bar = progress_bar(total=len(eval_dataloader), desc="Evaluating", unit=" batches")
        if self.evaluation_bar is not None:
            self.evaluation_bar.update()

    def on_evaluate(self, *_: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            self.training_bar.set_description("Training")
        if self.evaluation_bar is not None:
            self.evaluation_bar.close()
            self.evaluation_bar = None

    on_predict = on_evaluate

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None


def report_progress(trainer: Trainer) -> None:
    """Puts `TrainingProgress` in the place of what the Trainer added for bars and log lines."""
    added = PrinterCallback if trainer.args.disable_tqdm else transformers.trainer.DEFAULT_PROGRESS_CALLBACK
    callbacks = trainer.callback_handler.callbacks
    trainer.remove_callback(next(each for each in reversed(callbacks) if type(each) is added))
    trainer.add_callback(TrainingProgress(trainer.objective, trainer.accelerator))


def loss_parts(terms: dict[str, float], objective: Objective) -> str:
    """The loss, and what it is made up of, each with two spaces before it."""
    groups: dict[str, dict[str, float]] = {verb: {} for verb in VERBS.values()}
    for name, weight in objective.weights.items():
        if name in terms and weight:
            aim, _, rest = name.partition("_")
            group, part = (VERBS[aim], rest.partition("_")[0]) if aim in VERBS else (name, "")
            parts = groups.setdefault(group, {})
            parts[part] = parts.get(part, 0.0) + weight * terms[name] / objective.divisor
    words = [f"  loss {number(terms['loss'])}"] if "loss" in terms else []
    for group, parts in groups.items():
        said = [
            f" {part} {number(parts[part])}" if part else f" {number(parts[part])}" for part in PARTS if part in parts
        ]
        words += [f"  {group}{''.join(said)}"] if said else []
    return "".join(words)


def number(value: float) -> str:
    """A number with three digits, in five characters where it has no exponent."""
    if 1e-3 <= abs(value) < 1e4 or not value:
        digits = min(3, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 3
        return f"{value:.{digits}f}".rjust(5)
    return f"{value:.0e}"


def span(seconds: float) -> str:
    """How long something takes, in words."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 3 else f"{minutes} min {rest} s" if minutes else f"{rest} s"
