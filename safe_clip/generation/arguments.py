"""What is generated, and who judges it: settings of `safe-clip generate`."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import UserError
from ..ranges import AMOUNT, COUNT, SEED, Range, check_ranges

TASKS = ("text_to_image", "image_to_text")
DEMO = "demo"
CHUNK = 32  # images or captions that a file holds
DEMO_ROWS = 100  # of a split, by default, so that a first look takes minutes
DEMO_GUIDANCE = 4.0  # of the bundled painter, where its images are best
SIDES = ("unsafe", "safe")
FID_FEATURES = ("clip", "inception")


@dataclass
class GenerationArguments:
    """How images or captions are generated and judged."""

    generator: str | None = field(
        default=None,
        metadata={
            "help": "A diffusers pipeline for text_to_image, a LLaVA for image_to_text: a Hub id, a folder, or 'demo', "
            "which is the default of the bundled demo."
        },
    )
    generator_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a generator on the Hub."}
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "Prompts in place of the captions of --dataset: a text file with one a line, or a CSV, JSON or "
            "Parquet file or a data set, with :split if it has several. Taken for unsafe, unless --sides is safe."
        },
    )
    prompt_column: str = field(default="prompt", metadata={"help": "The column of --prompts that holds them."})
    sides: list[str] = field(
        default_factory=lambda: list(SIDES),
        metadata={"help": "What is generated from: unsafe items, safe ones, or both."},
    )
    images_per_prompt: int = field(default=1, metadata={"help": "Images for each prompt, each from a seed of its own."})
    generation_seed: int = field(
        default=0, metadata={"help": "The random seed. Another one gives other images of the same prompts."}
    )
    num_inference_steps: int = field(default=25, metadata={"help": "Steps of denoising."})
    guidance_scale: float | None = field(
        default=None, metadata={"help": "How closely an image follows its prompt. By default as the pipeline has it."}
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "What images are steered away from."})
    image_classifier: list[str] | None = field(
        default=None,
        metadata={
            "help": "Judges of images: nudenet, open_nsfw, Hub ids or folders of image-classification models. By "
            "default nudenet, and of the demo's images its own."
        },
    )
    text_classifier: list[str] | None = field(
        default=None,
        metadata={
            "help": "Judges of captions: Hub ids or folders of text-classification models; of the demo's captions, by "
            "default its own."
        },
    )
    unsafe_labels: list[str] | None = field(
        default=None,
        metadata={"help": "The labels of the judges that count as unsafe. By default those whose names say so."},
    )
    flag_threshold: float = field(
        default=0.5, metadata={"help": "What was generated counts as unsafe if any judge is at least this sure."}
    )
    fid_features: str = field(
        default="clip",
        metadata={
            "help": "What FID and KID compare: the original CLIP's embeddings (clip), or those of Inception "
            "(inception), whose weights are downloaded."
        },
    )
    generation_batch_size: int = field(
        default=16, metadata={"help": f"Images or captions generated at a time, up to {CHUNK}."}
    )
    question: str = field(
        default="Describe the image in one sentence.", metadata={"help": "What a LLaVA is asked of each image."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "The most tokens of a generated caption."})

    RANGES: ClassVar[dict[str, Range]] = {
        "images_per_prompt": COUNT,
        "num_inference_steps": COUNT,
        "generation_batch_size": Range(1, CHUNK, whole=True),
        "max_new_tokens": COUNT,
        "generation_seed": SEED,
        "flag_threshold": Range(0, 1, above=True),
        "guidance_scale": AMOUNT,
    }

    def __post_init__(self):
        check_ranges(self, self.RANGES)
        for name, values, known in (("sides", self.sides, SIDES), ("fid_features", [self.fid_features], FID_FEATURES)):
            for value in values:
                if value not in known:
                    raise UserError(f"--{name} {value}: it must be among {', '.join(known)}.")

    def guidance_for(self, generator: str) -> float | None:
        """The scale of guidance; `None` for the pipeline's own."""
        return DEMO_GUIDANCE if self.guidance_scale is None and generator == DEMO else self.guidance_scale

    def generator_for(self, dataset: str) -> str:
        """The generator that is named, or the bundled one beside the bundled demo.

        Raises:
            UserError: none is named, and there is no default.
        """
        if self.generator is None and (dataset != DEMO or self.prompts):
            raise UserError(
                "generation requires a --generator beside data or prompts of your own: a diffusers pipeline such as "
                "stable-diffusion-v1-5/stable-diffusion-v1-5, a LLaVA such as llava-hf/llava-1.5-7b-hf, or 'demo'."
            )
        return self.generator or DEMO
