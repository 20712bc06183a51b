"""Images that differ a little each time they are read."""

import math
from typing import Any

import torch
from PIL import Image

from .items import IMAGE_COLUMNS

RATIOS = (3 / 4, 4 / 3)  # of width to height, of a crop
TRIES = 10


class RandomCrop:
    """Cuts a part out of each image of a quadruplet, another one each time, which the processor then resizes.

    Args:
        least: the smallest share of an image's area that is kept, in (0, 1]; open_clip trains with 0.9.
    """

    def __init__(self, least: float):
        self.least = least

    def __call__(self, quadruplet: dict[str, Any]) -> dict[str, Any]:
        images = {name: quadruplet[name] for name in IMAGE_COLUMNS if quadruplet.get(name) is not None}
        return quadruplet | {name: self._crop(image) for name, image in images.items()}

    def _crop(self, image: Image.Image) -> Image.Image:
        for _ in range(TRIES):  # a long image has no room for some ratios
            share = torch.empty(1).uniform_(self.least, 1).item()
            ratio = math.exp(torch.empty(1).uniform_(*map(math.log, RATIOS)).item())
            width = round(math.sqrt(share * image.width * image.height * ratio))
            height = round(math.sqrt(share * image.width * image.height / ratio))
            if 0 < width <= image.width and 0 < height <= image.height:
                left = int(torch.randint(image.width - width + 1, ()))
                top = int(torch.randint(image.height - height + 1, ()))
                return image.crop((left, top, left + width, top + height))
        return image
