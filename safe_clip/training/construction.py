"""What a trainer is constructed with, checked before anything slow."""

import inspect
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset, IterableDataset, IterableDatasetDict
from peft import PeftConfig, PeftModel, get_peft_model
from torch.distributed.fsdp import StateDictType
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, ProcessorMixin, Trainer, TrainerCallback, set_seed

from ..config import suggest
from ..data.augmentation import RandomCrop
from ..data.captions import check_captions
from ..data.collator import QuadrupletCollator, check_sees
from ..data.rows import QuadrupletRows
from ..data.streams import QuadrupletStream
from ..embedding.embedder import Embedder
from ..errors import UserError, first_line
from ..models.families import PROCESSOR_NAMES, family_of
from ..models.load import check_processor, load_clip, load_processor
from ..models.preparation import accept_sharding, check_adapters, lora_config, prepare_model, train_towers
from ..models.reference import FrozenReference
from ..objectives.base import Objective
from ..objectives.hidden_states import HIDDEN_STATE_NEEDS
from ..store.folders import folder_of
from .arguments import SafeCLIPTrainingArguments
from .plan import warn_of_terms_without_rows

LENGTHS = 8  # of captions are multiples of this where each new one would have to be compiled
FUNCTIONS = ("compute_metrics", "data_collator", "preprocess_logits_for_metrics")
PLACES = {
    "model_init": f"pass the model as `model`, its {PROCESSOR_NAMES} as processing_class",
    "tokenizer": f"pass the model as `model`, its {PROCESSOR_NAMES} as processing_class",
    "image_processor": f"pass the model as `model`, its {PROCESSOR_NAMES} as processing_class",
    "compute_loss_func": "the loss is the objective's, which objective, loss_weights and objective_options set",
}


def check_given(peft_config: Any, given: Mapping[str, Any]) -> None:
    """Raises `UserError` for what is no adapter of a CLIP, or what `Trainer` would not take or fail on much later.

    Args:
        peft_config: as given to the trainer.
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
    _check_adapter(peft_config)


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


def _check_adapter(peft_config: Any) -> None:
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


def open_model(
    model: str | PathLike | PreTrainedModel | PeftModel | None,
    processor: ProcessorMixin | None,
    peft_config: PeftConfig | str | None,
    args: SafeCLIPTrainingArguments,
) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin, torch.dtype]:
    """What is trained: the model with its adapter, its processor, and the type in which it is to be saved.

    Args:
        model, processor, peft_config: as given to the trainer.
        args: whose seed a new adapter draws its weights from.

    Raises:
        UserError: the model or its processor cannot be used, or nothing of the model is trainable.
    """
    model = load_clip(str(model)) if isinstance(model, str | PathLike) else model
    model, dtype = prepare_model(model)
    name = model.config._name_or_path
    if processor is None and not name:
        raise UserError(f"the model does not say where it came from; pass its {PROCESSOR_NAMES} as processing_class.")
    processor = processor or load_processor(name)
    check_processor(model, processor)
    # The objective fixes the scale; left trainable it would get no gradient, which DDP refuses.
    for scalar in family_of(model).scalars:
        getattr(model, scalar).requires_grad_(False)
    if peft_config is not None and not isinstance(model, PeftModel):
        set_seed(args.seed)
        model = with_adapter(model, peft_config)
    if isinstance(model, PeftModel):
        check_adapters(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("no weight of the model is trainable; load an adapter with is_trainable=True.")
    if dtype != torch.float32 and args.process_index == 0 and not args.disable_tqdm:
        print(f"The model is in {dtype}: it is trained in float32, and saved as it was.", flush=True)
    return model, processor, dtype


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


def train_what_rows_show(
    model: PreTrainedModel | PeftModel, rows: Any, args: SafeCLIPTrainingArguments, processor: ProcessorMixin
) -> bool:
    """Freezes a tower that no training row has items for.

    Args:
        model: with its adapter.
        rows: of the training, or `None`.
        args: which are told where processes have to look for weights without a gradient.
        processor: the model's.

    Raises:
        UserError: there are images, and the model sees none.

    Returns:
        Whether a process may be dealt rows of one modality alone.
    """
    if rows is None or rows.layout is None:
        return False
    present, streamed = rows.layout.present, isinstance(rows, QuadrupletStream)
    text, image = present[:, :2].any(axis=1), present[:, 2:].any(axis=1)
    if image.any():
        check_sees(processor)
    train_towers(model, bool(text.any()), bool(image.any()))
    mixed = bool(text.any() and image.any() and (streamed or not (text & image).all()))
    if mixed and args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True
    return mixed


def make_objective(args: SafeCLIPTrainingArguments, reference: FrozenReference) -> Objective:
    """The objective, for a model's own factor before cosines, without hidden states that no generator reads."""
    unread = [name for name, tower in reference.family.towers.items() if tower.example is None]
    left_out = [term for term in HIDDEN_STATE_NEEDS if any(f"_{name}_" in term for name in unread)]
    return args.make_objective(reference.logit_scale, reference.logit_bias, left_out)


def count_term_rows(objective: Objective, rows: Any, args: SafeCLIPTrainingArguments) -> dict[str, int] | None:
    """How many training rows have the items of each term, where that is known; warns of terms that none has."""
    if rows is None or rows.layout is None:
        return None
    counts = objective.term_rows(rows.layout)
    if args.frozen_gallery and not (counts.get("redirection_text_ranking") or counts.get("redirection_image_ranking")):
        raise UserError(
            "--frozen_gallery is for searches of images by captions and of captions by images, and no term ranks "
            "unsafe ones so: the training rows lack one of the two, or the weights of both terms are 0."
        )
    if args.process_index == 0:
        warn_of_terms_without_rows(objective, rows.layout, getattr(rows, "columns", None))
    return None if isinstance(rows, QuadrupletStream) else counts


