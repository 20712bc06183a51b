"""Images from captions, by a generator with its own text encoder and with a safe one in its place."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets.fingerprint import Hasher
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.audit.classifiers import Classifier
from ..embedding.embedder import Embedder
from ..errors import UserError
from ..models.families import family_of
from ..models.family import Tower
from ..store.chunks import Chunk, in_chunks, joined
from ..store.fingerprints import file_digest, vocabulary_digest, weights_digest
from ..store.writing import whole_file
from .arguments import CHUNK, DEMO, GenerationArguments
from .distances import Inception
from .grid import blurred
from .judges import judge
from .objects import ShownObjects
from .prompts import Item
from .swap import open_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ROUNDING = {"rtol": 2**-8, "atol": 1e-7}  # by which half precision, of either kind, may change a weight


def open_painter(name: str, dtype: torch.dtype, revision: str | None = None) -> "DiffusionPipeline":
    """A pipeline with its own text encoder; the bundled one is in float32."""
    options = {} if name == DEMO else {"torch_dtype": dtype}
    options |= {"revision": revision} if revision else {}
    return open_pipeline(name, **options)


def check_original(pipeline: "DiffusionPipeline", original: PreTrainedModel, names: tuple[str, str]) -> None:
    """Raises `UserError` where a pipeline was not made with a CLIP's text encoder; `names` are those of both."""
    encoder = pipeline.text_encoder
    if name := different_weight(encoder, original, family_of(original).text):
        raise UserError(
            f"--baseline {names[1]} is not the CLIP that --generator {names[0]} reads its prompts with: '{name}' "
            "differs. Name the one that it was made with, such as openai/clip-vit-large-patch14 for Stable Diffusion 1."
        )


def different_weight(encoder: nn.Module, clip: PreTrainedModel, tower: Tower) -> str | None:
    """The first weight of an encoder that is not that of a model's, as far as half precision can tell."""
    own = tower.of(clip).state_dict()
    for name, weight in tower.of(encoder).state_dict().items():
        other = own.get(name)
        if other is None or other.shape != weight.shape:
            return name
        if not torch.allclose(weight.float().cpu(), other.float().cpu(), **ROUNDING):
            return name
    return None


@dataclass(frozen=True)
class Request:
    """One image to generate: from what, and the number of it among the item's."""

    item: Item
    copy: int

    @property
    def key(self) -> list:
        """What tells it from others."""
        item = self.item
        return [item.split, item.row, item.side, item.prompt, item.reference, self.copy]


def requests_of(items: Sequence[Item], images_per_prompt: int) -> list[Request]:
    """The images of each item in turn."""
    return [Request(item, copy) for item in items for copy in range(images_per_prompt)]


def seed_of(generation_seed: int, request: Request) -> int:
    """The seed of an image's noise: the same for every model, and for both sides of a row."""
    return int(
        np.random.SeedSequence([generation_seed, request.item.row, request.copy]).generate_state(1, np.uint64)[0]
    )


def paint(
    pipeline: "DiffusionPipeline", requests: Sequence[Request], generation: GenerationArguments
) -> list[Image.Image]:
    """The RGB images of some requests, in one batch; the noise of each is drawn on the CPU, from a seed of its own."""
    options = {"guidance_scale": generation.guidance_scale}
    if generation.negative_prompt is not None:
        options["negative_prompt"] = [generation.negative_prompt] * len(requests)
    noise = [torch.Generator("cpu").manual_seed(seed_of(generation.generation_seed, request)) for request in requests]
    made = pipeline(
        prompt=[request.item.prompt for request in requests],
        generator=noise,
        num_inference_steps=generation.num_inference_steps,
        **{name: value for name, value in options.items() if value is not None},
    )
    return [image.convert("RGB") for image in made.images]


def quiet_diffusers() -> None:
    """Keeps diffusers from printing what it cuts off of a long prompt, which may be unsafe."""
    from diffusers.utils import logging

    logging.set_verbosity_error()


class ImageScorer:
    """Looks at generated images: judges them and embeds them.

    Args:
        judges: say whether they are unsafe.
        embedder: of the original CLIP.
        objects: sees what they show, of the bundled demo.
        inception: makes the features of FID and KID, where not the CLIP's embeddings are.
    """

    def __init__(
        self,
        judges: Sequence[Classifier],
        embedder: Embedder,
        objects: ShownObjects | None = None,
        inception: Inception | None = None,
    ):
        self.judges, self.embedder, self.objects, self.inception = judges, embedder, objects, inception

    @cached_property
    def fingerprint(self) -> list:
        """Changes with what it would say."""
        return [
            [(each.name, each.fingerprint) for each in self.judges],
            self.embedder.fingerprint,
            self.objects and self.objects.fingerprint,
            self.inception is not None,
        ]

    def see(self, images: Sequence[Image.Image], references: Sequence[str | None]) -> Chunk:
        """Of N images, each with the safe caption that belongs to it, tensors and scores.

        Returns:
            `embeds` (N x dimension, of length 1), `features` of FID (N x D, only if they are others) and `objects` (N
            shares, only of the bundled demo); and `{judge: score in [0, 1]}` of each.
        """
        tensors = {"embeds": self.embed(images)}
        if self.inception is not None:
            tensors["features"] = self.inception(images)
        if self.objects is not None:
            tensors["objects"] = self.objects.shares(images, references)
        return tensors, judge(self.judges, images)

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """N x dimension embeddings of images by the original CLIP, of length 1."""
        pixels = self.embedder.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return self.embedder.embed({"pixel_values": pixels})

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """N x D features that FID and KID compare."""
        return self.embed(images) if self.inception is None else self.inception(images)


