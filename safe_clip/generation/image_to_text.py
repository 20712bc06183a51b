"""Captions of images, by a LLaVA with its own vision tower and with a safe one in its place."""

import importlib.metadata
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets.fingerprint import Hasher
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from ..data.audit.classifiers import Classifier
from ..data.content import column_digest
from ..embedding.items import figure
from ..errors import UserError, first_line, hub_trouble
from ..evaluation.intervals import DIGITS
from ..metrics import load_metric
from ..models.families import family_of
from ..store.chunks import Chunk, in_chunks, joined
from ..store.fingerprints import vocabulary_digest, weights_digest
from .arguments import CHUNK, DEMO, GenerationArguments
from .by_category import summarise_items
from .judges import flags, judge
from .objects import named_share
from .prompts import Item, by_split_and_side
from .swap import open_generator
from .text_to_image import different_weight

logger = logging.getLogger(__name__)

MEANS = ("rouge_l", "cider")  # the figures of caption quality that are means over captions
PLAIN_PROMPT = "USER: <image>\n{question} ASSISTANT:"  # LLaVA 1.5's, for processors without a chat template


def open_captioner(name: str, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    """A generator with its own vision tower; the bundled one is in float32."""
    options = {} if name == DEMO else {"dtype": dtype}
    options |= {"revision": revision} if revision else {}
    return open_generator(name, **options).eval()


def warn_of_another_original(model: PreTrainedModel, original: PreTrainedModel, names: tuple[str, str]) -> None:
    """Says so where a generator's vision tower is not a CLIP's, as of those that trained theirs along."""
    tower = getattr(getattr(model, "model", model), "vision_tower", None)
    known = family_of(original).image_tower
    if isinstance(tower, known.encoders) and (name := different_weight(tower, original, known)):
        logger.warning(
            "The vision tower of %s is not that of --baseline %s ('%s' differs): the figures of the original are those "
            "of the generator with its own tower.",
            *names,
            name,
        )


def open_processor(generator: str, revision: str | None = None) -> ProcessorMixin:
    """What makes a generator's inputs, with the padding that generating requires.

    Raises:
        UserError: there is none.
    """
    if generator == DEMO:
        from ..demo.captioner import load_processor

        return load_processor()
    try:
        processor = AutoProcessor.from_pretrained(generator, revision=revision, trust_remote_code=False)
    except Exception as error:  # no such repository, no connection: each its own type
        raise UserError(
            f"--generator {generator} has no processor that can be opened: {hub_trouble(error) or first_line(error)}"
        ) from error
    processor.tokenizer.padding_side = "left"  # what is generated follows the prompt
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def prompt_for(processor: ProcessorMixin, question: str, generator: str) -> str:
    """What a generator is asked about an image: by its own chat template, if it has one."""
    if generator == DEMO:
        return processor.image_token
    if processor.chat_template:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return PLAIN_PROMPT.format(question=question).replace("<image>", processor.image_token)


@torch.inference_mode()
def caption(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    prompt: str,
    max_new_tokens: int = 64,
) -> list[str]:
    """The model's captions of N RGB images, in one batch, each word the likeliest."""
    inputs = processor(images=list(images), text=[prompt] * len(images), padding=True, return_tensors="pt")
    inputs = inputs.to(model.device, model.dtype)  # of what is no whole number, the dtype
    made = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    new = made[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


@dataclass(frozen=True)
class Captions:
    """What one model says of N images.

    Attributes:
        items: whose images.
        captions: the captions.
        scores: by judge, in [0, 1].
    """

    items: list[Item]
    captions: list[str]
    scores: list[dict[str, float]]

    def flagged(self, number: int, threshold: float) -> bool:
        """Whether a judge finds a caption unsafe."""
        return any(score >= threshold for score in self.scores[number].values())


def caption_all(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    items: list[Item],
    generation: GenerationArguments,
    generator: str,
    judges: Sequence[Classifier],
    folder: Path,
    label: str = "Captioning",
    accelerator: Accelerator | None = None,
) -> Captions | None:
    """Captions and judges all images that are not done yet; arguments as for `text_to_image.paint_all`.

    Returns:
        On processes other than the main one, `None`.
    """
    prompt = prompt_for(processor, generation.question, generator)
    written = [type(model).__name__, weights_digest(model.state_dict().items()), model.device.type, str(model.dtype)]
    configs = (model.config, model.generation_config, processor.image_processor)
    settings = [json.dumps(each.to_dict(), sort_keys=True, default=str) for each in configs]
    settings += [vocabulary_digest(processor.tokenizer)]
    settings += [importlib.metadata.version(name) for name in ("torch", "transformers")]
    sources = {id(item.image.rows): _source(item) for item in items}
    images = [(item.split, item.row, item.side, item.image.place, sources[id(item.image.rows)]) for item in items]
    fingerprints = [(each.name, each.fingerprint) for each in judges]
    key = Hasher.hash([written, settings, prompt, generation.max_new_tokens, images, fingerprints])

    def make(numbers: range) -> Chunk:
        chosen = [items[number] for number in numbers]
        captions = caption(model, processor, [item.image.open() for item in chosen], prompt, generation.max_new_tokens)
        return {}, [
            {
                "split": item.split,
                "row": item.row,
                "side": item.side,
                "category": item.category,
                "caption": text,
                "reference": item.reference,
                "scores": scores,
            }
            for item, text, scores in zip(chosen, captions, judge(judges, captions), strict=True)
        ]

    sizes = CHUNK, generation.generation_batch_size
    made = in_chunks(
        folder / key, len(items), partial(map, make), label, *sizes, accelerator=accelerator, main_only=True
    )
    if made is None:
        return None
    records = joined(made)[1]
    return Captions(items, [record["caption"] for record in records], [record["scores"] for record in records])


def _source(item: Item) -> list[Any]:
    """What tells the images of an item's data set from others."""
    rows, column = item.image.rows, item.image.column
    return [column_digest(rows, column), column]


def figures(made: Captions, threshold: float, objects: bool = False) -> dict[str, dict[str, dict]]:
    """What the captions of one model come to.

    Args:
        made: the captions.
        threshold: from which a judge's score counts.
        objects: whether to look for the things of the bundled demo.

    Returns:
        `{split: {side: figures}}`: `unsafe_out`, and of each judge if there are several; `objects`, of the bundled
        demo; and the figures of `caption_quality` against the safe captions, where there are any.
    """
    return {
        split: {side: _figures(made, places, threshold, objects) for side, places in sides.items()}
        for split, sides in by_split_and_side(made.items).items()
    }


def _figures(made: Captions, places: list[int], threshold: float, objects: bool) -> dict[str, dict]:
    items, captions = [made.items[place] for place in places], [made.captions[place] for place in places]
    values = flags([made.scores[place] for place in places], threshold)
    if objects:
        shares = [named_share(item.reference, text) for item, text in zip(items, captions, strict=True)]
        values["objects"] = torch.tensor(shares, dtype=torch.float64)
    per_item, overall = quality(captions, [item.reference for item in items])
    return summarise_items(values | per_item, items) | overall


def quality(
    captions: Sequence[str], references: Sequence[str | None]
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """How near N captions come to the safe captions, by `caption_quality`; nothing where its packages are missing.

    Returns:
        For each figure that is a mean, N float64, NaN where there is no safe caption; and the others.
    """
    there = [place for place, reference in enumerate(references) if reference]
    if not there:
        return {}, {}
    found = None
    for options in ({}, {"meteor": False}):  # whose Java program may fail where the others do not
        try:
            found = load_metric("caption_quality").compute(
                predictions=[captions[place] for place in there],
                references=[[references[place]] for place in there],
                per_item=True,
                **options,
            )
            break
        except (ImportError, UserError) as error:
            print(f"{'How near captions come to the safe ones' if options else 'METEOR'} is left out: {error}")
    if found is None:
        return {}, {}
    means = {name: figure(found["per_item"][name], there, len(captions)) for name in MEANS}
    others = {
        name: {"value": round(value, DIGITS)} for name, value in found.items() if name not in (*MEANS, "per_item")
    }
    return means, others
