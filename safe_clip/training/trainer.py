"""Training a CLIP to be safe."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from huggingface_hub import CommitInfo, HfApi
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, PreTrainedModel, ProcessorMixin, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput

from ..card import write_model_card
from ..data.collator import item_ids
from ..data.rows import QuadrupletRows
from ..data.sampling import SimilarLengths
from ..data.streams import QuadrupletStream, StreamLoader
from ..errors import UserError
from ..items import Quadruplets
from ..models.patches import training_patches
from ..models.reference import FrozenReference
from ..objectives import Objective
from ..outputs import OutputFolder
from . import construction, saving
from .arguments import SafeCLIPTrainingArguments
from .caching import compute_once
from .hub import login_explained, push_checkpoint, push_explained, upload
from .hub_folder import HubFolder, look
from .pace import paced
from .plan import check_plan, checked_training
from .progress import report_progress
from .resuming import Run, step_at
from .run_identity import facts_of
from .sides import check_sides
from .step import ContrastiveStep, Reader
from .targets import Targets


class SafeCLIPTrainer(Trainer):
    """Fine-tunes a CLIP with a safety objective; everything else is `transformers.Trainer`'s.

    Checkpoints hold the adapter and the optimizer state, for resuming. `save_model()` and `push_to_hub()` write a plain
    `CLIPModel`, with an adapter merged into its weights.

    Args:
        model: `"demo"` for the bundled demo model, a Hub id, a folder, a `CLIPModel`, or a `PeftModel` of one. It is
            trained in float32, and saved in the type that it has.
        args: the settings.
        train_dataset, eval_dataset: rows with some of the columns `safe_caption`, `safe_image`, `unsafe_caption`,
            `unsafe_image`, as for `QuadrupletRows`; for evaluation, also a dictionary of several. Training rows must
            read the same each time, since the original embeds them once; streams of them are embedded as they come.
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

    Attributes:
        resumed_from: the step at which the last training began.
        nothing_left: whether the last `train()` resumed a run that was already complete, and so trained nothing.
        term_rows: how many quadruplets of the training data each term is computed over; `None` for a stream.
        card_facts: of the data and the command, as arguments of `safe_clip.write_model_card`.
    """

    # The loss is a mean over the batch, so the Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga = False
    # Of narrower types than the Trainer's.
    args: SafeCLIPTrainingArguments  # pyrefly: ignore [bad-override-mutable-attribute]: as `__init__` takes them
    model: PreTrainedModel | PeftModel  # pyrefly: ignore [bad-override-mutable-attribute]: as it is opened
    processing_class: ProcessorMixin  # pyrefly: ignore [bad-override-mutable-attribute]: as it is opened
    objective: Objective  # pyrefly: ignore [bad-override]: the Trainer's is of a hyperparameter search
    train_dataset: Any
    hub_model_id: str  # pyrefly: ignore [bad-override-mutable-attribute]: None only before `init_hf_repo`
    hub: HubFolder | None = None  # what was in the repository when the trainer was built

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
        construction.check_given(peft_config, kwargs)
        args = SafeCLIPTrainingArguments() if args is None else args
        eval_dataset = construction.as_evaluated(eval_dataset)
        train_dataset = construction.as_trained(train_dataset, args)
        check_plan(args, train_dataset, eval_dataset)
        model, processing_class, self.stored_dtype = construction.open_model(model, processing_class, peft_config, args)
        args = paced(args, model, train_dataset)
        mixed = construction.train_what_rows_show(model, train_dataset, args, processing_class)
        self.patches = training_patches(model, args.device)  # entered wherever the model is run, and left afterwards
        with self.patches:  # which a copy keeps
            self.reference = FrozenReference(model)
        if args.strength != 1:
            self.reference.scalable(model)  # known before training, not after
        self.objective = construction.make_objective(args, self.reference)
        self.run = Run(args, lambda: facts_of(self), [self.reference.config._name_or_path or None])
        self.nothing_left, self.resumed_from, self._sides_checked = False, 0, False
        self.card_facts: dict[str, Any] = {}
        self.term_rows = construction.count_term_rows(self.objective, train_dataset, args)
        collator = construction.make_collator(processing_class, model, self.objective, args.torch_compile)
        construction.check_all_captions(train_dataset, eval_dataset, collator, args)
        collator = kwargs.pop("data_collator", collator)
        super().__init__(model, args, collator, train_dataset, eval_dataset, processing_class, **kwargs)
        # `PeftModel.forward` takes **kwargs, which older Trainers read as a loss that is normalised already.
        self.model_accepts_loss_kwargs = False
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            construction.prepare_sharding(self.model, self.accelerator.state, mixed, args.strength != 1)
            self._move_model_to_device(self.model, args.device)  # the original embeds the rows before there are shards
        report_progress(self)
        embedder = construction.make_embedder(self.reference, processing_class, args, self.accelerator)
        self.targets = Targets(embedder, self.objective)
        self.step = ContrastiveStep(self.objective, self.targets, self.accelerator, self._not_finite)
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
        with self.patches, self.run.begin(resume_from_checkpoint) as checkpoint:
            if self.place_model_on_device:  # which comes later under --bf16_full_eval
                self._move_model_to_device(self.model, self.args.device)
            output = self._load_finished(checkpoint) if checkpoint else None
            self.nothing_left = output is not None
            if output is None:
                output = self._train_on(checkpoint, *args, **kwargs)
                self.run.note_end(self.state, self.callback_handler.callbacks, self.resumed_from)
            if self.args.strength != 1:
                self.reference.scale_update(self.accelerator.unwrap_model(self.model), self.args.strength)
            return output

    def _load_finished(self, checkpoint: Path) -> TrainOutput | None:
        """Takes the model from a checkpoint of a run that is at its end; gives `None`, and does nothing, for others."""
        steps = self.args.max_steps
        if steps <= 0:
            # pyrefly: ignore [bad-argument-type]: a StreamLoader has what is asked of it
            steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        ended = self.run.ended(checkpoint, steps, self.is_sharded)
        if ended is None:
            return None
        self.state, self.resumed_from, output = ended
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.run.best(self.state):
            self._load_best_model()
        return output

    def _load_best_model(self) -> None:
        if best := self.run.best(self.state):  # wherever it lay when it was saved
            self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    @property
    def is_sharded(self) -> bool:
        """Whether no process has the whole model while it is trained."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _train_on(self, checkpoint: Path | None, *args, **kwargs) -> TrainOutput:
        """Trains from the beginning, or from a checkpoint."""
        self.check_sides()
        compute_once(
            self.train_dataset, self.processing_class, self.data_collator, self.targets, self.args, self.accelerator
        )
        if self.targets.table is not None:
            self.reference.put_away()
        self.resumed_from = step_at(checkpoint) if checkpoint else 0
        self.args.ignore_data_skip = isinstance(self.train_dataset, QuadrupletStream)  # its loader does that
        set_seed(self.args.seed)  # whatever was drawn since the trainer was built, a seed trains the same weights
        self.step.trained.clear()
        with checked_training(self):
            return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """As `Trainer.add_callback`."""
        construction.check_callback(callback)
        super().add_callback(callback)

    def hyperparameter_search(self, *args, **kwargs) -> NoReturn:
        """Raises `UserError`: it makes a model anew for each trial, which a trainer of one model does not."""
        raise UserError("hyperparameter_search is not supported: make a SafeCLIPTrainer for each trial.")

    def check_sides(self) -> None:
        """Raises `UserError` where the safe and the unsafe side look swapped to the original, which is asked once."""
        if self.args.sides_are_right or self.train_dataset is None or self._sides_checked:
            return
        self._move_model_to_device(self.model, self.args.device)
        collator = construction.make_collator(self.processing_class, self.model)
        with self.patches:
            check_sides(self.train_dataset, self.targets.embedder, collator)
        self.reference.put_away()
        self._sides_checked = True

    def get_train_dataloader(self) -> DataLoader | StreamLoader:  # pyrefly: ignore [bad-override]: read alike
        """Batches of the training rows; of a stream, the first after those that were trained on."""
        if not isinstance(self.train_dataset, QuadrupletStream):
            return super().get_train_dataloader()
        return StreamLoader(
            self.train_dataset.share(self.accelerator.process_index, self.accelerator.num_processes),
            self._train_batch_size,
            self.data_collator,  # pyrefly: ignore [bad-argument-type]: a QuadrupletCollator, or what works like one
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

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[Any, Any]:
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

    def _not_finite(self, what: str) -> UserError:
        return self.run.not_finite(what, self.state.global_step, moved=self.is_deepspeed_enabled)  # as it goes backward

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the mean of every loss term beside the total."""
        super().log(logs | (self.step.pop_term_means("train") if "loss" in logs else {}), start_time)

    # ---- Evaluation ----

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, for rows as at construction; raises `UserError` where there are none to use."""
        if not isinstance(eval_dataset, str):
            eval_dataset = construction.as_evaluated(eval_dataset)
        self.eval_dataset = construction.as_evaluated(self.eval_dataset)  # where somebody set it anew
        if eval_dataset is None and self.eval_dataset is None:
            raise UserError("evaluate() requires rows: pass some, or give the trainer an eval_dataset.")
        return super().evaluate(eval_dataset, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of some rows, or of those that the trainer has."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            # Kept with its worker processes, a loader would be taken for that of other rows.
            return self.get_test_dataloader(eval_dataset)
        self.eval_dataset = construction.as_evaluated(self.eval_dataset, eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches of some rows."""
        return super().get_test_dataloader(construction.as_evaluated(test_dataset, one=True))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Loss and, where metrics are asked for, the embeddings of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, embeds = cast(tuple[Tensor, Quadruplets], self.compute_loss(model, inputs, return_outputs=True))
        if prediction_loss_only:
            return loss, None, None
        # The Trainer computes metrics only where there are labels; a quadruplet's are numbers by which its items
        # can be told apart, since a caption or image that occurs twice has several right answers.
        return loss, tuple(items.dense(len(embeds)) for items in embeds), item_ids(inputs).to(loss.device)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """Adds the mean of every loss term to the metrics."""
        self.step.forget_terms("eval")
        with self.patches:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self.step.pop_term_means("eval")
        cast(dict, output.metrics).update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    # ---- Saving and pushing ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the drop-in: a plain `CLIPModel` or the like, adapters merged, with its tokenizer and image processor.

        An adapter is saved on its own too, under `adapter/`, for those who keep many beside one original. Nothing is
        uploaded: that is `push_to_hub()`'s.
        """
        with saving.explained(output_dir or cast(str, self.args.output_dir)):
            if _internal_call and output_dir is not None:  # a checkpoint
                super().save_model(output_dir, _internal_call=True)
                if self.args.should_save:
                    saving.save_settings(self.args, Path(output_dir))
                    self.run.mark(Path(output_dir))
                    saving.make_public(Path(output_dir))
            elif (model := saving.whole_model(self.accelerator, self.model, self.args)) is not None:
                output = self.run.folder(output_dir)
                saving.save_merged(model, self.processing_class, output, self.stored_dtype, self.args)
                if self.hub is not None and output.path.resolve() == Path(cast(str, self.args.output_dir)).resolve():
                    self.hub.bring_card(output)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with self.run.saving(folder, self.state, self.accelerator):
            super()._save_checkpoint(model, trial)

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Creates the repository, when the trainer is built: what cannot be pushed is better known before training."""
        with login_explained():
            super().init_hf_repo(*args, **kwargs)
            if self.is_world_process_zero():
                api = HfApi(token=kwargs.get("token") or self.args.hub_token)
                self.hub = look(api, self.hub_model_id, self.args.hub_revision, self.args.overwrite_output_dir)

    def push_to_hub(  # pyrefly: ignore [bad-override]: as the Trainer's, it may give a Future, or nothing
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Saves the drop-in and uploads it with its card (`kwargs` as of `create_model_card`), and nothing else.

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
        with push_explained(self.args, self.hub_model_id, revision):
            self._finish_current_push()
            return upload(self.args, self.hub_model_id, self.hub, commit_message, token, revision, not blocking)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card of the model that was saved, by `safe_clip.write_model_card`; one of its weights stays.

        Args:
            **kwargs: `dataset`, the name of the training data, and `license`, `language` and `tags` of the card's
                metadata. What else `Trainer.create_model_card` takes, the card finds out itself.
        """
        summary = ("dataset", "license", "language", "tags")
        facts = {name: kwargs[name] for name in summary if kwargs.get(name) is not None}
        if facts or not OutputFolder(cast(str, self.args.output_dir)).has_card:
            write_model_card(self, **(self.card_facts | facts))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer would put the adapter's files at the root, and `from_pretrained` would take them for the model.
        self.run.seal(Path(checkpoint_folder), self.accelerator)
        push_checkpoint(self, Path(checkpoint_folder))
