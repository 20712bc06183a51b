"""The settings of a training run."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

import torch
from transformers import TrainingArguments

from ..config import changed, json_object, suggest
from ..errors import UserError
from ..names import redact_paths
from ..objectives import OBJECTIVES, Objective, build_objective
from ..objectives.hidden_states import HIDDEN_STATE_NEEDS
from ..ranges import AMOUNT, COUNT, DROPPED, HUGE, POSITIVE, SEED, Range, check_ranges, shown
from .devices import fast_in_bfloat16, workers
from .optional import check_optional
from .setting_kinds import check_compile, check_optimizer_args, enums, restated, wrong_kind

logger = logging.getLogger(__name__)


@dataclass
class SafeCLIPTrainingArguments(TrainingArguments):
    r"""All of `transformers.TrainingArguments`, with these of our own and these other defaults.

    Args:
        objective (`str`, defaults to `"safe_ranking"`):
            The method, by its name in `safe_clip.objectives.OBJECTIVES`: `safe_ranking` (`SafeRankingLoss`),
            `safe_clip` (the paper's), `safer_clip` or `shield_clip`.
        objective_options (`dict`, *optional*):
            Arguments of the objective's class besides these, such as `{"anchors": 4096}`.
        logit_scale (`float`, *optional*):
            Factor before the cosines of contrastive and ranking terms. By default the one that the original
            model learned, which for OpenAI's CLIP is the paper's 100.
        loss_weights (`dict[str, float]`, *optional*):
            Weights of single loss terms in place of the objective's own; 0 switches a term off. See the
            objective's class for its terms.
        hidden_state_terms (`bool`, defaults to `True`):
            Train what generators read too, the states of tokens and patches, with the weights that the objective has
            for them. `False` is for search alone: faster, and more of the concepts that training does not show is
            redirected. `loss_weights` wins over it.
        frozen_gallery (`bool`, defaults to `False`):
            Train queries for an existing index of the original's embeddings that will not be embedded anew. The model
            is for queries alone; the figures of training are of its queries in such an index. Requires `safe_ranking`.
        sides_are_right (`bool`, defaults to `False`):
            Train although the names of columns, words in captions or the original say that the safe and the unsafe side
            are swapped.
        strength (`float`, defaults to 1.0):
            Where the model is left after training, between the original (0) and what it was trained to be (1);
            `safe-clip eval --sweep strength` shows what each point is like. Checkpoints keep all of the training.
        cache_images (`str`, defaults to `"auto"`):
            Decode and resize the training images once and keep them as uint8, which takes 150 kB each at 224
            pixels: `on`, `off`, or `auto`, where it takes less than half of the free disk.
        random_crop (`float`, *optional*):
            Train on random parts of images, each of at least this share of the area, in (0, 1], such as 0.9. Of
            evaluation images nothing is cut.
        reference_cache (`str`, defaults to `"auto"`):
            Embed the training rows by the original once and keep that on disk for later runs, which takes 6 kB a row
            of two items at 768 dimensions: `off`, where the original is run at every step, or `auto`, which is off for
            streams, under `random_crop`, and where it would take over half of the free disk.
        contrastive_batch_size (`int`, *optional*):
            Quadruplets of all devices together whose items are compared with each other in a step. A multiple of
            `per_device_train_batch_size` times the number of devices, which is the default: as many chunks are then
            embedded one after the other, twice, and memory is that of one chunk.
        early_stopping_patience (`int`, *optional*):
            Stop after so many evaluations without an improvement of `metric_for_best_model`.
            Requires an `eval_strategy` and `load_best_model_at_end`.
        output_dir (`str`, defaults to `"safe-clip"`):
            Where the trained model and the checkpoints are written.
        overwrite_output_dir (`bool`, defaults to `False`):
            Write into a folder that holds what this package did not write: files of the same names, and those that
            would change what others load, are moved into its folder `replaced/`, others left alone.
        num_train_epochs (`float`, *optional*):
            Times that all rows are gone through. By default 3, or as many, up to 30, as make 500 steps.
        learning_rate (`float`, *optional*):
            The highest. By default 1.2 / steps for the usual adapter, so that training goes equally far, and at most
            0.005 / sqrt(layers); without an adapter 16 / width of that.
        lr_scheduler_type (`str`, defaults to `"cosine"`), warmup_steps (`float`, defaults to 0.05):
            The rate rises over the first twentieth of the steps and then falls to 0.
        max_grad_norm (`float`, defaults to 0):
            Gradients are not clipped: Adam's steps do not depend on their length.
        per_device_train_batch_size, per_device_eval_batch_size (`int`, defaults to 128):
            Quadruplets. The in-batch negatives of the contrastive terms are the other rows.
        logging_steps (`float`, defaults to 10):
            Optimizer steps between two log lines, each with the mean of every loss term.
        bf16 (`bool`, *optional*):
            Compute in bfloat16, keeping float32 weights. By default where the device is faster in it: GPUs that have
            it, CPUs with AVX512-BF16 or AMX.
        dataloader_num_workers (`int`, *optional*):
            Processes that read rows, for each device; by default up to 8 beside a GPU, none beside a model on the CPU.
        dataloader_persistent_workers (`bool`, defaults to `True`):
            They stay from one epoch to the next.
        logging_nan_inf_filter (`bool`, defaults to `False`):
            A loss that is not finite ends training, so that looking for it, which waits for the device, is not needed.
        remove_unused_columns (`bool`, defaults to `False`):
            Captions and images are not arguments of the model's `forward`, yet the collator requires them.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "per_device_train_batch_size": COUNT,
        "per_device_eval_batch_size": COUNT,
        "gradient_accumulation_steps": COUNT,
        "eval_accumulation_steps": COUNT,
        "contrastive_batch_size": COUNT,
        "num_train_epochs": Range(0, HUGE, above=True),
        "max_steps": Range(1, HUGE, whole=True, unset=-1),
        "learning_rate": POSITIVE,
        "warmup_steps": Range(0, HUGE),
        "weight_decay": AMOUNT,
        "adam_beta1": DROPPED,
        "adam_beta2": DROPPED,
        "adam_epsilon": AMOUNT,
        "max_grad_norm": AMOUNT,
        "label_smoothing_factor": DROPPED,
        "logging_steps": Range(0, HUGE),
        "eval_steps": Range(0, HUGE),
        "save_steps": Range(0, HUGE),
        "eval_delay": Range(0, HUGE),
        "save_total_limit": COUNT,
        "early_stopping_patience": COUNT,
        "seed": SEED,
        "data_seed": SEED,
        "dataloader_num_workers": Range(0, 4096, whole=True),
        "dataloader_prefetch_factor": COUNT,
        "torch_empty_cache_steps": COUNT,
        "ddp_bucket_cap_mb": COUNT,
        "ddp_timeout": COUNT,
        "logit_scale": POSITIVE,
        "random_crop": Range(0, 1, above=True),
        "strength": Range(0, 1, above=True),
    }
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "cache_images": ("auto", "on", "off"),
        "reference_cache": ("auto", "off"),
        "train_sampling_strategy": ("random", "sequential", "group_by_length"),
        "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    }
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "loss_weights", "objective_options"]

    output_dir: str | None = field(
        default="safe-clip", metadata={"help": "The folder that gets the trained model and the checkpoints."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write even if files of other programs are in the way; these are moved into replaced/."},
    )
    # pyrefly: ignore [bad-override]: a number once a trainer has them, as transformers has it
    num_train_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Times that all rows are gone through. By default 3, or as many, up to 30, as make 500 steps."
        },
    )
    # pyrefly: ignore [bad-override]: a number once a trainer has them, as transformers has it
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "The highest learning rate. By default the higher, the fewer steps there are."},
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate changes over the steps."})
    warmup_steps: float = field(
        default=0.05,
        metadata={"help": "Steps over which the learning rate rises from 0; below 1, a share of all steps."},
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Gradients longer than this are shortened to it; with 0, none are."}
    )
    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Quadruplets per device and step in training."}
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Quadruplets per device and step in evaluation."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps between two log lines."})
    # pyrefly: ignore [bad-assignment]: with None in its type, the command line's parser requires a value after the flag
    bf16: bool = field(
        default=None, metadata={"help": "Compute in bfloat16. By default where the device is faster in it."}
    )
    # pyrefly: ignore [bad-override]: from `__post_init__` on a number, as transformers has it
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes per device that read rows. By default up to 8 beside a GPU, else none."},
    )
    dataloader_persistent_workers: bool = field(
        default=True, metadata={"help": "Keep the processes that read rows from one epoch to the next."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Keep this off: a loss that is not finite ends training with what to do."}
    )
    # pyrefly: ignore [bad-override]: earlier versions of transformers allow None, which is off too
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Keep this off: the collator requires columns that `forward` does not name."}
    )
    objective: str = field(
        default="safe_ranking", metadata={"help": "The method: safe_ranking, safe_clip, safer_clip or shield_clip."}
    )
    objective_options: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of the objective as JSON, such as '{\"anchors\": 4096}'."}
    )
    logit_scale: float | None = field(
        default=None,
        metadata={
            "help": "The factor before cosines in contrastive and ranking terms. By default the original model's own."
        },
    )
    loss_weights: dict | str | None = field(
        default=None,
        metadata={
            "help": "Weights of single loss terms as JSON, such as '{\"preservation_text_cosine\": 400}'. 0 drops one."
        },
    )
    hidden_state_terms: bool = field(
        default=True,
        metadata={
            "help": "Train the hidden states that Stable Diffusion and LLaVA read too. Turn it off for search alone."
        },
    )
    frozen_gallery: bool = field(
        default=False,
        metadata={
            "help": "Train queries for an index that the original model embedded and that will not be embedded anew. "
            "The model is for queries alone then."
        },
    )
    sides_are_right: bool = field(
        default=False,
        metadata={
            "help": "Go on although the names of columns, the words of captions or the original model say that the "
            "safe and the unsafe side are swapped."
        },
    )
    strength: float = field(
        default=1.0,
        metadata={"help": "Where the saved model lies between the original (0) and what training made of it (1)."},
    )
    cache_images: str = field(
        default="auto",
        metadata={
            "help": "Decode and resize images once and keep them on disk: 'on', 'off', or 'auto', where there is "
            "room enough."
        },
    )
    random_crop: float | None = field(
        default=None, metadata={"help": "Train on random parts of images that cover at least this share of the area."}
    )
    reference_cache: str = field(
        default="auto",
        metadata={
            "help": "Embed the training rows by the original model once and keep that on disk ('auto'), or at every "
            "step ('off')."
        },
    )
    contrastive_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Quadruplets, over all devices, that are compared with each other in a step, in chunks of the "
            "batch size. By default one chunk."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations without an improvement. Requires --eval_strategy and "
            "--load_best_model_at_end."
        },
    )

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that were given a value other than their default, as others may see them."""
        return redact_paths(self._changed)

    @property
    def term_weights(self) -> dict[str, float]:
        """Weights in place of the objective's own."""
        given = cast(dict, self.loss_weights or {})  # a text only before `__post_init__`
        return (dict.fromkeys(HIDDEN_STATE_NEEDS, 0.0) if not self.hidden_state_terms else {}) | given

    def make_objective(self, scale: float, bias: float | None = None, left_out: Iterable[str] = ()) -> Objective:
        """The objective for cosines of this scale and bias; terms `left_out` have the weights that were given, or 0."""
        options = cast(dict, self.objective_options or {}) | ({"frozen_gallery": True} if self.frozen_gallery else {})
        weights = dict.fromkeys(left_out, 0.0) | self.term_weights
        return build_objective(self.objective, self.logit_scale or scale, weights, options, bias)

    def __new__(cls, *_: Any, **settings: Any):
        known = [each.name for each in fields(cls) if each.init]
        for name in settings:
            if name not in known:
                raise UserError(f"{name} is no setting of {cls.__name__}.{suggest(name, known)}")
        return super().__new__(cls)

    def __post_init__(self):
        self._check()
        # As they were given: many are filled in below. Tokens, and where to write, are nobody's business.
        self._changed = {
            name: value
            for name, value in changed(self).items()
            if name not in ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")
            and not name.endswith("_token")
            # Where the default is one of these two words, the command line's parser makes nothing of it.
            if value or type(self).__dataclass_fields__[name].default not in ("", "no")
        }
        if self.greater_is_better is None and any(self._is_term(objective) for objective in OBJECTIVES):
            self.greater_is_better = False  # a loss term, which the Trainer knows only by the name "loss"
        float32 = self.bf16 is False and not self.fp16
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"  # by `accelerate launch`
            self.bf16 = not self.fp16 and not asked and fast_in_bfloat16(on_cpu)
        if self.bf16 and on_cpu:
            self.use_cpu = True  # without which bf16 is taken for a GPU's
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 0 if on_cpu else workers()
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0
        if self.accelerator_config is None and not on_cpu:
            self.accelerator_config = {"non_blocking": True}
        self._cut_into_chunks(int(os.environ.get("WORLD_SIZE", "1")))
        with restated(self):
            super().__post_init__()
        if float32:
            self.mixed_precision = "no"  # was asked for here, whatever `accelerate launch` was told
        if self.n_gpu > 1:
            flags = f"--accelerate_config ddp --num_processes {self.n_gpu}"
            logger.warning("Of %d GPUs one is used; `safe-clip train %s ...` uses all.", self.n_gpu, flags)
            self._n_gpu = 1  # what torch.nn.DataParallel makes of a model has not its ways of computing
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # there is nothing to pin for, and torch would say so at every loader
        if self.remove_unused_columns:
            raise UserError("--remove_unused_columns must stay off: the collator requires captions and images.")
        self.make_objective(1.0)  # says what does not fit
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise UserError("--early_stopping_patience requires --load_best_model_at_end and an --eval_strategy.")

    def _check(self) -> None:
        """Raises `UserError` for a setting that is none, by itself."""
        if not isinstance(self.output_dir, str | os.PathLike | None) or (
            self.output_dir is not None and not str(self.output_dir).strip()
        ):
            raise UserError(f"--output_dir is {self.output_dir!r}; it must name a folder.")
        check_ranges(self, self.RANGES)
        for each in fields(self):
            if each.init and (wrong := wrong_kind(type(self), each, getattr(self, each.name))):
                raise UserError(f"--{each.name} is {shown(getattr(self, each.name))}; it must be {wrong}.")
        for name, known in (self.CHOICES | enums()).items():
            value = getattr(self, name)
            value = getattr(value, "value", value)
            if value is not None and value not in known:
                hint = suggest(str(value), list(known))
                raise UserError(f"--{name} {value}: it must be among {', '.join(known)}.{hint}")
        if self.save_strategy == "steps" and self.save_steps == 0:
            raise UserError("--save_steps is 0; it must be above 0, or --save_strategy no for no checkpoints.")
        for name in self._VALID_DICT_FIELDS:
            value = getattr(self, name)
            own = name in ("loss_weights", "objective_options")
            if own or (isinstance(value, str) and value.startswith("{")):
                given = json_object(f"--{name}", value)
                if name == "objective_options" and "frozen_gallery" in (given or {}):
                    raise UserError("--objective_options names frozen_gallery, a setting of its own: --frozen_gallery.")
        if not isinstance(self.objective, str):
            raise UserError(f"--objective is {self.objective!r}; it must be among {', '.join(OBJECTIVES)}.")
        if self.frozen_gallery and self.objective != "safe_ranking":
            raise UserError(f"--frozen_gallery requires --objective safe_ranking, not {self.objective}.")
        figure = (self.metric_for_best_model or "").removeprefix("eval_").startswith(("redirection_", "retrieval_"))
        if self.frozen_gallery and figure and not self._is_term("safe_ranking"):
            raise UserError(
                f"--metric_for_best_model {self.metric_for_best_model} is measured in the model's own gallery, which "
                "--frozen_gallery does not train: use eval_loss."
            )
        if self.neftune_noise_alpha is not None:
            raise UserError("--neftune_noise_alpha is for language models, and CLIP is none; leave it out.")
        check_optimizer_args(self.optim_args)
        check_compile(self.torch_compile_backend, self.torch_compile_mode)
        check_optional(self, self.use_cpu or not torch.accelerator.is_available())

    def _is_term(self, objective: str) -> bool:
        """Whether the best model is told by a loss term of an objective."""
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        return metric in OBJECTIVES[objective].WEIGHTS | OBJECTIVES[objective].STATE_WEIGHTS

    def _cut_into_chunks(self, devices: int) -> None:
        """Sets how many batches of each device make up a contrastive batch."""
        if self.contrastive_batch_size is None:
            return
        at_once = self.per_device_train_batch_size * devices
        if self.auto_find_batch_size:
            raise UserError("--auto_find_batch_size would change --contrastive_batch_size; use one of them.")
        chunks, rest = divmod(self.contrastive_batch_size, at_once)
        if rest or chunks < 1:
            raise UserError(
                f"--contrastive_batch_size {self.contrastive_batch_size} must be a multiple of "
                f"--per_device_train_batch_size {self.per_device_train_batch_size} x {devices} devices = {at_once}."
            )
        if self.gradient_accumulation_steps not in (1, chunks):
            raise UserError(
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps}: with --contrastive_batch_size an "
                f"optimizer step takes one contrastive batch, here of {chunks} chunks; leave it out."
            )
        self.gradient_accumulation_steps = chunks
