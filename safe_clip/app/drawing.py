"""What a text-to-image pipeline draws with both encoders, from the same noise."""

import importlib.util
import inspect
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image

from ..errors import UserError
from ..generation.arguments import DEMO, GenerationArguments
from ..generation.judges import judge, open_judges, see_nudity_alone
from ..generation.prompts import Item
from ..generation.swap import check_text_to_image, safe_text_to_image
from ..generation.text_to_image import Request, check_original, open_painter, paint, quiet_diffusers
from ..names import redact_paths
from .ladder import Ladder

HIGHEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Drawn:
    """An image, and the judges that call it unsafe."""

    image: Image
    flagged_by: list[str]


class Drawing:
    """A pipeline with the original's text encoder and with the safe one; opened as it is first used.

    Args:
        ladder: the models.
        generation: the pipeline's name and how it draws.

    Raises:
        UserError: it is not the bundled one and there is no GPU, or a library is not installed.
    """

    def __init__(self, ladder: Ladder, generation: GenerationArguments):
        self.ladder, self.generation = ladder, generation
        self.generator = generation.generator or DEMO
        if importlib.util.find_spec("diffusers") is None:
            raise UserError("to draw requires diffusers: pip install 'safe-clip[generation]'.")
        if self.generator != DEMO and torch.device(ladder.device).type == "cpu":
            raise UserError(
                f"--generator {self.generator} requires a GPU: on a CPU an image takes minutes. "
                "safe-clip generate draws without anyone waiting."
            )
        self._one_at_a_time = threading.Lock()

    @property
    def name(self) -> str:
        """What the page calls the pipeline."""
        return redact_paths(self.generator)

    @cached_property
    def pipelines(self) -> dict[float, Any]:
        """With the original's encoder (0) and with the safe one (1); all else they share.

        Raises:
            UserError: the pipeline cannot be opened, or was made with another encoder than the original's.
        """
        quiet_diffusers()
        dtype = torch.float32 if self.generator == DEMO else torch.float16
        original = open_painter(self.generator, dtype, self.generation.generator_revision)
        check_text_to_image(original, self.ladder.safe.model)
        check_original(original, self.ladder.original.model, (self.generator, self.ladder.original.name))
        original.to(self.ladder.device)
        taken = inspect.signature(type(original)).parameters
        rest = {name: original.config[name] for name in taken if name in original.config}
        safe = type(original)(**rest | original.components)
        pipelines = {0.0: original, 1.0: safe_text_to_image(safe, self.ladder.safe.model)}
        for each in pipelines.values():
            each.set_progress_bar_config(disable=True)
        return pipelines

    @cached_property
    def judges(self) -> list:
        """Who says what is unsafe; raises `UserError` where one cannot be opened."""
        return open_judges("image", self.generation, self.generator)

    @property
    def sees_nudity_alone(self) -> bool:
        """Whether whatever else is unsafe escapes the judges."""
        return see_nudity_alone(self.judges)

    def draw(self, prompt: str, seed: int) -> dict[float, Drawn]:
        """What the original (0) and the safe encoder (1) draw.

        Raises:
            UserError: as `pipelines` and `judges`.
        """
        request = Request(Item("app", int(seed), "unsafe", prompt), 0)
        with self._one_at_a_time:  # a pipeline counts its steps
            judges = self.judges
            images = {
                strength: paint(pipeline, [request], self.generation)[0]
                for strength, pipeline in self.pipelines.items()
            }
            scores = judge(judges, list(images.values()))
        threshold = self.generation.flag_threshold
        return {
            strength: Drawn(image, [name for name, score in said.items() if score >= threshold])
            for (strength, image), said in zip(images.items(), scores, strict=True)
        }
