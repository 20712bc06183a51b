"""A tiny CLIP, one that was made of it, and a gallery of squares."""

import copy

import pytest
import torch
from datasets import Dataset

from safe_clip.app.answers import Answers
from safe_clip.app.classes import Classes
from safe_clip.app.gallery import Gallery
from safe_clip.app.ladder import Ladder, Opened
from safe_clip.evaluation.data import EvaluationData, Sample

from ..helpers import FEATURES, build_model, make_rows


def changed(model, seed: int = 7):
    """As training leaves a model: the same tables of embeddings, and other weights."""
    made = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 2 and "embedding" not in name:
                weight += 0.5 * weight.std() * torch.randn_like(weight)
    return made


@pytest.fixture(scope="package")
def rows() -> Dataset:
    """Of 24 rows the fourth has an image on the unsafe side that is labelled safe."""
    rows = Dataset.from_dict(make_rows(), features=FEATURES)
    return rows.add_column("unsafe_image_is_safe", [None] * 3 + [True] + [None] * 20)


@pytest.fixture(scope="package")
def ladder(processor) -> Ladder:
    model = build_model(processor)
    return Ladder(Opened(model, processor, "before"), Opened(changed(model), processor, "after"), progress=False)


@pytest.fixture(scope="package")
def data(rows) -> EvaluationData:
    return EvaluationData({"test": Sample(rows, 24)})


@pytest.fixture(scope="package")
def gallery(ladder, data) -> Gallery:
    return Gallery(ladder, data)


@pytest.fixture(scope="package")
def answers(gallery) -> Answers:
    return Answers(gallery, Classes(gallery.ladder))
