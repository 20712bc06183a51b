"""Going on with a run: from which checkpoint, and whether anything is left to do."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..errors import UserError
from ..outputs import OutputFolder
from ..training import run_identity
from .checkpoints import fault_of

logger = logging.getLogger(__name__)


class ResumingMixin:
    """Runs that are told from each other, for a `Trainer`.

    Attributes:
        run: the id of the run, which its checkpoints carry.
        run_facts: what it is of, as `run_identity.facts_of`.
        nothing_left: whether the last `train()` found it at its end.
    """

    run: str | None = None
    run_facts: dict = {}
    nothing_left: bool = False

    @contextlib.contextmanager
    def _as_run(self, resume_from_checkpoint: str | bool | None) -> Iterator[Path | None]:
        """Has the output directory to itself, and gives the checkpoint to go on from.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or `"last"` (or `True`) for the newest of this run.

        Raises:
            UserError: there is no such checkpoint, or it is of another run; or the folder must not be written to.
        """
        output = self._output()
        with output.lock() if self.is_world_process_zero() else contextlib.nullcontext():
            checkpoint = self.checkpoint_for(resume_from_checkpoint)
            self.run = run_identity.read(checkpoint).get("run") if checkpoint else None
            self.run = self.run or run_identity.new_run()
            if self.is_world_process_zero():
                output.claim(run=self.run)
            yield checkpoint

    def checkpoint_for(self, resume_from_checkpoint: str | bool | None) -> Path | None:
        """The checkpoint that `train` would go on from, if from any. Arguments and errors as of `train`."""
        self.run_facts = run_identity.facts_of(self)
        if resume_from_checkpoint in ("last", True):
            faults = {each: fault for each in self._saved() if (fault := fault_of(each))}
            for each, fault in faults.items():
                if self.is_world_process_zero():
                    _tell(f"{each} {fault}: it is passed over.")
            if faults and not self._checkpoints():
                newest = list(faults)[-1]
                raise UserError(
                    f"there is no whole checkpoint in {self.args.output_dir}; the newest, {newest.name}, "
                    f"{faults[newest]}. Leave out --resume_from_checkpoint to begin."
                )
            begun = OutputFolder(self.args.output_dir).manifest.get("run")
            return run_identity.last(self._checkpoints(), self.run_facts, begun, self.args.output_dir)
        if not resume_from_checkpoint:
            return None
        checkpoint = Path(resume_from_checkpoint)
        if fault := fault_of(checkpoint):
            raise UserError(
                f"--resume_from_checkpoint {checkpoint} is not a folder with a whole checkpoint: it {fault}. Name "
                "another, or `last` for the newest that is whole."
            )
        run_identity.check(checkpoint, self.run_facts)
        return checkpoint

    def _checkpoints(self, run: str | None = None) -> list[Path]:
        """Whole checkpoints in the output directory, or those of one run, the newest last."""
        found = [each for each in self._saved() if fault_of(each) is None]
        return [each for each in found if run is None or run_identity.read(each).get("run") == run]

    def _saved(self) -> list[Path]:
        """What was saved of checkpoints in the output directory, whole or not, the newest last."""
        return sorted(Path(self.args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/"), key=step_of)

    def _load_best_model(self) -> None:
        """Takes the best model from the output directory: a state tells the name of its checkpoint."""
        best = Path(self.args.output_dir, Path(self.state.best_model_checkpoint or "").name)
        if self.state.best_model_checkpoint and best.is_dir():
            self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def _all_steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _end(self, steps: int) -> dict:
        """What a run that ended is known by."""
        return {"run": self.run, "steps": steps, "patience": self.args.early_stopping_patience}

    def _note_end(self, steps: int) -> None:
        """Notes that training came to its end, of so many steps, be it by early stopping; nothing where it was stopped
        otherwise, and may go on."""
        early = any(
            each.early_stopping_patience_counter >= each.early_stopping_patience
            for each in self.callback_handler.callbacks
            if isinstance(each, EarlyStoppingCallback)
        )
        if self.is_world_process_zero() and (early or self.state.global_step >= steps):
            told = [entry for entry in self.state.log_history if "train_runtime" in entry]
            ended = {"at": self.state.global_step, "log": told, "from": self.resumed_from}
            OutputFolder(self.args.output_dir).update(ended=self._end(steps) | ended, card=None)

    def _finished(self, checkpoint: Path, steps: int) -> TrainOutput | None:
        """Takes the model from a checkpoint of a run that is at its end; gives `None`, and does nothing, for others."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        ended = OutputFolder(self.args.output_dir).manifest.get("ended") or {}
        known = ended.get("at") == state.global_step and {**ended, **self._end(steps)} == ended
        if state.global_step < steps and not known:
            return None
        if self.is_sharded:
            raise UserError(
                f"nothing is left to train: {checkpoint} is at step {state.global_step} of {steps}. Save its model by "
                "the same command in one process, without FSDP or DeepSpeed."
            )
        if self.is_world_process_zero():
            print(f"Nothing is left to train: {checkpoint} is at step {state.global_step} of {steps}.", flush=True)
        self.state = state
        self.state.log_history += ended.get("log", []) if known else []
        self.resumed_from = ended.get("from", 0) if known else 0
        self._load_from_checkpoint(str(checkpoint))
        best = state.best_model_checkpoint and Path(self.args.output_dir, Path(state.best_model_checkpoint).name)
        if self.args.load_best_model_at_end and best and best.is_dir():
            self._load_best_model()
        losses = [entry["train_loss"] for entry in self.state.log_history if "train_loss" in entry]
        return TrainOutput(state.global_step, losses[-1] if losses else float("nan"), {})


@functools.cache
def _tell(line: str) -> None:
    """Warns, once."""
    logger.warning(line)


def step_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def step_at(checkpoint: Path) -> int:
    """The step at which a checkpoint was made."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
