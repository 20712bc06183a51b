"""Training a CLIP to be safe."""

import contextlib
import itertools
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, PreTrainedModel, ProcessorMixin, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import (
    TrainOutput,
)

from ..data.augmentation import RandomCrop
from ..data.captions import check_captions
from ..data.collator import QuadrupletCollator
from ..data.pixels import cache_size, has_room, pixel_shape
from ..data.rows import QuadrupletRows
from ..data.sampling import SimilarLengths
from ..data.streams import QuadrupletStream, StreamLoader
from ..errors import UserError
from ..items import Quadruplets
from ..models.family import PROCESSOR_NAMES, family_of
from ..models.load import check_processor, load_clip, load_processor
from ..models.patches import casts_kept, training_patches
from ..models.preparation import prepare_model, train_towers
from ..models.reference import FrozenReference
from ..objectives import build_objective
from .arguments import SafeCLIPTrainingArguments
from .construction import check_adapter, check_callback, check_given, with_adapter
from .evaluating import EvaluationMixin, as_evaluated
from .hub import PublishingMixin
from .plan import Moved, check_plan, check_trained, warn_of_unfed
from .reference_cache import ReferenceEmbedder, table_size
from .resuming import ResumingMixin, step_at, step_of
from .sharding import ShardingMixin
from .sides import check_sides
from .step import ContrastiveStep, Reader
from .targets import Targets

LENGTHS = 8  # of captions are multiples of this where each new one would have to be compiled


