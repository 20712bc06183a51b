"""The embedded world as a `DatasetDict` with the columns that a Hub dataset would have."""

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, NamedSplit, Value
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

FEATURES = Features(
    {
        "safe_caption": Value("string"),
        "safe_image": Image(),
        "unsafe_caption": Value("string"),
        "unsafe_image": Image(),
        "category": Value("string"),
    }
)


def _rows(split: str, count: int, styles: tuple[str, ...], held_out: bool, digest: str) -> Iterator[dict]:
    concepts = world.unsafe_concepts(held_out)
    for index in range(count):
        yield world.draw_quadruplet(f"{split}/{index}", styles, concepts)


def load_demo() -> DatasetDict:
    """Draws the embedded world, once: `datasets` caches it until the world's files change.

    Returns:
        Splits `train`, `validation`, `test`, and two that fine-tuning never sees the like of:
        `held_out_concepts` (one unsafe stand-in per category) and `held_out_style` (Fluent art).
    """
    sources = (vocabulary.VOCABULARY_FILE, world.SPRITES_FILE, Path(vocabulary.__file__), Path(world.__file__))
    digest = Hasher.hash([source.read_bytes() for source in sources])
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
                    "digest": digest,
                },
                split=NamedSplit(split),
            )
            for split, (count, styles, held_out) in SPLITS.items()
        }
    )
