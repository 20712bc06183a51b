"""Uploading what was trained, and what goes wrong in it."""

import contextlib
import shlex
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, upload_folder
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..errors import UserError, first_line
from ..outputs import OutputFolder
from .hub_folder import HubFolder
from .run_identity import RUN_FILE

# Of a checkpoint, what a Trainer of transformers and we write.
CHECKPOINT_FILES = ["adapter_*", "*/adapter_*", "*.safetensors", "*.safetensors.index.json", "config.json"]
CHECKPOINT_FILES += ["generation_config.json", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", RUN_FILE]
CHECKPOINT_FILES += ["trainer_state.json"]
CHECKPOINT_FILES += ["training_args.json", "tokenizer*.json", "*processor_config.json", "pytorch_model_fsdp*"]
CHECKPOINT_FILES += ["special_tokens_map.json", "spiece.model", "vocab.json", "merges.txt", "chat_template*"]


@contextlib.contextmanager
def login_explained() -> Iterator[None]:
    """Raises `UserError` for whatever keeps a repository from being made or looked at."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # no login, no right to write, no connection: each its own type
        raise UserError(
            "--push_to_hub requires a Hub login that may write: run `hf auth login` or set HF_TOKEN, "
            f"and name the repository with --hub_model_id you/name. ({error})"
        ) from error


def upload(
    args: TrainingArguments,
    repo: str,
    there: HubFolder | None,
    message: str,
    token: str | None = None,
    revision: str | None = None,
    background: bool = True,
) -> CommitInfo | Future:
    """Uploads what was written into the output directory, and nothing else that lies there.

    Args:
        args: the trainer's, which say the folder, and the token and the branch where none are given.
        repo: the repository's id.
        there: what was in it.
        message: of the commit.
        token: of the Hub.
        revision: the branch.
        background: do not wait for it.
    """
    output = OutputFolder(args.output_dir)
    return upload_folder(
        repo_id=repo,
        folder_path=args.output_dir,
        commit_message=message,
        token=token or args.hub_token,
        revision=revision or args.hub_revision,
        run_as_future=background,
        allow_patterns=output.to_push,
        delete_patterns=None if there is None else there.to_delete(output.manifest["weights"]),
    )


def push_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Pushes the drop-in to the repository's root, and a checkpoint beside it where the strategy says so.

    Args:
        trainer: in training; all of its processes call this.
        checkpoint: its folder, which is whole.
    """
    args, earlier = trainer.args, getattr(trainer, "push_in_progress", None)
    if args.hub_strategy == HubStrategy.END:
        return
    if trainer.is_sharded:
        trainer.save_model(_internal_call=True)  # for which all processes are wanted
    pushing = earlier is not None and not earlier.is_done()
    if not trainer.is_world_process_zero() or (pushing and not args.hub_always_push):
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    if not trainer.is_sharded:
        trainer.save_model(_internal_call=True)
    trainer.create_model_card()
    message = f"Training in progress, step {trainer.state.global_step}"
    jobs = [upload(args, trainer.hub_model_id, trainer.hub, message)]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        last = args.hub_strategy == HubStrategy.CHECKPOINT
        job = upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=str(checkpoint),
            path_in_repo="last-checkpoint" if last else checkpoint.name,
            commit_message=message,
            token=args.hub_token,
            revision=args.hub_revision,
            run_as_future=True,
            allow_patterns=CHECKPOINT_FILES,
        )
        jobs.append(job)
    if pushing:
        earlier.jobs.extend(jobs)
    else:
        trainer.push_in_progress = PushInProgress(jobs)


@contextlib.contextmanager
def push_explained(args: TrainingArguments, repo: str, revision: str | None) -> Iterator[None]:
    """Raises `UserError` where a push fails, with the command that does it again."""
    try:
        yield
    except Exception as error:  # of the connection, of the Hub: each its own type
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        cure = "Log in with `hf auth login`, then push" if refused else "Push"
        command = ["hf", "upload", repo, args.output_dir, "."]
        command += [word for name in OutputFolder(args.output_dir).to_push for word in ("--include", name)]
        command += ["--revision", revision] if (revision := revision or args.hub_revision) else []
        raise UserError(
            f"the push to {repo} failed ({first_line(error)}). Nothing is lost: the model is in "
            f"{args.output_dir}. {cure} it with: {shlex.join(command)}"
        ) from error