def make_embedder(
    reference: FrozenReference, processor: ProcessorMixin, args: SafeCLIPTrainingArguments, accelerator: Accelerator
) -> Embedder:
    """What embeds with the original, in the precision of training."""
    precision = accelerator.mixed_precision if accelerator.native_amp else "no"  # as under DeepSpeed
    return Embedder(
        reference,
        processor,
        "The original",
        args.eval_batch_size,
        {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32"),
        folder_of("reference_embeddings"),
        accelerator,
        args.dataloader_num_workers,
        progress=args.process_index == 0 and not args.disable_tqdm,
    )


def make_collator(
    processor: ProcessorMixin,
    model: PreTrainedModel | PeftModel,
    objective: Objective | None = None,
    compiled: bool = False,
) -> QuadrupletCollator:
    """Makes batches as a model and an objective read them; of few lengths where each has to be compiled."""
    family = family_of(model)
    max_length = family.max_length(model.config)
    multiple = family.padded_length(model.config) or (LENGTHS if compiled else 1)
    if objective is not None and any("_text_" in name for name in objective.hidden_state_terms):
        multiple = max_length  # diffusion models read the states of all the padding
    return QuadrupletCollator(processor, max_length, multiple)


def check_all_captions(
    rows: Any, eval_rows: Any, collator: QuadrupletCollator, args: SafeCLIPTrainingArguments
) -> None:
    """Warns, in one process, of captions of training or evaluation that the model does not read to their end."""
    if args.process_index != 0:
        return
    evaluated = eval_rows.values() if isinstance(eval_rows, dict) else (eval_rows,)
    tables = [each.rows for each in (rows, *evaluated) if each is not None]
    tables = [table for table in tables if isinstance(table, Dataset)]
    check_captions(tables, collator.processor.tokenizer, collator.max_length)


def as_trained(rows: Any, args: Any) -> QuadrupletRows | QuadrupletStream | None:
    """Rows as training reads them; settings that are none are told later."""
    if isinstance(rows, IterableDataset):
        rows = QuadrupletStream(rows, getattr(args, "seed", 0))
    elif rows is not None and not isinstance(rows, QuadrupletRows | QuadrupletStream):
        rows = QuadrupletRows(rows)
    if rows is not None and getattr(args, "random_crop", None) is not None:
        rows.augment = RandomCrop(args.random_crop)
    return rows


def as_evaluated(rows: Any, name: str | None = None, one: bool = False) -> Any:
    """Rows as evaluation reads them, of each name where there are several.

    Args:
        rows: as given to the trainer.
        name: one that must be among the names.
        one: whether it must be one data set.

    Raises:
        UserError: they are a stream, or no rows, or there is none, or none of the name.
    """
    if one and (rows is None or isinstance(rows, dict)):
        named = f" such as '{next(iter(rows))}'" if rows else ""
        raise UserError(f"one data set is required here, not {type(rows).__name__}; name one{named}.")
    names = rows if isinstance(rows, dict) else {}
    if name is not None and name not in names:
        raise UserError(f"eval_dataset has no '{name}' among [{', '.join(names)}].")
    if rows is None:
        return None
    if isinstance(rows, IterableDataset | IterableDatasetDict | QuadrupletStream):
        raise UserError(
            "a stream has no end that evaluation could rely on; take its first rows, such as "
            "Dataset.from_list(list(stream.take(1000)), features=stream.features)."
        )
    if isinstance(rows, dict) and rows:
        return {name: as_evaluated(each) for name, each in rows.items()}
    if not isinstance(rows, QuadrupletRows) and not isinstance(rows, dict):
        rows = QuadrupletRows(rows)
    if not len(rows):
        raise UserError("there is no row to evaluate on; pass some.")
    return rows


def prepare_sharding(model: PreTrainedModel | PeftModel, state: AcceleratorState, mixed: bool, scaled: bool) -> None:
    """Makes a model ready for FSDP2 or DeepSpeed's ZeRO-2, or raises `UserError` for what they cannot do.

    Args:
        model: what is trained.
        state: the accelerator's, with one of their plugins.
        mixed: whether a process may be dealt rows of one modality, whose other tower the others would wait for.
        scaled: whether the update is scaled after training.
    """
    plugin = getattr(state, "fsdp_plugin", None)
    how = "DeepSpeed" if plugin is None else "FSDP"
    if plugin is not None and (plugin.fsdp_version != 2 or plugin.state_dict_type != StateDictType.FULL_STATE_DICT):
        raise UserError(
            "FSDP requires fsdp_version 2 and FULL_STATE_DICT checkpoints, as in the recipe accelerate/fsdp2.yaml."
        )
    if getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", None) == 3:
        raise UserError(
            "DeepSpeed's ZeRO-3 leaves no weights to save; use ZeRO-2, or the recipe accelerate/fsdp2.yaml."
        )
    if mixed:
        raise UserError(f"{how} requires rows that have all items, or a single modality; others train under DDP.")
    if scaled and not isinstance(model, PeftModel):
        raise UserError(f"--strength with --full_finetuning requires DDP; under {how}, use LoRA or export it later.")
    accept_sharding(model.get_base_model() if isinstance(model, PeftModel) else model)
