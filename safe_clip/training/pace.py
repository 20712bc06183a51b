"""How long training goes on, and at what learning rate, where neither is set.

What a training does to a model depends on how far it goes: on the sum of the learning rate over the steps, times what
the update of an adapter is scaled by. So the learning rate follows from the number of steps, and few rows are gone
through more often.
"""

import copy
import math
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from ..data.streams import QuadrupletStream
from ..errors import UserError
from ..models.families import family_of
from .arguments import SafeCLIPTrainingArguments

EPOCHS, MOST_EPOCHS = 3, 30
STEPS = 500  # of a training at least, where MOST_EPOCHS make as many
DISTANCE = 2.4  # learning rate x scale of the adapter x steps, of which a schedule that falls to 0 goes half
# Of the learning rate x scale of the adapter, times the root of the number of layers, since each moves what comes out.
HIGHEST = 1e-2
# Without an adapter, in shares of that: a step moves what a matrix gives by as much for each of its inputs.
ALL_WEIGHTS = 16.0  # / width
USUAL_SCALE = 2.0  # of the LoRA of `lora_config()`, and of adapters that do not tell


def planned_steps(args: SafeCLIPTrainingArguments, count: int) -> int:
    """Optimizer steps on so many rows.

    Where neither steps nor epochs are set, these are `EPOCHS`, or as many, up to `MOST_EPOCHS`, as make `STEPS`.

    Raises:
        UserError: there are none.
    """
    if not count:
        raise UserError("there is no training row; nothing can be trained.")
    size, devices = args.train_batch_size, args.world_size
    if args.dataloader_drop_last and count < size * devices:
        raise UserError(
            f"--dataloader_drop_last leaves no batch: there are {count:,} rows, and a step takes {size * devices:,} "
            f"({size:,} on each of {devices} devices). Leave it out, or lower --per_device_train_batch_size."
        )
    if args.max_steps > 0:
        return args.max_steps
    batches = (count // (size * devices)) if args.dataloader_drop_last else math.ceil(count / (size * devices))
    once = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    if args.num_train_epochs is None:
        return min(max(EPOCHS * once, STEPS), MOST_EPOCHS * once)
    return math.ceil(args.num_train_epochs * once)


def learning_rate(model: PreTrainedModel | PeftModel, steps: int) -> float:
    """The highest of a training.

    Args:
        model: what is trained.
        steps: of training.
    """
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    towers, scale = [tower.config_of(config) for tower in family_of(config).towers.values()], USUAL_SCALE
    layers, width = (max(getattr(each, name) for each in towers) for name in ("num_hidden_layers", "hidden_size"))
    rate = min(DISTANCE / steps, HIGHEST / math.sqrt(layers))
    if not isinstance(model, PeftModel):
        rate *= ALL_WEIGHTS / width
    elif (rank := getattr(model.active_peft_config, "r", None)) and hasattr(model.active_peft_config, "lora_alpha"):
        root = getattr(model.active_peft_config, "use_rslora", False)
        scale = model.active_peft_config.lora_alpha / (math.sqrt(rank) if root else rank)
    return float(f"{rate / scale:.2g}")


def paced(args: SafeCLIPTrainingArguments, model: PreTrainedModel | PeftModel, rows: Any) -> SafeCLIPTrainingArguments:
    """The settings, or, where steps or learning rate are not set, a copy in which they are.

    Args:
        args: the settings.
        model: what is trained.
        rows: the training rows, quadruplets or a stream of them; or `None`.
    """
    if args.learning_rate is not None and args.num_train_epochs is not None:
        return args
    args = copy.copy(args)
    sized = rows is not None and not isinstance(rows, QuadrupletStream)
    steps = planned_steps(args, len(rows)) if sized else args.max_steps if args.max_steps > 0 else STEPS
    if args.num_train_epochs is None:
        args.num_train_epochs = EPOCHS  # which the Trainer wants to know even where it goes by steps
        args.max_steps = steps if sized else args.max_steps
    if args.learning_rate is None:
        args.learning_rate = learning_rate(model, steps)
    return args
