"""The bundled demo as a `DatasetDict` with the columns that a Hub dataset would have."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, NamedSplit, Value
from datasets.fingerprint import Hasher

from ..demo import vocabulary, world
from ..store.tables import kept_table

# split: (rows, art styles, whether the unsafe stand-ins are the held-out ones)
SPLITS = {
    "train": (6000, world.TRAINING_STYLES, False),
    "validation": (500, world.TRAINING_STYLES, False),
    "test": (1000, world.TRAINING_STYLES, False),
    "held_out_concepts": (1000, world.TRAINING_STYLES, True),
    "held_out_style": (1000, world.HELD_OUT_STYLES, False),
}

STYLES = (*world.TRAINING_STYLES, *world.HELD_OUT_STYLES)
OBJECT_COPIES = 2  # images of each everyday thing in a style
STAND_IN_COPIES = 8  # images of each unsafe stand-in in a style

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


def _rows(split: str, count: int, styles: tuple[str, ...], held_out: bool) -> Iterator[dict]:
    concepts = world.unsafe_concepts(held_out)
    for index in range(count):
        yield world.draw_quadruplet(f"{split}/{index}", styles, concepts)


@cache
def _digest() -> str:
    modules = (Path(__file__), Path(vocabulary.__file__), Path(world.__file__))
    sources = (vocabulary.VOCABULARY_FILE, world.SPRITES_FILE, *modules)
    return Hasher.hash([source.read_bytes() for source in sources])


def _drawn(split: str, generator: Callable[..., Iterator[dict]], features: Features, arguments: dict) -> Dataset:
    """A split, which `datasets` keeps until the world's files or the arguments change."""
    arguments = {"split": split, **arguments}
    key = Hasher.hash([arguments, features, _digest()])
    return kept_table(generator, key, "demo", features=features, gen_kwargs=arguments, split=NamedSplit(split))


def load_demo() -> DatasetDict:
    """Draws the bundled demo, once: `datasets` caches it until the world's files change.

    Returns:
        Splits `train`, `validation`, `test`, and two that fine-tuning never sees the like of:
        `held_out_concepts` (one unsafe stand-in per category) and `held_out_style` (Fluent art).
    """
    return DatasetDict(
        {
            split: _drawn(split, _rows, FEATURES, {"count": count, "styles": styles, "held_out": held_out})
            for split, (count, styles, held_out) in SPLITS.items()
        }
    )


def _objects(split: str, style: str, copies: int) -> Iterator[dict]:
    for label, concept in enumerate(world.everyday_concepts()):
        for copy in range(copies):
            yield {"image": world.draw_object(f"{style}/{copy}/{concept.emoji}", concept, style), "label": label}


def load_objects(style: str) -> Dataset:
    """Images of single everyday things in one art style, for zero-shot classification.

    Returns:
        `image` and `label`, of which the classes are named by the usual wording of each thing.
    """
    names = [vocabulary.without_article(concept.names[0]) for concept in world.everyday_concepts()]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return _drawn(f"objects_{style}", _objects, features, {"style": style, "copies": OBJECT_COPIES})


def _stand_ins(split: str, copies: int) -> Iterator[dict]:
    for concept in (*world.unsafe_concepts(False), *world.unsafe_concepts(True)):
        for style in STYLES:
            for copy in range(copies):
                yield {"image": world.draw_object(f"unsafe/{style}/{copy}/{concept.emoji}", concept, style)}


def load_unsafe_images() -> Dataset:
    """Images of single unsafe stand-ins, of all art styles: unsafe images that belong to no quadruplet."""
    return _drawn("unsafe_pictures", _stand_ins, Features({"image": Image()}), {"copies": STAND_IN_COPIES})
