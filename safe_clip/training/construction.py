"""What a trainer is constructed with, checked before anything slow."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ..config import suggest
from ..errors import UserError, first_line
from ..models.family import PROCESSOR_NAMES
from ..models.preparation import lora_config

FUNCTIONS = ("compute_metrics", "data_collator", "preprocess_logits_for_metrics")
PLACES = {
    "model_init": f"pass the model as `model`, its {PROCESSOR_NAMES} as processing_class",
    "tokenizer": f"pass the model as `model`, its {PROCESSOR_NAMES} as processing_class",
    "image_processor": f"pass the model as `model`, its {PROCESSOR_NAMES} as processing_class",
    "compute_loss_func": "the loss is the objective's, which objective, loss_weights and objective_options set",
}


def check_given(given: Mapping[str, Any]) -> None:
    """Raises `UserError` for what `Trainer` would not take, or would fail on much later.

    Args:
        given: arguments of `Trainer` by name.
    """
    known = [name for name in inspect.signature(Trainer.__init__).parameters if name not in PLACES]
    for name, value in given.items():
        if name in PLACES and (value is not None or name != "compute_loss_func"):
            raise UserError(f"{name} is not supported: {PLACES[name]}.")
        if name not in known and name not in PLACES:
            raise UserError(f"SafeCLIPTrainer takes no '{name}'.{suggest(name, known)}")
        if name in FUNCTIONS and value is not None and not callable(value):
            raise UserError(f"{name} is {value!r}; it must be a function.")
    callbacks = given.get("callbacks")
    if not isinstance(callbacks, list | None):
        raise UserError(f"callbacks is {callbacks!r}; it must be a list of TrainerCallback.")
    for each in callbacks or ():
        check_callback(each)
    _check_pair(given, "optimizers", (torch.optim.Optimizer, "an optimizer"), (LRScheduler, "its schedule"))
    _check_pair(given, "optimizer_cls_and_kwargs", (type, "an optimizer's class"), (dict, "a dictionary for it"))


def check_callback(callback: Any) -> None:
    """Raises `UserError` for what is neither a `TrainerCallback` nor a class of one."""
    kind = callback if isinstance(callback, type) else type(callback)
    if not issubclass(kind, TrainerCallback):
        raise UserError(f"callbacks holds {callback!r}, which is no TrainerCallback.")


def _check_pair(given: Mapping[str, Any], name: str, *parts: tuple[type, str]) -> None:
    value = given.get(name)
    if value is None:
        return
    fits = isinstance(value, tuple | list) and len(value) == len(parts)
    if not fits or not all(
        each is None or isinstance(each, kind) or hasattr(each, "step")
        for each, (kind, _) in zip(value, parts, strict=True)
    ):
        raise UserError(f"{name} is {value!r}; it must be {' and '.join(words for _, words in parts)}, as a tuple.")


def check_adapter(peft_config: Any) -> None:
    """Raises `UserError` for what is no adapter of a CLIP."""
    if peft_config is None or peft_config == "default":
        return
    if not isinstance(peft_config, PeftConfig):
        raise UserError(
            f"peft_config is {peft_config!r}; it must be a configuration of peft, such as lora_config(), or None to "
            "train all weights."
        )
    task = getattr(peft_config.task_type, "value", peft_config.task_type)
    if task not in (None, "FEATURE_EXTRACTION"):
        raise UserError(f"peft_config has the task_type {task}, which is not what a CLIP does; leave it out.")


def with_adapter(model: PreTrainedModel, peft_config: PeftConfig | str) -> PeftModel:
    """A model with a new adapter in its layers.

    Raises:
        UserError: the adapter does not fit the model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft's own calls into transformers
            return get_peft_model(model, lora_config(model=model) if peft_config == "default" else peft_config)
    except Exception as error:  # each kind of adapter has errors of its own
        raise UserError(f"peft_config does not fit the model: {first_line(error)}") from error
