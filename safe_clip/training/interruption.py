"""A training that is asked to stop does so after a step, with a checkpoint."""

import sys
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl

from ..stopping import Stopped, at_once, raise_stopped


class StopAfterStep(TrainerCallback):
    """Ends training after the step in which Ctrl-C or SIGTERM came, on all processes alike, with a checkpoint.

    Its `handle` is for `stopping.handled`. Where training has not begun, or on the second time, the program ends.

    Args:
        accelerator: the trainer's, which knows the other processes.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.number, self.training = accelerator, 0, False

    def handle(self, number: int) -> None:
        """Takes note of a signal."""
        if not self.training:
            raise_stopped(number)
        self.number = number
        at_once()
        if self.accelerator.is_main_process:
            print("\nStopping after this step, with a checkpoint. A second time ends at once.", file=sys.stderr)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.training = True

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.training = False

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.accelerator.num_processes > 1:  # none may stop without the others
            numbers = self.accelerator.gather(torch.tensor([self.number], device=self.accelerator.device))
            self.number = int(numbers.max())
        if self.number:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def check(self, state: Any) -> None:
        """Raises `Stopped` where training was stopped.

        Args:
            state: the trainer's.
        """
        if self.number:
            raise Stopped(
                self.number,
                f"stopped after step {state.global_step:,} of {state.max_steps:,}, with a checkpoint: the same command "
                "with --resume_from_checkpoint last goes on from there.",
            )
