"""Runs and their checkpoints: which one to go on from, and whether anything is left to do."""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator
from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from ..errors import UserError
from ..outputs import OutputFolder
from ..store.writing import write_whole
from ..training import run_identity
from .checkpoints import fault_of, seal

logger = logging.getLogger(__name__)


class Run:
    """A run of training in the output directory, and its checkpoints there.

    Args:
        args: the trainer's.
        facts: gives what the run is of, as `run_identity.facts_of`.
        reads: folders that are read from, and never written to.

    Attributes:
        id: by which its checkpoints are told from those of other runs; of the training that began last.
    """

    def __init__(self, args: TrainingArguments, facts: Callable[[], dict], reads: Sequence[str | None] = ()):
        self.args, self.facts, self.reads = args, facts, reads
        self.id: str | None = None
        self._is_main = args.process_index == 0
        self._checked: set[Path] = set()
        self._begun_facts: dict = {}

    def folder(self, path: str | None = None) -> OutputFolder:
        """A folder to write into, by default the output directory, looked at before the first time.

        Raises:
            UserError: it must not be written to; see `OutputFolder.check`.
        """
        output = OutputFolder(path or self.args.output_dir)
        if output.path.resolve() not in self._checked:
            output.check(self.args.overwrite_output_dir, self.reads)
            self._checked.add(output.path.resolve())
        return output

    @contextlib.contextmanager
    def begin(self, resume_from_checkpoint: str | bool | None) -> Iterator[Path | None]:
        """Has the output directory to itself, and gives the checkpoint to go on from. Errors as of `checkpoint`."""
        output = self.folder()
        with output.lock() if self._is_main else contextlib.nullcontext():
            checkpoint = self.checkpoint(resume_from_checkpoint)
            self.id = run_identity.read(checkpoint).get("run") if checkpoint else None
            self.id = self.id or run_identity.new_run()
            if self._is_main:
                output.claim(run=self.id)
            yield checkpoint

    def checkpoint(self, resume_from_checkpoint: str | bool | None) -> Path | None:
        """The checkpoint to go on from, if from any.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or `"last"` (or `True`) for the newest of this run.

        Raises:
            UserError: there is no such checkpoint, or it is of another run.
        """
        self._begun_facts = self.facts()
        if resume_from_checkpoint in ("last", True):
            faults = {each: fault for each in self._saved() if (fault := fault_of(each))}
            for each, fault in faults.items():
                if self._is_main:
                    _warn_once(f"{each} {fault}: it is passed over.")
            if faults and not self.checkpoints():
                newest = list(faults)[-1]
                raise UserError(
                    f"there is no whole checkpoint in {self.args.output_dir}; the newest, {newest.name}, "
                    f"{faults[newest]}. Leave out --resume_from_checkpoint to begin."
                )
            begun = OutputFolder(self.args.output_dir).manifest.get("run")
            return run_identity.last(self.checkpoints(), self._begun_facts, begun, self.args.output_dir)
        if not resume_from_checkpoint:
            return None
        checkpoint = Path(resume_from_checkpoint)
        if fault := fault_of(checkpoint):
            raise UserError(
                f"--resume_from_checkpoint {checkpoint} is not a folder with a whole checkpoint: it {fault}. Name "
                "another, or `last` for the newest that is whole."
            )
        run_identity.check(checkpoint, self._begun_facts)
        return checkpoint

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints in the output directory, the newest last."""
        return [each for each in self._saved() if fault_of(each) is None]

    def _saved(self) -> list[Path]:
        """What was saved of checkpoints in the output directory, whole or not, the newest last."""
        return sorted(Path(self.args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/"), key=_step_of)

    @contextlib.contextmanager
    def saving(self, folder: Path, state: TrainerState, accelerator: Accelerator) -> Iterator[None]:
        """Has a checkpoint of this run saved into a folder; earlier ones go once it is whole."""
        if self.args.should_save:
            OutputFolder(folder.parent).make_way(folder.name)  # files of another would be left over
            folder.mkdir(parents=True, exist_ok=True)
            self.mark(folder)  # first, so that it is known as ours wherever it is cut off
        accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit
        if not self.args.push_to_hub:  # which did it already
            self.seal(folder, accelerator)
        if self.args.should_save:
            rotate_checkpoints(str(folder.parent), limit, state.best_model_checkpoint, use_mtime=True)

    def mark(self, checkpoint: Path) -> None:
        """Writes into a checkpoint, which is not whole yet, what tells this run from others."""
        facts = {"run": self.id, **(self._begun_facts or self.facts()), "files": None}
        write_whole(checkpoint / run_identity.RUN_FILE, json.dumps(facts, indent=1))

    def seal(self, checkpoint: Path, accelerator: Accelerator) -> None:
        """Notes that a checkpoint is whole, once all processes have written their files."""
        accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(checkpoint)

    def best(self, state: TrainerState) -> Path | None:
        """The best checkpoint, of which a state tells the name, if it is in the output directory."""
        best = Path(self.args.output_dir, Path(state.best_model_checkpoint or "").name)
        return best if state.best_model_checkpoint and best.is_dir() else None

    def not_finite(self, what: str, step: int, moved: bool) -> UserError:
        """The error for a loss or gradient that is infinite or not a number.

        Args:
            what: that is so.
            step: the last one that went well.
            moved: whether weights may have moved by it.
        """
        own = [each for each in self.checkpoints() if self.id is None or run_identity.read(each).get("run") == self.id]
        saved = [each for each in own if _step_of(each) <= step]
        resume = f", or go on with --resume_from_checkpoint {saved[-1]} and --max_grad_norm 1" if saved else ""
        return UserError(
            f"the {what} is not a finite number after step {step}; "
            f"{'weights may have moved by it' if moved else 'no weight was moved by it'}. Start "
            f"anew with a lower --learning_rate or with --bf16 in place of --fp16{resume}."
        )

    # ---- The end ----

    def _end(self, steps: int) -> dict:
        """What a run that ended is known by."""
        return {"run": self.id, "steps": steps, "patience": self.args.early_stopping_patience}

    def note_end(self, state: TrainerState, callbacks: list, begun_at: int) -> None:
        """Notes that training came to its end, be it by early stopping; nothing where it was stopped otherwise, and may
        go on.

        Args:
            state, callbacks: the trainer's.
            begun_at: the step that training went on from.
        """
        early = any(
            each.early_stopping_patience_counter >= each.early_stopping_patience
            for each in callbacks
            if isinstance(each, EarlyStoppingCallback)
        )
        if self._is_main and (early or state.global_step >= state.max_steps):
            log = [entry for entry in state.log_history if "train_runtime" in entry]
            ended = {"at": state.global_step, "log": log, "from": begun_at}
            # A card that is there is of an earlier training.
            OutputFolder(self.args.output_dir).update(ended=self._end(state.max_steps) | ended, card=None)

    def ended(self, checkpoint: Path, steps: int, sharded: bool) -> tuple[TrainerState, int, TrainOutput] | None:
        """Of a checkpoint after which none of so many steps is left, its state, the step that its training went on
        from, and what that gave; `None` where some are left.

        Raises:
            UserError: none is, and the model of the checkpoint cannot be taken from it, being in shards.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        ended = OutputFolder(self.args.output_dir).manifest.get("ended") or {}
        known = ended.get("at") == state.global_step and {**ended, **self._end(steps)} == ended
        if state.global_step < steps and not known:
            return None
        at = f"{checkpoint} is at step {state.global_step} of {steps}"
        if sharded:
            raise UserError(
                f"nothing is left to train: {at}. Save its model by the same command in one process, without FSDP or "
                "DeepSpeed."
            )
        if self._is_main:
            print(f"Nothing is left to train: {at}.", flush=True)
        state.log_history += ended.get("log", []) if known else []
        losses = [entry["train_loss"] for entry in state.log_history if "train_loss" in entry]
        output = TrainOutput(state.global_step, losses[-1] if losses else float("nan"), {})
        return state, ended.get("from", 0) if known else 0, output


@functools.cache
def _warn_once(line: str) -> None:
    logger.warning(line)


def _step_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def step_at(checkpoint: Path) -> int:
    """The step at which a checkpoint was made."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
