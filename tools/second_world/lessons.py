"""What a step of pretraining shows: texts of English, and scenes with what each of their patches shows.

Every item follows from its number, so that a training that goes on sees what one that was not stopped would have seen.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from meanings import Meanings
from rows import load_sprites
from scenery import IMAGE_SIZE, TRAINING_STYLES, Scene, compose, compose_single
from things import Thing, load_things, stand_ins
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPProcessor

# Shares of the kinds of texts, by the pools of `Meanings`.
SHARES = {"lemma": 0.2, "common": 0.2, "gloss": 0.25, "keyword": 0.15, "name": 0.1, "caption": 0.1}
TOKENS = 40  # of a text, at most: a gloss that is longer is cut
TEXTS = 2  # of English beside each scene
EASY = 0.2  # share of the scenes, the first, that show one or two things only


def image_tensor(images: list, processor: CLIPProcessor) -> Tensor:
    """What the processor makes of images that have its size, in a fraction of its time: N x 3 x size x size."""
    made = processor.image_processor
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (made.image_mean, made.image_std))
    return (pixels - mean) / std


class English(Dataset):
    """`length` texts, each with its target."""

    def __init__(self, length: int, prefix: str, meanings: Meanings):
        self.length, self.prefix, self.meanings = length, prefix, meanings

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        rng = random.Random(f"{self.prefix}/{index}")
        pool = self.meanings.pools[rng.choices(list(SHARES), list(SHARES.values()))[0]]
        place = int(pool[rng.randrange(len(pool))])
        return self.meanings.texts[place], self.meanings.targets[place].float()


@dataclass
class Lesson:
    """What one item of a stage of scenes gives; `texts` only where the stage has captions."""

    scenes: list[Scene]
    singles: list[Scene]
    english: list[tuple[str, Tensor]] = field(default_factory=list)


class Scenes(Dataset):
    """`length` scenes, each with its unsafe counterpart and, every second time, a thing alone.

    Args:
        length: how many.
        prefix: of their seeds.
        meanings: what texts of English are drawn from; `None` for images alone.
    """

    def __init__(self, length: int, prefix: str, meanings: Meanings | None):
        self.length, self.prefix = length, prefix
        self.english = English(length * TEXTS, f"{prefix}/english", meanings) if meanings else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Lesson:
        seed = f"second/{self.prefix}/{index}"
        made = compose(seed, TRAINING_STYLES, stand_ins(), most=2 if index < EASY * self.length else 4)
        rng = random.Random(f"{seed}/single")
        thing, style = rng.choice(load_things()), rng.choice(TRAINING_STYLES)
        singles = [] if index % 2 else [compose_single(f"{seed}/single", thing, style)]
        english = [self.english[index * TEXTS + each] for each in range(TEXTS)] if self.english else []
        return Lesson([made.safe, made.unsafe], singles, english)


@dataclass
class EnglishCollator:
    """Batches of `English`: `english_ids`, `english_mask` and `english_targets`."""

    processor: CLIPProcessor

    def __call__(self, items: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
        ids, mask = self.tokens([text for text, _ in items])
        targets = torch.stack([target for _, target in items])
        return {"english_ids": ids, "english_mask": mask, "english_targets": targets}

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        made = self.processor.tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        return made["input_ids"], made["attention_mask"]


@dataclass
class SceneCollator:
    """Batches of `Scenes`, of S scenes with C captioned images and A things alone.

    `pixel_values` (C + A images), `shown` (C + A x things, 1 for what an image shows), `patches` (C + A x patches: the
    place of the thing that a patch shows, or -1), and with captions `input_ids` and `attention_mask` (C + A texts, the
    last of them names) and those of `EnglishCollator`.
    """

    processor: CLIPProcessor
    sprites: Path
    captions: bool

    def __call__(self, items: list[Lesson]) -> dict[str, Tensor]:
        places = _places()
        scenes = [scene for item in items for scene in item.scenes]
        singles = [scene for item in items for scene in item.singles]
        images, patches, shown = [], [], torch.zeros(len(scenes) + len(singles), len(places))
        for row, scene in enumerate([*scenes, *singles]):
            image, owner = scene.draw(load_sprites(self.sprites))
            of = torch.tensor([places[thing] for thing in scene.things] + [-1])  # the last is for -1, the ground
            images.append(image)
            patches.append(of[torch.from_numpy(owner)])
            shown[row, of[:-1]] = 1
        assert images[0].size == (IMAGE_SIZE, IMAGE_SIZE)
        batch = {
            "pixel_values": image_tensor(images, self.processor),
            "patches": torch.stack(patches),
            "shown": shown,
            "alone": torch.tensor([[False]] * len(scenes) + [[True]] * len(singles))[:, 0],
        }
        if self.captions:
            english = EnglishCollator(self.processor)
            ids, mask = english.tokens([scene.caption for scene in [*scenes, *singles]])
            batch |= {"input_ids": ids, "attention_mask": mask}
            batch |= english([text for item in items for text in item.english])
        return batch


def _places() -> dict[Thing, int]:
    return {thing: place for place, thing in enumerate(load_things())}
