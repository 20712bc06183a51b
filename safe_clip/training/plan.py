"""Whether a training that was asked for would train anything, asked before it and after."""

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, get_scheduler

from ..data.items import ITEM_COLUMNS
from ..data.streams import QuadrupletStream
from ..errors import UserError, first_line
from ..items import ITEMS, Layout
from ..models.patches import cached_casts
from ..objectives.base import Objective
from ..store.fingerprints import weights_digest
from .arguments import SafeCLIPTrainingArguments
from .pace import planned_steps

logger = logging.getLogger(__name__)


def check_plan(args: Any, rows: Any, eval_rows: Any) -> None:
    """Raises `UserError` where settings and data make no training.

    Args:
        args: the settings.
        rows: the training rows, quadruplets or a stream of them; or `None`.
        eval_rows: those of evaluation; or `None`.
    """
    if not isinstance(args, SafeCLIPTrainingArguments):
        raise UserError(
            f"args must be SafeCLIPTrainingArguments, not {type(args).__name__}: it takes the same settings, with "
            "other defaults and those of the objective."
        )
    if args.eval_strategy != "no" and eval_rows is None:
        raise UserError(
            f"--eval_strategy {args.eval_strategy.value} requires rows to evaluate on, and there are none: give the "
            "data a split 'validation' (of SafeCLIPTrainer: an eval_dataset), or leave it out."
        )
    if rows is None:
        return
    if isinstance(rows, QuadrupletStream):
        if args.max_steps <= 0:
            raise UserError("a stream does not say how many rows it has, so --max_steps has to say how long to train.")
        steps = args.max_steps
    else:
        steps = planned_steps(args, len(rows))
    if args.learning_rate is None:
        args = copy.copy(args)
        args.learning_rate = 1e-5  # to see what can be made, any will do
    _check_optimizer(args)
    schedule, options = args.lr_scheduler_type.value, args.lr_scheduler_kwargs or {}
    try:  # one that is thrown away
        nothing = torch.optim.SGD([torch.zeros(1, requires_grad=True)], args.learning_rate)
        get_scheduler(schedule, nothing, args.get_warmup_steps(steps), steps, options)
    except Exception as error:  # each schedule has arguments, and errors, of its own
        raise UserError(
            f"--lr_scheduler_type {schedule} does not go with --lr_scheduler_kwargs {options}: {first_line(error)}"
        ) from error
    warmup = args.get_warmup_steps(steps)
    if args.lr_scheduler_type != "constant" and 0 < warmup >= steps:
        logger.warning(
            "All %d steps are warmup, so that the learning rate never reaches what was asked for%s. Train for longer, "
            "or lower --warmup_steps.",
            steps,
            ", and the only step has the rate 0" if steps == 1 else "",
        )


def _check_optimizer(args: SafeCLIPTrainingArguments) -> None:
    """Raises `UserError` where the optimizer cannot be made; of one that picks layers, the layers are not looked at."""
    if args.optim_target_modules is not None:
        return
    try:  # one that is thrown away
        made, options = Trainer.get_optimizer_cls_and_kwargs(args, nn.Module())
        if isinstance(made, type) and issubclass(made, torch.optim.Optimizer):
            made([torch.zeros(1, requires_grad=True)], **options)
    except Exception as error:  # each optimizer has arguments, and errors, of its own
        given = f" with --optim_args {args.optim_args}" if args.optim_args else ""
        raise UserError(f"--optim {args.optim.value}{given}: {first_line(error)}") from error


def warn_of_terms_without_rows(objective: Objective, layout: Layout, columns: list[str] | None) -> None:
    """Says which terms no row of the training data has the items of, and what they lack.

    Args:
        objective: what is trained.
        layout: of all the data.
        columns: of the data, where they are known.
    """
    unfed = objective.terms_without_rows(layout)
    if not unfed:
        return
    there = layout.present.any(axis=0).tolist()
    missing = [ITEM_COLUMNS[number] for number in range(len(ITEMS)) if not there[number]]
    why = f"there is no {' and no '.join(missing)}" if missing else "no row has all that one of them requires"
    has = f" The columns are {', '.join(columns)}; --column_mapping names others." if columns and missing else ""
    logger.warning("Not trained: %s, since %s.%s", ", ".join(unfed), why, has)


class Moved:
    """Whether training moves any of a model's trainable weights."""

    def __init__(self, model: nn.Module):
        self.before = self._digest(model)

    @staticmethod
    def _digest(model: nn.Module) -> str:
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        return weights_digest(trained.items())

    @staticmethod
    def knowable(model: nn.Module) -> bool:
        """Whether one process has all of the weights."""
        return not any(isinstance(weight, DTensor) for weight in model.parameters())

    def check(self, model: nn.Module, steps: int) -> None:
        """Raises `UserError` where they are what they were after so many steps."""
        if self._digest(model) == self.before:
            raise UserError(
                f"training moved no weight in {steps:,} steps, so this is the original model: raise --learning_rate, "
                "or lower --warmup_steps; under --fp16, use --bf16 in its place."
            )


@contextlib.contextmanager
def checked_training(trainer: Any) -> Iterator[None]:
    """Raises `UserError` where what a trainer trains in this context comes to its end and has trained nothing, or
    redirected nothing; errors leave no progress bar and no logger open."""
    moved = Moved(trainer.model) if Moved.knowable(trainer.model) and not trainer.is_sharded else None
    try:
        with contextlib.nullcontext() if trainer.is_sharded else cached_casts(trainer.model):
            yield
    except Exception as error:
        # So that the error is the last thing shown and nothing logged is lost; before training began there is nothing
        # to close.
        with contextlib.suppress(Exception):
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        if isinstance(error, KeyError) and "metric_for_best_model" in str(error):
            raise UserError(f"--metric_for_best_model: {error.args[0]}") from error
        raise
    trainer.step.pop_term_means("train")  # of the steps since the last log line
    state, first = trainer.state, trainer.resumed_from
    if state.global_step == 0:
        raise UserError("training took no step, so this is the original model; give it more rows or steps.")
    steps = state.global_step - first
    if not steps or state.global_step < state.max_steps:
        return  # had come to its end before, or was stopped
    redirecting = trainer.objective.redirecting
    if redirecting and not first and not trainer.step.trained.intersection(redirecting):
        raise trainer.objective.redirects_nothing()
    if moved is not None and not (steps == 1 and trainer.args.get_warmup_steps(state.max_steps)):
        moved.check(trainer.model, steps)
