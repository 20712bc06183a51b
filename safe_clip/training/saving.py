"""What a trained model leaves on disk: the model that others load, its adapter, the settings."""

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from ..errors import UserError
from ..models.drop_in import save_drop_in
from ..models.families import family_of
from ..models.load import public_name
from ..names import redact_paths
from ..outputs import OutputFolder
from ..store.writing import make_public_modes

ADAPTER_DIR = "adapter"  # of a saved model


def whole_model(
    accelerator: Accelerator, model: nn.Module, args: TrainingArguments
) -> PreTrainedModel | PeftModel | None:
    """The model as one process has it, on those that save; shards are gathered, for which all have to call this."""
    model = accelerator.unwrap_model(model, keep_torch_compile=False)
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return model if args.should_save else None
    weights = accelerator.get_state_dict(model)  # on the first process alone
    if args.process_index != 0:
        return None
    with torch.random.fork_rng(devices=[]):
        whole = family_of(model).class_of(model.config)(copy.deepcopy(model.config))
        if isinstance(model, PeftModel):
            whole = PeftModel(whole, copy.deepcopy(model.active_peft_config), model.active_adapter)
    whole.load_state_dict(weights, assign=True)
    return whole.eval()


def save_merged(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    output: OutputFolder,
    dtype: torch.dtype,
    args: TrainingArguments,
) -> None:
    """Saves the drop-in, an adapter on its own under `adapter/`, and the settings, in place of what is there.

    Args:
        model: all of it.
        processor: of the model.
        output: where.
        dtype: of the weights that are saved.
        args: the trainer's.
    """
    with output.staged() as folder:
        if isinstance(model, PeftModel):
            _save_adapter(model, folder / ADAPTER_DIR)
            # A merged copy, since merging and unmerging would leave rounding errors in the original.
            model = copy.deepcopy(model).merge_and_unload()
        save_drop_in(model, processor, folder, dtype)
        save_settings(args, folder)


def save_settings(args: TrainingArguments, folder: Path) -> None:
    """Saves the settings as JSON, with tokens masked, in place of a pickle that holds them."""
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    (folder / "training_args.json").write_text(json.dumps(redact_paths(args.to_dict()), indent=2))


def make_public(folder: Path) -> None:
    """Takes the original's path out of the configuration of adapters, and PEFT's empty card away; files get the mode
    that the umask says."""
    for config in folder.rglob(CONFIG_NAME):
        settings = json.loads(config.read_text())
        settings["base_model_name_or_path"] = public_name(settings["base_model_name_or_path"])
        config.write_text(json.dumps(settings, indent=2))
        (folder / "README.md").unlink(missing_ok=True)
    make_public_modes(folder.glob("*.safetensors"))


@contextlib.contextmanager
def explained(folder: str | Path) -> Iterator[None]:
    """Raises `UserError` where a folder cannot be written to its end: a full disk, no right to write."""
    try:
        with warnings.catch_warnings():
            # Of adapters, since PEFT knows no model by the name of a pipeline's part.
            warnings.filterwarnings("ignore", "Could not find a config file in .*:text_encoder")
            yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be written ({error}). Make room there, or choose another --output_dir; "
            "--resume_from_checkpoint goes on from a checkpoint, if there is one."
        ) from error


def _save_adapter(model: PeftModel, folder: Path) -> None:
    """Saves the active adapter; PEFT saves all, and puts those not called "default" into folders of their own."""
    (name,) = model.active_adapters
    model.save_pretrained(folder, selected_adapters=[name])
    if name != "default":
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    make_public(folder)
