"""What a trained model leaves on disk and on the Hub."""

import copy
import json
import shlex
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi, upload_folder
from peft import PeftModel
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, rotate_checkpoints
from transformers.utils.hub import PushInProgress

from ..card import write_model_card
from ..card_text import forget_facts
from ..errors import UserError, first_line
from ..models.drop_in import save_drop_in
from ..models.family import family_of
from ..models.load import public_name
from ..names import public
from ..outputs import OutputFolder
from ..store.known_files import CARD
from ..store.writing import make_public_modes, write_whole
from .checkpoints import seal
from .hub_folder import HubFolder, look
from .run_identity import RUN_FILE, facts_of

ADAPTER_DIR = "adapter"  # of a saved model
# Of a checkpoint, what a Trainer of transformers and we write.
CHECKPOINT_FILES = ["adapter_*", "*/adapter_*", "*.safetensors", "*.safetensors.index.json", "config.json"]
CHECKPOINT_FILES += ["generation_config.json", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", RUN_FILE]
CHECKPOINT_FILES += ["trainer_state.json"]
CHECKPOINT_FILES += ["training_args.json", "tokenizer*.json", "*processor_config.json", "pytorch_model_fsdp*"]
CHECKPOINT_FILES += ["special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*"]


class PublishingMixin:
    """Saving and pushing, for a `Trainer` of a CLIP whose checkpoints are not what others shall load."""

    hub: HubFolder | None = None  # what was in the repository when the trainer was built
    card_facts: dict[str, Any] = {}  # of the data and the command, for `write_model_card`

    # ---- Saving ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the drop-in: a plain `CLIPModel` or the like, adapters merged, with its tokenizer and image processor.

        An adapter is saved on its own too, under `adapter/`, for those who keep many beside one original. Nothing is
        uploaded: that is `push_to_hub()`'s.
        """
        try:
            if _internal_call and output_dir is not None:  # a checkpoint
                super().save_model(output_dir, _internal_call=True)
                if self.args.should_save:
                    self._save_args(Path(output_dir))
                    self._save_run(Path(output_dir))
                    _make_public(Path(output_dir))
                    make_public_modes(Path(output_dir).glob("*.safetensors"))
            else:
                model = self._whole_model()
                if model is not None:
                    output = self._output(output_dir or self.args.output_dir)
                    with output.staged() as stage:
                        self._save_drop_in(model, stage)
                    if output.path.resolve() == Path(self.args.output_dir).resolve():
                        self._take_card(output)
        except (OSError, SafetensorError) as error:  # a full disk, no right to write
            raise UserError(
                f"{output_dir or self.args.output_dir} cannot be written ({error}). Make room there, or choose another "
                "--output_dir; --resume_from_checkpoint goes on from a checkpoint, if there is one."
            ) from error

    def _take_card(self, output: OutputFolder) -> None:
        """Takes over the card that the repository has, with its figures where they are of the same weights."""
        if self.hub is None or self.hub.card is None or (output.path / CARD).exists():
            return
        if self.hub.weights is not None and self.hub.weights == output.manifest["weights"]:
            output.write(CARD, self.hub.card, editable=True)
            output.write("evaluation.json", self.hub.figures)
        else:
            output.write(CARD, forget_facts(self.hub.card), editable=True)

    def _whole_model(self) -> PreTrainedModel | PeftModel | None:
        """The model as one process has it, on those that save; shards are gathered, for which all have to call this."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not any(isinstance(weight, DTensor) for weight in model.parameters()):
            return model if self.args.should_save else None
        weights = self.accelerator.get_state_dict(model)  # on the first process alone
        if not self.is_world_process_zero():
            return None
        with torch.random.fork_rng(devices=[]):
            whole = family_of(model).model(copy.deepcopy(model.config))
            if isinstance(model, PeftModel):
                whole = PeftModel(whole, copy.deepcopy(model.active_peft_config), model.active_adapter)
        whole.load_state_dict(weights, assign=True)
        return whole.eval()

    def _save_drop_in(self, model: PreTrainedModel | PeftModel, folder: Path) -> None:
        if isinstance(model, PeftModel):
            _save_adapter(model, folder / ADAPTER_DIR)
            # A merged copy, since merging and unmerging would leave rounding errors in the original.
            model = copy.deepcopy(model).merge_and_unload()
        save_drop_in(model, self.processing_class, folder, self.stored_dtype)
        self._save_args(folder)

    def _save_args(self, folder: Path) -> None:
        """Saves the settings as JSON, with tokens masked, in place of a pickle that holds them."""
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        (folder / "training_args.json").write_text(json.dumps(public(self.args.to_dict()), indent=2))

    def _save_run(self, folder: Path) -> None:
        """Saves what tells this run from others, for going on from this checkpoint, which is not whole yet."""
        facts = {"run": self.run, **(self.run_facts or facts_of(self)), "files": None}
        write_whole(folder / RUN_FILE, json.dumps(facts, indent=1))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            OutputFolder(folder.parent).make_way(folder.name)  # files of another would be left over
            folder.mkdir(parents=True, exist_ok=True)
            self._save_run(folder)  # first, so that it is known as ours wherever it is cut off
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if not self.args.push_to_hub:
            self._seal(folder)
        if self.args.should_save:  # earlier ones go once this one is whole
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _seal(self, checkpoint: Path) -> None:
        self.accelerator.wait_for_everyone()  # each process writes a file
        if self.args.should_save:
            seal(checkpoint)

    def _output(self, folder: str | Path | None = None) -> OutputFolder:
        """A folder to write into, by default the output directory, looked at before the first time.

        Raises:
            UserError: it must not be written to; see `OutputFolder.check`.
        """
        output = OutputFolder(folder or self.args.output_dir)
        if output.path.resolve() not in self._may_write:
            output.check(self.args.overwrite_output_dir, [self.reference.config._name_or_path or None])
            self._may_write.add(output.path.resolve())
        return output

    # ---- Hub ----

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Creates the repository, when the trainer is built: what cannot be pushed is better known before training."""
        try:
            super().init_hf_repo(*args, **kwargs)
            if self.is_world_process_zero():
                api = HfApi(token=kwargs.get("token") or self.args.hub_token)
                self.hub = look(api, self.hub_model_id, self.args.hub_revision, self.args.overwrite_output_dir)
        except UserError:
            raise
        except Exception as error:  # no login, no right to write, no connection: each its own type
            raise UserError(
                "--push_to_hub wants a Hub login that may write: run `hf auth login` or set HF_TOKEN, "
                f"and name the repository with --hub_model_id you/name. ({error})"
            ) from error

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Saves the drop-in and uploads the output directory: as `Trainer.push_to_hub`, but only what was written.

        Raises:
            UserError: the upload failed; what is on disk is whole, and the message says how to push it again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        revision = revision or self.args.hub_revision
        names = OutputFolder(self.args.output_dir).to_push
        try:
            self._finish_current_push()
            return upload_folder(
                repo_id=self.hub_model_id,
                folder_path=self.args.output_dir,
                commit_message=commit_message,
                token=token or self.args.hub_token,
                revision=revision,
                run_as_future=not blocking,
                allow_patterns=names,
                delete_patterns=self._to_delete(),
            )
        except Exception as error:  # of the connection, of the Hub: each its own type
            refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
            cure = "Log in with `hf auth login`, then push" if refused else "Push"
            command = ["hf", "upload", self.hub_model_id, self.args.output_dir, "."]
            command += [word for name in names for word in ("--include", name)]
            command += ["--revision", revision] if revision else []
            raise UserError(
                f"the push to {self.hub_model_id} failed ({first_line(error)}). Nothing is lost: the model is in "
                f"{self.args.output_dir}. {cure} it with: {shlex.join(command)}"
            ) from error

    def _to_delete(self) -> list[str] | None:
        return None if self.hub is None else self.hub.to_delete(OutputFolder(self.args.output_dir).manifest["weights"])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card of the model that was saved, by `safe_clip.write_model_card`; one of its weights stays.

        Args:
            **kwargs: `dataset`, the name of the training data, and `license`, `language` and `tags` of the card's
                metadata. What else `Trainer.create_model_card` takes, the card finds out itself.
        """
        told = ("dataset", "license", "language", "tags")
        facts = {name: kwargs[name] for name in told if kwargs.get(name) is not None}
        manifest = OutputFolder(self.args.output_dir).manifest
        if facts or None in (manifest["weights"], manifest.get("card")) or manifest["card"] != manifest["weights"]:
            write_model_card(self, **(self.card_facts | facts))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint, with the drop-in at the repository's root.

        The Trainer would put the adapter's files there, and `from_pretrained` would take them for
        the model ever after.
        """
        self._seal(Path(checkpoint_folder))
        strategy = self.args.hub_strategy
        if self.is_sharded and strategy != HubStrategy.END:
            self.save_model(_internal_call=True)  # for which all processes are wanted
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not self.is_sharded:
            self.save_model(_internal_call=True)
        self.create_model_card()
        common = {
            "repo_id": self.hub_model_id,
            "commit_message": f"Training in progress, step {self.state.global_step}",
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "run_as_future": True,
        }
        names = OutputFolder(self.args.output_dir).to_push
        jobs = [
            upload_folder(
                folder_path=self.args.output_dir, allow_patterns=names, delete_patterns=self._to_delete(), **common
            )
        ]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = strategy == HubStrategy.CHECKPOINT
            path = "last-checkpoint" if last else Path(checkpoint_folder).name
            kept = {"path_in_repo": path, "allow_patterns": CHECKPOINT_FILES}
            jobs.append(upload_folder(folder_path=checkpoint_folder, **kept, **common))
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)


def _save_adapter(model: PeftModel, folder: Path) -> None:
    """Saves the active adapter; PEFT saves all, and puts those not called "default" into folders of their own."""
    (name,) = model.active_adapters
    model.save_pretrained(folder, selected_adapters=[name])
    if name != "default":
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    _make_public(folder)


def _make_public(folder: Path) -> None:
    """Takes the original's path out of the configuration of adapters, and PEFT's empty card away."""
    for config in folder.rglob(CONFIG_NAME):
        settings = json.loads(config.read_text())
        settings["base_model_name_or_path"] = public_name(settings["base_model_name_or_path"])
        config.write_text(json.dumps(settings, indent=2))
        (folder / "README.md").unlink(missing_ok=True)
