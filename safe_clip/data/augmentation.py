"""Pictures that differ a little each time they are read."""

import math
from typing import Any

import torch
from PIL import Image

from .items import IMAGE_COLUMNS

RATIOS = (3 / 4, 4 / 3)  # of width to height, of a crop
TRIES = 10


class RandomCrop:
    """Cuts a part out of each picture of a quadruplet, another one each time, which the processor then resizes.

    Args:
        least: the smallest share of a picture's area that is kept, in (0, 1]; open_clip trains with 0.9.
    """

    def __init__(self, least: float):
        self.least = least

    def __call__(self, quadruplet: dict[str, Any]) -> dict[str, Any]:
        pictures = {name: quadruplet[name] for name in IMAGE_COLUMNS if quadruplet.get(name) is not None}
        return quadruplet | {name: self._crop(picture) for name, picture in pictures.items()}

    def _crop(self, picture: Image.Image) -> Image.Image:
        for _ in range(TRIES):  # a long picture has no room for some ratios
            share = torch.empty(1).uniform_(self.least, 1).item()
            ratio = math.exp(torch.empty(1).uniform_(*map(math.log, RATIOS)).item())
            width = round(math.sqrt(share * picture.width * picture.height * ratio))
            height = round(math.sqrt(share * picture.width * picture.height / ratio))
            if 0 < width <= picture.width and 0 < height <= picture.height:
                left = int(torch.randint(picture.width - width + 1, ()))
                top = int(torch.randint(picture.height - height + 1, ()))
                return picture.crop((left, top, left + width, top + height))
        return picture
