"""A model and its original, and the data that they are compared on: the settings that eval and generate share."""

import json
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..data.arguments import DataArguments
from ..errors import UserError
from ..ranges import COUNT, SHARE, Range, check_ranges

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..evaluation.run import Subject

DEFAULT_MODEL = Path("safe-clip")  # where training leaves what it made
TRAINING_ARGUMENTS = "training_args.json"
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
MODELS = "model model_revision baseline baseline_revision strength"  # a group of `--help`
DATA = (
    "dataset dataset_config splits max_samples column_mapping safe_images unsafe_images missing_images caption_lists "
    "on_bad_row max_bad_fraction streaming sides_are_right"
)


@dataclass
class ModelArguments(DataArguments):
    """The model, its original, the data that they are compared on, and how they embed."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "The safe model: a Hub id, a folder, or 'demo' for the bundled demo model. By default what "
            "`safe-clip train` left in safe-clip/, or else the bundled demo model."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    baseline: str | None = field(default=None, metadata={"help": "The original model, to compare with."})
    baseline_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a baseline on the Hub."}
    )
    batch_size: int = field(default=128, metadata={"help": "Items that each process embeds at a time, at most 256."})
    precision: str = field(
        default="auto", metadata={"help": "What is computed in: auto, float32, bfloat16 or float16."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.choose("precision", PRECISIONS)
        check_ranges(self, {"batch_size": COUNT})
        if self.model is None and self.baseline is None:
            trained = (DEFAULT_MODEL / "config.json").is_file()
            if trained and not of_the_demo_model(DEFAULT_MODEL):
                raise UserError(
                    f"{DEFAULT_MODEL}/ was not trained from the bundled demo model: name it, what it was trained "
                    f"from and its data with --model {DEFAULT_MODEL} --baseline ID --dataset ID."
                )
            self.model, self.baseline = (str(DEFAULT_MODEL), "demo") if trained else ("demo", None)
        elif self.model is None:
            raise UserError("--baseline requires a --model to compare it with.")

    def choose(self, name: str, known: list[str]) -> None:
        """Raises `UserError` for a value of a setting that is not among the known ones."""
        values = getattr(self, name)
        for value in values if isinstance(values, list) else [values]:
            if value not in known:
                raise UserError(f"--{name} {value}: it must be among {', '.join(known)}.")


@dataclass
class ComparedArguments(ModelArguments):
    """How strong the model is, what it is measured on, and where results go."""

    strength: float = field(
        default=1.0, metadata={"help": "Use weights between those of the baseline (0) and of the model (1)."}
    )
    splits: list[str] | None = field(
        default=None, metadata={"help": "The splits that are used. By default all but train and validation."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "At most so many rows of each split."})
    show_unsafe: bool = field(
        default=False, metadata={"help": "Show unsafe images and captions in what is written; hidden by default."}
    )
    output_dir: str = field(default="evaluation", metadata={"help": "The folder that results are written into."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write even if files of other programs are in the way; these are moved into replaced/."},
    )

    COMPARED_RANGES: ClassVar[dict[str, Range]] = {"strength": SHARE, "max_samples": COUNT}

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, self.COMPARED_RANGES)
        if self.baseline is None and self.strength != 1:
            raise UserError("--strength lies between two models: name the original model with --baseline.")


def of_the_demo_model(folder: Path) -> bool:
    """Whether a model has the bundled demo model's shape."""
    from transformers import PreTrainedConfig

    from ..models.families import CLIP
    from ..models.load import resolve_model

    if PreTrainedConfig.get_config_dict(folder)[0].get("model_type") != CLIP.config.model_type:
        return False
    sizes = [
        [getattr(tower, name) for tower in (config.text_config, config.vision_config) for name in SHAPE]
        for config in map(CLIP.config.from_pretrained, (folder, resolve_model("demo")))
    ]
    return sizes[0] == sizes[1]


def for_frozen_galleries(name: str, revision: str | None) -> bool:
    """Whether a model says that it was trained so, in its `training_args.json`."""
    return training_arguments(name, revision).get("frozen_gallery") is True


def training_arguments(name: str, revision: str | None) -> dict[str, Any]:
    """What a model says of its training in its `training_args.json`; nothing where it does not."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    from ..models.load import resolve_model
    from ..models.weights import find_file

    try:
        found = find_file(resolve_model(name), TRAINING_ARGUMENTS, revision=revision)
        said = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    except LocalEntryNotFoundError:  # offline, where the model itself may be at hand
        said = {}
        print(
            f"warning: whether {name} was trained with --frozen_gallery is not known ({TRAINING_ARGUMENTS} is not at "
            "hand): name the flag if it was.",
            file=sys.stderr,
        )
    except Exception:  # what is wrong with the model is said where it is opened
        return {}
    return said if isinstance(said, dict) else {}


def sharing() -> "Accelerator":
    """Who shares the work, and waits for long: what one process embeds or draws of a large set can take hours."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    # Without a device, accelerate has processes work alone unless it is told that they are on CPUs.
    cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))])


def begin(args: ComparedArguments, data: str) -> "tuple[Subject, Subject | None, Accelerator]":
    """The model, its original if there is one, and who shares the work; says what is measured, on what data."""
    from ..evaluation.run import Subject

    baseline = Subject(args.baseline, args.baseline_revision) if args.baseline else None
    model = Subject(args.model, args.model_revision, baseline, args.strength)
    accelerator = sharing()
    say = accelerator.print
    say(f"Measuring {model.label}" + (f" against {args.baseline}" if args.baseline else "") + f" on {data}.")
    if accelerator.num_processes > 1:
        say(f"Shared among {accelerator.num_processes} processes.")
    return model, baseline, accelerator
