"""Many captioned scenes at once, to train generators and the recogniser that judges them."""

import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.demo.world import TRAINING_STYLES, compose_quadruplet

CHUNK = 500  # scenes that a process draws at a time
SIDES = ("safe", "unsafe")


@dataclass(frozen=True)
class Scenes:
    """Captioned images, a scene and its unsafe counterpart in turn.

    Attributes:
        captions: N of them.
        images: N x 3 x size x size, uint8.
        shown: what each shows, by the numbers of concepts in `load_vocabulary()`; N lists.
    """

    captions: list[str]
    images: Tensor
    shown: list[list[int]]

    def __len__(self) -> int:
        return len(self.captions)

    def labels(self, rows: Tensor) -> Tensor:
        """Which concepts some of the images show: rows x concepts, 0 or 1."""
        made = torch.zeros(len(rows), len(load_vocabulary()))
        for place, row in enumerate(rows.tolist()):
            made[place, self.shown[row]] = 1
        return made


def draw_scenes(count: int, prefix: str, size: int, processes: int | None = None) -> Scenes:
    """Draws scenes of the training styles with every stand-in there is, as the web would show them.

    Args:
        count: scenes, each of which gives two captioned images.
        prefix: the same prefix draws the same scenes.
        size: height and width of images, in pixels.
        processes: that draw at the same time; by default one a core.
    """
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    draw, processes = partial(_draw_chunk, prefix=prefix, size=size), min(processes or os.cpu_count(), len(chunks))
    with ProcessPoolExecutor(processes) if processes > 1 else nullcontext() as pool:
        made = map(draw, chunks) if pool is None else pool.map(draw, chunks)
        captions, images, shown = zip(*tqdm(made, "Drawing scenes", len(chunks)), strict=True)
    pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    return Scenes([each for chunk in captions for each in chunk], pixels, [each for chunk in shown for each in chunk])


def _draw_chunk(numbers: range, prefix: str, size: int) -> tuple[list[str], np.ndarray, list[list[int]]]:
    vocabulary = load_vocabulary()
    places = {concept: place for place, concept in enumerate(vocabulary)}
    unsafe = tuple(concept for concept in vocabulary if concept.category is not None)
    captions, images, shown = [], [], []
    for number in numbers:
        made = compose_quadruplet(f"{prefix}/{number}", TRAINING_STYLES, unsafe)
        for side in SIDES:
            captions.append(made.caption(side))
            images.append(np.asarray(shrink(made.image(side), size)))
            shown.append([places[concept] for concept in made.concepts(side)])
    return captions, np.stack(images), shown


def shrink(image: Image.Image, size: int) -> Image.Image:
    """An image of the world at another size."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BOX)
