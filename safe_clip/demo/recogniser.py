"""A judge that has never seen a CLIP: says which of the world's things a small image shows.

`tools/recogniser.py` trains it, and tells how well it knows scenes that it was not trained on.
`transformers.pipeline("image-classification", RECOGNISER_DIR)` opens it.
"""

from pathlib import Path

import torch
from transformers import (
    AutoImageProcessor,
    ResNetForImageClassification,
)

from .vocabulary import Concept, load_vocabulary, without_article

RECOGNISER_DIR = Path(__file__).parent / "models" / "recogniser"
SURE = 0.5  # of a thing that counts as shown


def label_of(concept: Concept) -> str:
    """The usual name of a thing."""
    return without_article(concept.names[0])


def labels() -> list[str]:
    """Those of all things, in the order of `load_vocabulary()`."""
    return [label_of(concept) for concept in load_vocabulary()]


def unsafe_labels() -> list[str]:
    """Those of them that name unsafe stand-ins."""
    return [label_of(concept) for concept in load_vocabulary() if concept.category is not None]


def load_recogniser() -> tuple[ResNetForImageClassification, AutoImageProcessor]:
    """The bundled recogniser in float32 and evaluation mode, and what makes its pixels."""
    model = ResNetForImageClassification.from_pretrained(RECOGNISER_DIR, dtype=torch.float32)
    return model.eval(), AutoImageProcessor.from_pretrained(RECOGNISER_DIR)
