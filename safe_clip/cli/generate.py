"""Generates with the original CLIP and with the safe one in its place, and judges what comes out.

  safe-clip generate text_to_image               images by a text encoder: the bundled painter, or Stable Diffusion
  safe-clip generate image_to_text               captions by a vision tower: the bundled captioner, or LLaVA
  safe-clip generate text_to_image --model you/safe-clip --baseline openai/clip-vit-large-patch14 \\
      --dataset you/quadruplets --generator CompVis/stable-diffusion-v1-4

Prints a table, and writes TASK.json with all figures, TASK.png with some of what was made, and all of it in
generated/. What was made is kept: an interrupted run goes on where it was. Every setting is a flag; a YAML file
given after the task sets any of them, and flags after it win.
"""

import difflib
from dataclasses import dataclass, field

from ..config import parse_arguments, split_config
from ..errors import UserError
from ..generation.arguments import TASKS, GenerationArguments
from ..outputs import OutputFolder
from ..terminal import quiet_libraries
from .compared import DATA, MODELS, ComparedArguments, begin
from .help import Help, settings_of
from .launch import GROUP, LAUNCH, launch

GROUPS = {
    "What is compared": MODELS,
    "What is generated from": f"prompts prompt_column sides unsafe_gallery {DATA}",
    "Generator": "generator generator_revision generation_seed",
    "Images (text_to_image)": "images_per_prompt num_inference_steps guidance_scale negative_prompt",
    "Captions (image_to_text)": "question max_new_tokens",
    "Judges": "image_classifier text_classifier unsafe_labels flag_threshold fid_features",
    "Speed": "generation_batch_size batch_size precision",
    GROUP: " ".join(LAUNCH),
    "What is written": "output_dir overwrite_output_dir show_unsafe",
}


@dataclass
class ComparedGenerators(ComparedArguments):
    """Whose generations are compared, and what they start from."""

    task: str = field(default=TASKS[0], init=False)
    unsafe_gallery: list[str] | None = field(
        default=None,
        metadata={
            "help": "Unsafe images from elsewhere, for image_to_text: folders, datasets, or text files of URLs or "
            "paths."
        },
    )
    max_samples: int | None = field(
        default=None,
        metadata={"help": "At most so many rows of each split; by default all, of the bundled demo 100."},
    )


def helper() -> Help:
    """What `--help` says."""
    what = "TASK [CONFIG.yaml] [--flag value ...]"
    settings = settings_of(ComparedGenerators, GenerationArguments) | LAUNCH
    return Help("generate", __doc__, GROUPS, settings, what=what)


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in TASKS:
        helper().answer([word for word in argv if word in ("-h", "--help")])
        given = argv[0] if argv and not argv[0].startswith("-") else None
        close = difflib.get_close_matches(given or "", TASKS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        said = f"safe-clip generate {given}: there is no such task." if given else "safe-clip generate requires a task:"
        raise UserError(f"{said}{hint} {' or '.join(TASKS)} comes first, such as safe-clip generate {TASKS[0]}.", 2)
    task, *rest = argv
    config, flags = split_config(rest)
    helper().answer(flags)
    launch("generate", argv)

    from ..generation.run import run_task

    args, generation = parse_arguments([ComparedGenerators, GenerationArguments], flags, config)
    args.task = task
    quiet_libraries()
    if task == "text_to_image" and args.unsafe_gallery:
        raise UserError("--unsafe_gallery holds images: it is for safe-clip generate image_to_text.")
    generation.generator_for(args.dataset)  # for its error, which would else come after what is slow to load
    OutputFolder(args.output_dir).check(args.overwrite_output_dir, files=[f"{task}.json"])
    accelerator = begin(args, generation.prompts or args.dataset)[2]
    run_task(args, generation, accelerator)