class SafeCLIPTrainer(EvaluationMixin, ShardingMixin, PublishingMixin, ResumingMixin, Trainer):
    """Fine-tunes a CLIP with a safety objective; everything else is `transformers.Trainer`'s.

    Checkpoints hold the adapter and the optimizer, for resuming. `save_model()` and the Hub
    repository get the drop-in: a plain `CLIPModel` with the adapter merged into its weights.

    Args:
        model: `"demo"` for the embedded base, a Hub id, a folder, a `CLIPModel`, or a `PeftModel` of one. It is trained
            in float32, and saved in the type that it has.
        args: the settings.
        train_dataset, eval_dataset: rows with some of the columns `safe_caption`, `safe_image`,
            `unsafe_caption`, `unsafe_image`, as for `QuadrupletRows`; a dictionary of several is allowed for
            evaluation. Training rows must read the same each time: the original embeds them once, before training.
            A `datasets.IterableDataset`, or a `QuadrupletStream` of one, is embedded as it comes.
        processing_class: the model's `CLIPProcessor`; loaded from where the model came by default.
        peft_config: the adapter to train: by default the LoRA of `lora_config()`; `None` for full fine-tuning.
        **kwargs: `compute_metrics`, `callbacks`, `optimizers` and so on, as in `Trainer`.
            `compute_metrics` gets the embeddings of the evaluation rows as `predictions`, in the
            order of `safe_clip.items.ITEMS`, NaN for missing items.

    Raises:
        UserError: the model, its processor or the data cannot be used.

    Example:
        >>> trainer = SafeCLIPTrainer("openai/clip-vit-large-patch14", args, train_dataset=rows)
        >>> trainer.train()
        >>> trainer.save_model("safe-clip")
    """

    # The loss is a mean over the batch, so the Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: str | PathLike | PreTrainedModel | PeftModel | None = None,
        args: SafeCLIPTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: PeftConfig | Literal["default"] | None = "default",
        **kwargs,
    ):
        check_given(kwargs)
        check_adapter(peft_config)
        args = SafeCLIPTrainingArguments() if args is None else args
        eval_dataset = as_evaluated(eval_dataset)
        if isinstance(train_dataset, IterableDataset):
            train_dataset = QuadrupletStream(train_dataset, getattr(args, "seed", 0))
        streamed = isinstance(train_dataset, QuadrupletStream)
        if train_dataset is not None and not streamed and not isinstance(train_dataset, QuadrupletRows):
            train_dataset = QuadrupletRows(train_dataset)
        check_plan(args, train_dataset, eval_dataset)
        model = load_clip(str(model)) if isinstance(model, str | PathLike) else model
        model, self.stored_dtype = prepare_model(model)
        name = model.config._name_or_path
        if processing_class is None and not name:
            raise UserError(
                f"the model does not say where it came from; pass its {PROCESSOR_NAMES} as processing_class."
            )
        processing_class = processing_class or load_processor(name)
        check_processor(model, processing_class)
        family = family_of(model)
        max_length = family.max_length(model.config)
        if train_dataset is not None and args.random_crop is not None:
            train_dataset.augment = RandomCrop(args.random_crop)

        # The objective fixes the scale; left trainable it would get no gradient, which DDP refuses.
        for scalar in family.scalars:
            getattr(model, scalar).requires_grad_(False)
        if peft_config is not None and not isinstance(model, PeftModel):
            set_seed(args.seed)  # adapters draw their weights
            model = with_adapter(model, peft_config)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("no weight of the model is trainable; load an adapter with is_trainable=True.")
        layout, mixed = None if train_dataset is None else train_dataset.layout, False
        if layout is not None:
            text, image = layout.present[:, :2].any(axis=1), layout.present[:, 2:].any(axis=1)
            train_towers(model, bool(text.any()), bool(image.any()))
            mixed = bool(text.any() and image.any() and (streamed or not (text & image).all()))
            if mixed and args.ddp_find_unused_parameters is None:
                args.ddp_find_unused_parameters = True  # a process may be dealt rows of one modality
        self.patches = training_patches(model, args.device)  # entered wherever the model is run, and left afterwards
        with self.patches:  # which a copy keeps
            self.reference = FrozenReference(model)
        if args.strength != 1:
            self.reference.scalable(model)  # known before training, not after
        self.objective = build_objective(
            args.objective, args.logit_scale or self.reference.logit_scale, args.term_weights, args.objective_options
        )
        self._may_write: set[Path] = set()  # folders that were looked at
        self.term_rows = None  # how many quadruplets of the training data have the items of each term
        if layout is not None:
            counts = self.objective.term_rows(layout)
            self.term_rows = None if streamed else counts

        if args.process_index == 0:
            if layout is not None:
                warn_of_unfed(self.objective, layout, getattr(train_dataset, "columns", None))
            evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,)
            tables = [data.rows for data in (train_dataset, *evaluated) if data is not None]
            tables = [table for table in tables if isinstance(table, Dataset)]
            check_captions(tables, processing_class.tokenizer, max_length)

        multiple = max(LENGTHS if args.torch_compile else 1, family.pad_to_multiple_of(model.config))
        if any("_text_" in name for name in self.objective.hidden_state_terms):
            multiple = max_length  # diffusion models read the states of all the padding
        super().__init__(
            model,
            args,
            data_collator=kwargs.pop("data_collator", QuadrupletCollator(processing_class, max_length, multiple)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        # `PeftModel.forward` takes **kwargs, which older Trainers read as a loss that is normalised already.
        self.model_accepts_loss_kwargs = False
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self._prepare_sharding(mixed)
        if self.stored_dtype != torch.float32:
            self._say(f"The model is in {self.stored_dtype}: it is trained in float32, and saved as it was.")
        self._sides_checked = False
        self.resumed_from = 0  # the step at which the last training began
        self.targets = Targets(self.reference, self.objective, self.accelerator)
        self.step = ContrastiveStep(self.objective, self.targets, self.accelerator, self.not_finite)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Trains.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or `"last"` (or `True`) for the newest of this run in
                `output_dir`. A run that is at its end is left as it is.

        Raises:
            UserError: there is no such checkpoint, or it is of another run (other data, model, objective, adapter or
                seed); or a row cannot be used, or the sides look swapped, or the loss is not finite; or the output
                directory holds what others wrote, or another run writes there.
        """
        if self.train_dataset is None:
            raise UserError("train() requires a train_dataset, which this trainer was not given.")
        with self.patches, self._as_run(resume_from_checkpoint) as checkpoint:
            return self._train(checkpoint, *args, **kwargs)

    def _train(self, checkpoint: Path | None, *args, **kwargs) -> TrainOutput:
        if self.place_model_on_device:  # which comes later under --bf16_full_eval
            self._move_model_to_device(self.model, self.args.device)
        output = self._finished(checkpoint, self._all_steps()) if checkpoint else None
        self.nothing_left = output is not None
        if output is None:
            output = self._train_on(checkpoint, *args, **kwargs)
            self._note_end(self.state.max_steps)
        if self.args.strength != 1:
            self.reference.scale_update(self.accelerator.unwrap_model(self.model), self.args.strength)
        return output

    def _train_on(self, checkpoint: Path | None, *args, **kwargs) -> TrainOutput:
        """Trains from the beginning, or from a checkpoint."""
        self.check_sides()
        self._cache_pictures()
        self.targets.prepare(
            self.train_dataset,
            self.data_collator,
            self.args.eval_batch_size,
            self.args.dataloader_num_workers,
            progress=not self.args.disable_tqdm,
            cache=self._may_cache_reference(),
        )
        self.resumed_from = step_at(checkpoint) if checkpoint else 0
        self.args.ignore_data_skip = isinstance(self.train_dataset, QuadrupletStream)  # its loader does that
        set_seed(self.args.seed)  # whatever was drawn since the trainer was built, a seed trains the same weights
        self.step.trained.clear()
        moved = Moved(self.model) if Moved.knowable(self.model) and not self.is_sharded else None
        try:
            with contextlib.nullcontext() if self.is_sharded else casts_kept(self.model):
                output = super().train(checkpoint and str(checkpoint), *args, **kwargs)
        except Exception as error:
            # Closes progress bars and loggers, so that the error is the last thing shown and nothing logged is
            # lost; before training began there is nothing to close.
            with contextlib.suppress(Exception):
                self.callback_handler.on_train_end(self.args, self.state, self.control)
            if isinstance(error, KeyError) and "metric_for_best_model" in str(error):
                raise UserError(f"--metric_for_best_model: {error.args[0]}") from error
            raise
        check_trained(self, moved)
        return output

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """As `Trainer.add_callback`."""
        check_callback(callback)
        super().add_callback(callback)

    def hyperparameter_search(self, *args, **kwargs) -> NoReturn:
        """Raises `UserError`: it makes a model anew for each trial, which a trainer of one model does not."""
        raise UserError("hyperparameter_search is not supported: make a SafeCLIPTrainer for each trial.")

    def check_sides(self) -> None:
        """Asks the training rows and the original, once, whether the safe and the unsafe side are swapped.

        Raises:
            UserError: they look so, and `sides_are_right` is not set.
        """
        if self.args.sides_are_right or self.train_dataset is None or self._sides_checked:
            return
        self._move_model_to_device(self.model, self.args.device)
        family, config = self.reference.family, self.reference.config
        lengths = family.max_length(config), family.pad_to_multiple_of(config)
        collator = QuadrupletCollator(self.processing_class, *lengths)
        embed = ReferenceEmbedder(self.reference, self.accelerator)
        progress = self.args.process_index == 0 and not self.args.disable_tqdm
        with self.patches:
            check_sides(self.train_dataset, embed, collator, self.args.eval_batch_size, progress)
        self.reference.put_away()
        self._sides_checked = True

    def _cache_pictures(self) -> None:
        """Has the training pictures decoded once, where that is asked for or costs nobody anything."""
        rows, image_processor = self.train_dataset, self.processing_class.image_processor
        wanted, streamed = self.args.cache_pictures, isinstance(rows, QuadrupletStream)
        whole = not streamed and rows.layout is not None and rows.augment is None
        shape = pixel_shape(image_processor) if wanted != "off" and whole else None
        if wanted == "on" and shape is None:
            raise UserError(
                "--cache_pictures on wants rows of a data set, no stream, no --random_crop, and an image processor "
                "whose pixels are levels from 0 to 255."
            )
        if shape is None or (wanted == "auto" and not has_room(cache_size(rows.rows, shape))):
            return
        progress = not self.args.disable_tqdm and self.args.process_index == 0
        rows.cache_pictures(image_processor, self.args.dataloader_num_workers, progress, self.accelerator)

    def _may_cache_reference(self) -> bool:
        """Whether the original's embeddings of the training rows may be computed once; says so if not."""
        if self.args.reference_cache == "off":
            return False
        why = None
        if self.args.random_crop is not None:
            why = "pictures are cropped at random (--random_crop), so that the original has to see each crop"
        elif self.train_dataset.augment is not None:
            why = "pictures are changed as they are read, so that the original has to see each change"
        elif isinstance(self.train_dataset, QuadrupletStream):
            why = "rows come in a stream, without numbers to find them by"
        elif not has_room(size := table_size(self.targets.embed, len(self.train_dataset))):
            why = f"what it says of the training rows, {size / 1e9:,.0f} GB, would take over half of the free disk"
        if why is not None:
            self._say(f"The original is run at every step: {why}.")
        return why is None

    def _say(self, what: str) -> None:
        if self.args.process_index == 0 and not self.args.disable_tqdm:
            print(what, flush=True)

    def get_train_dataloader(self) -> DataLoader | StreamLoader:
        """Batches of the training rows; of a stream, the first after those that were trained on."""
        if not isinstance(self.train_dataset, QuadrupletStream):
            return super().get_train_dataloader()
        return StreamLoader(
            self.train_dataset.share(self.accelerator.process_index, self.accelerator.num_processes),
            self._train_batch_size,
            self.data_collator,
            self.accelerator,
            start=self.resumed_from * self.args.gradient_accumulation_steps,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=self.args.dataloader_drop_last,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        rows = self.train_dataset
        numbered = isinstance(rows, QuadrupletRows) and rows.layout is not None
        if self.args.train_sampling_strategy != "group_by_length" or not numbered:
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(batch, rows, self.processing_class.tokenizer, self.args.seed)

    # ---- The step ----

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[Any, None]:
        """The batches of an optimizer step."""
        if self.args.contrastive_batch_size is None or num_batches == 1:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        # Pulled now: a loader draws as it starts, and after this the trainer brings back a checkpoint's random state.
        batches = map(self._prepare_inputs, itertools.chain([next(epoch_iterator)], epoch_iterator))
        reader = Reader(self.train_dataset, self.data_collator)
        return self.step.chunks(self.model_wrapped, batches, num_batches, self._progress(), reader), None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Quadruplets]:
        """As `ContrastiveStep.loss`, which gives the loss alone by default."""
        # Evaluation is the same however far training is.
        loss, embeds = self.step.loss(model, inputs, self._progress() if model.training else 1.0)
        return (loss, embeds) if return_outputs else loss

    def _progress(self) -> float:
        """Share of training that is done."""
        return min(1.0, self.state.global_step / self.state.max_steps) if self.state.max_steps > 0 else 1.0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.step.check_gradient(grad_norm)
        return grad_norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: the trainer's estimate, for language models, goes through all weights at every step."""
        return 0

    def not_finite(self, what: str) -> UserError:
        """The error for a loss or gradient that is infinite or not a number."""
        saved = [folder for folder in self._checkpoints(self.run) if step_of(folder) <= self.state.global_step]
        # DeepSpeed steps as it goes backward.
        moved = "weights may have moved by it" if self.is_deepspeed_enabled else "no weight was moved by it"
        resume = f", or go on with --resume_from_checkpoint {saved[-1]} and --max_grad_norm 1" if saved else ""
        return UserError(
            f"the {what} is not a finite number after step {self.state.global_step}; {moved}. Start "
            f"anew with a lower --learning_rate or with --bf16 in place of --fp16{resume}."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the mean of every loss term beside the total."""
        super().log(logs | (self.step.pop_term_means("train") if "loss" in logs else {}), start_time)