@dataclass(frozen=True)
class GeneratedImages:
    """What one pipeline made of N requests.

    Attributes:
        requests: the requests.
        tensors: as `ImageScorer.see` gives them.
        records: of each request, among others its `scores` by judge, and the name of its `image`'s file.
        folder: where the images are.
    """

    requests: list[Request]
    tensors: dict[str, Tensor]
    records: list[dict[str, Any]]
    folder: Path

    def image(self, number: int) -> Image.Image:
        """The image of a request, as it is kept."""
        return Image.open(self.folder / self.records[number]["picture"]).convert("RGB")


def pipeline_digest(pipeline: "DiffusionPipeline") -> str:
    """Changes with what a pipeline would draw: weights, settings, tokenizer."""
    settings = {name: value for name, value in pipeline.config.items() if isinstance(value, bool | int | float | str)}
    versions = importlib.metadata.version("diffusers"), importlib.metadata.version("transformers")
    parts = [(name, _part(each)) for name, each in _components(pipeline)]
    return Hasher.hash([type(pipeline).__name__, sorted(settings.items()), parts, versions])


def _components(pipeline: "DiffusionPipeline") -> list[tuple[str, Any]]:
    return sorted((name, each) for name, each in pipeline.components.items() if each is not None)


def _part(component: Any) -> list:
    config = getattr(component, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    parts = [type(component).__name__, json.dumps(settings, sort_keys=True, default=str)]
    if isinstance(component, nn.Module):
        parts.append(weights_digest(component.state_dict().items()))
    if hasattr(component, "get_vocab"):
        parts.append(vocabulary_digest(component))
    return parts


def paint_all(
    pipeline: "DiffusionPipeline",
    requests: list[Request],
    generation: GenerationArguments,
    scorer: ImageScorer,
    folder: Path,
    original: bool = False,
    show_unsafe: bool = False,
    label: str = "Drawing",
    accelerator: Accelerator | None = None,
) -> GeneratedImages | None:
    """Draws, judges and embeds all images that are not there yet.

    Args:
        pipeline: draws them; its safety checker is taken off, since what it would blacken is what is counted.
        requests: what to draw.
        generation: how.
        scorer: looks at the images.
        folder: chunks are kept in a folder of it, whose name follows from everything that decides the images.
        original: whether the text encoder is the original, whose images of unsafe prompts are hidden in any case.
        show_unsafe: keep images as they are; otherwise, hidden ones are kept blurred beyond recognition.
        label: what the progress bar calls it.
        accelerator: who shares the work; all its processes must call this.

    Returns:
        On processes other than the main one, `None`.
    """
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.register_modules(safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    quiet_diffusers()
    steps = [generation.generation_seed, generation.num_inference_steps, generation.guidance_scale]
    steps += [generation.flag_threshold]  # which says what is kept blurred
    drawn = [pipeline_digest(pipeline), pipeline.device.type, *steps, generation.negative_prompt]
    key = Hasher.hash([drawn, [request.key for request in requests], scorer.fingerprint, original, show_unsafe])
    folder = folder / key

    def make(numbers: range) -> Chunk:
        chosen = [requests[number] for number in numbers]
        images = paint(pipeline, chosen, generation)
        tensors, scores = scorer.see(images, [request.item.reference for request in chosen])
        records = []
        for number, request, image, score in zip(numbers, chosen, images, scores, strict=True):
            name = f"{number:07}.png"
            hide = not show_unsafe and hidden(request.item.side, score, generation.flag_threshold, original)
            with whole_file(folder / name) as file:
                (blurred(image) if hide else image).save(file)
            item = request.item
            facts = {"split": item.split, "row": item.row, "side": item.side, "category": item.category}
            facts |= {"copy": request.copy, "prompt": item.prompt, "picture": name, "scores": score}
            records.append(facts | {"digest": file_digest(folder / name)})
        return tensors, records

    def is_whole(chunk: Chunk) -> bool:
        for record in chunk[1]:
            known = file_digest(folder / record["picture"])
            if record.get("digest", known) != known:  # earlier versions noted none
                raise ValueError(f"{record['image']} has been changed")
        return True

    sizes = CHUNK, generation.generation_batch_size
    options = {"accelerator": accelerator, "is_final": is_whole, "main_only": True}
    made = in_chunks(folder, len(requests), partial(map, make), label, *sizes, **options)
    return None if made is None else GeneratedImages(requests, *joined(made), folder)


def hidden(side: str, scores: Mapping[str, float], threshold: float, original: bool) -> bool:
    """Whether an image is not to be shown: a judge flags it, or it is the original's answer to an unsafe prompt, which
    may be unsafe in a way that no judge knows."""
    return (original and side == "unsafe") or any(score >= threshold for score in scores.values())
