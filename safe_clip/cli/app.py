"""Shows a safe CLIP beside its original on a page in the browser: search, strength, zero-shot classes, a generator.

  safe-clip app                                  the bundled demo, and the model that safe-clip train left
  safe-clip app --model you/safe-clip --baseline openai/clip-vit-large-patch14 --dataset you/quadruplets
  safe-clip app --model you/safe-clip --baseline openai/clip-vit-large-patch14 --dataset rows.csv --split validation

What is labelled unsafe is covered until it is clicked. The gallery is embedded once and kept; nothing that is typed or
uploaded is. Every setting is a flag; a YAML file given first sets any of them, and flags after it win.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..config import parse_arguments, split_config
from ..errors import UserError
from ..ranges import COUNT, Range, check_ranges
from ..terminal import command_line, quiet_libraries
from .compared import DEFAULT_MODEL, ModelArguments, for_frozen_galleries
from .help import Help, settings_of

GROUPS = {
    "What is compared": "model model_revision baseline baseline_revision frozen_gallery",
    "Gallery": "dataset dataset_config split max_images column_mapping safe_images unsafe_images missing_images "
    "caption_lists on_bad_row max_bad_fraction streaming sides_are_right",
    "Generator": "generator generator_revision image_classifier unsafe_labels flag_threshold num_inference_steps "
    "guidance_scale",
    "Page": "host port show_unsafe evaluation max_upload_mb queue_size",
    "Speed": "batch_size precision cache_dir",
}


@dataclass
class AppArguments(ModelArguments):
    """What the page shows, and where."""

    split: str | None = field(
        default=None,
        metadata={"help": "The split that is searched. By default the first that safe-clip eval measures."},
    )
    max_images: int = field(default=2000, metadata={"help": "At most so many images are searched."})
    show_unsafe: bool = field(
        default=False, metadata={"help": "Cover nothing; by default, what is unsafe is covered until it is clicked."}
    )
    frozen_gallery: bool = field(
        default=False,
        metadata={
            "help": "Both models search what the baseline embedded. On by itself for a model that was trained with "
            "--frozen_gallery."
        },
    )
    generator: str | None = field(
        default=None,
        metadata={
            "help": "A diffusers pipeline that draws, which requires a GPU: a Hub id or a folder. By default, beside "
            "the bundled original, the bundled one."
        },
    )
    generator_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a generator on the Hub."}
    )
    image_classifier: list[str] | None = field(
        default=None,
        metadata={
            "help": "Judges of what is drawn, as for safe-clip generate. By default nudenet, of the demo its own."
        },
    )
    unsafe_labels: list[str] | None = field(
        default=None, metadata={"help": "The labels of the judges that count as unsafe, where their names do not say."}
    )
    flag_threshold: float = field(
        default=0.5, metadata={"help": "What is drawn is covered if any judge is at least this sure."}
    )
    num_inference_steps: int = field(default=25, metadata={"help": "Steps of denoising."})
    guidance_scale: float | None = field(
        default=None, metadata={"help": "How closely an image follows its prompt. By default as the pipeline has it."}
    )
    evaluation: str = field(
        default="evaluation", metadata={"help": "The folder that safe-clip eval wrote, whose report is shown."}
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "The address that the page is served at; 0.0.0.0 for all that reach this machine."},
    )
    port: int = field(default=7860, metadata={"help": "Its port; 0 for any that is free."})
    max_upload_mb: int = field(default=10, metadata={"help": "The largest image that may be uploaded, in MB."})
    queue_size: int = field(
        default=64, metadata={"help": "Requests that may wait, beyond which new ones are turned away."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "The folder that embeddings are kept in. By default one beside the Hub's cache."},
    )

    RANGES: ClassVar[dict[str, Range]] = {
        "max_images": COUNT,
        "port": Range(0, 65535, whole=True),
        "max_upload_mb": Range(1, 1024, whole=True),
        "queue_size": COUNT,
    }

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, self.RANGES)
        if self.baseline is None:
            if self.model != "demo":
                raise UserError(f"--model {self.model}: name the original that it was trained from with --baseline.")
            raise UserError(
                f"the bundled demo model has nothing beside it: {command_line('train')} makes a safe one of it in "
                f"{DEFAULT_MODEL}/, or name another with --model and --baseline."
            )


def helper() -> Help:
    """What `--help` says."""
    return Help("app", __doc__, GROUPS, settings_of(AppArguments))


def main(argv: list[str]) -> None:
    config, flags = split_config(argv)
    helper().answer(flags)
    (args,) = parse_arguments([AppArguments], flags, config)
    quiet_libraries()

    from ..app import Settings, import_gradio, serve
    from ..app.ladder import Opened
    from ..generation.arguments import GenerationArguments

    import_gradio()
    generation = GenerationArguments(
        generator=args.generator,
        generator_revision=args.generator_revision,
        image_classifier=args.image_classifier,
        unsafe_labels=args.unsafe_labels,
        flag_threshold=args.flag_threshold,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
    )
    settings = Settings(
        args.split,
        args.max_images,
        args.show_unsafe,
        args.evaluation,
        args.host,
        args.port,
        args.max_upload_mb,
        args.queue_size,
        args.cache_dir and str(Path(args.cache_dir)),
        {"batch_size": args.batch_size, "precision": args.precision},
    )
    frozen = args.frozen_gallery or for_frozen_galleries(args.model, args.model_revision)
    safe, original = Opened.of(args.model, args.model_revision), Opened.of(args.baseline, args.baseline_revision)
    serve(safe, original, data=args, settings=settings, generation=generation, frozen=frozen)
