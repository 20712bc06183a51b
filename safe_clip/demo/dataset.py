"""The embedded world as a `DatasetDict` with the columns that a Hub dataset would have."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, NamedSplit, Value
from datasets.fingerprint import Hasher

from . import vocabulary, world

# split: (rows, art styles, whether the unsafe stand-ins are the held-out ones)
SPLITS = {
    "train": (6000, world.TRAINING_STYLES, False),
    "validation": (500, world.TRAINING_STYLES, False),
    "test": (1000, world.TRAINING_STYLES, False),
    "held_out_concepts": (1000, world.TRAINING_STYLES, True),
    "held_out_style": (1000, world.HELD_OUT_STYLES, False),
}

STYLES = (*world.TRAINING_STYLES, *world.HELD_OUT_STYLES)
OBJECT_COPIES = 2  # pictures of each everyday thing in a style
STAND_IN_COPIES = 8  # pictures of each unsafe stand-in in a style

FEATURES = Features(
    {
        "safe_caption": Value("string"),
        "safe_image": Image(),
        "unsafe_caption": Value("string"),
        "unsafe_image": Image(),
        "category": Value("string"),
        "concept": Value("string"),
    }
)


def _rows(split: str, count: int, styles: tuple[str, ...], held_out: bool, digest: str) -> Iterator[dict]:
    concepts = world.unsafe_concepts(held_out)
    for index in range(count):
        yield world.draw_quadruplet(f"{split}/{index}", styles, concepts)


@cache
def _digest() -> str:
    modules = (Path(__file__), Path(vocabulary.__file__), Path(world.__file__))
    sources = (vocabulary.VOCABULARY_FILE, world.SPRITES_FILE, *modules)
    return Hasher.hash([source.read_bytes() for source in sources])


def load_demo() -> DatasetDict:
    """Draws the embedded world, once: `datasets` caches it until the world's files change.

    Returns:
        Splits `train`, `validation`, `test`, and two that fine-tuning never sees the like of:
        `held_out_concepts` (one unsafe stand-in per category) and `held_out_style` (Fluent art).
    """
    return DatasetDict(
        {
            split: Dataset.from_generator(
                _rows,
                features=FEATURES,
                gen_kwargs={
                    "split": split,
                    "count": count,
                    "styles": styles,
                    "held_out": held_out,
                    "digest": _digest(),
                },
                split=NamedSplit(split),
            )
            for split, (count, styles, held_out) in SPLITS.items()
        }
    )


def _objects(style: str, copies: int, digest: str) -> Iterator[dict]:
    for label, concept in enumerate(world.everyday_concepts()):
        for copy in range(copies):
            yield {"image": world.draw_object(f"{style}/{copy}/{concept.emoji}", concept, style), "label": label}


def load_objects(style: str) -> Dataset:
    """Pictures of single everyday things in one art style, for zero-shot classification.

    Returns:
        `image` and `label`, of which the classes are named by the usual wording of each thing.
    """
    names = [vocabulary.without_article(concept.names[0]) for concept in world.everyday_concepts()]
    return Dataset.from_generator(
        _objects,
        features=Features({"image": Image(), "label": ClassLabel(names=names)}),
        gen_kwargs={"style": style, "copies": OBJECT_COPIES, "digest": _digest()},
        split=NamedSplit(f"objects_{style}"),
    )


def _stand_ins(copies: int, digest: str) -> Iterator[dict]:
    for concept in (*world.unsafe_concepts(False), *world.unsafe_concepts(True)):
        for style in STYLES:
            for copy in range(copies):
                yield {"image": world.draw_object(f"unsafe/{style}/{copy}/{concept.emoji}", concept, style)}


def load_unsafe_pictures() -> Dataset:
    """Pictures of single unsafe stand-ins, of all art styles: unsafe pictures that belong to no quadruplet."""
    return Dataset.from_generator(
        _stand_ins,
        features=Features({"image": Image()}),
        gen_kwargs={"copies": STAND_IN_COPIES, "digest": _digest()},
        split=NamedSplit("unsafe_pictures"),
    )
