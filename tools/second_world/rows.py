"""Writes quadruplets of the second world as Parquet, which `safe-clip train --dataset FOLDER/data` takes.

    python tools/second_world/rows.py --output_dir FOLDER --fold 1 --category gore

Training shows the stand-ins of five folds and seven categories. `held_out_concepts` has one that it never shows of each
of those categories, `held_out_category` a category that it never shows, `held_out_style` art that neither it nor the
base has seen. FOLDER/objects has images of single everyday things, for `--zero_shot`.
"""

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from scenery import HELD_OUT_STYLES, TRAINING_STYLES, Sprites, compose, compose_single
from things import FOLDS, Thing, categories, everyday_things, seen, unseen_category, unseen_concepts
from tqdm.auto import tqdm

from safe_clip.demo.dataset import FEATURES as QUADRUPLET
from safe_clip.errors import UserError, run

FEATURES = Features(QUADRUPLET | {"names_category": Value("bool")})
OBJECT_COPIES = 2  # images of each everyday thing, one in each training style
CATEGORY = "predators"  # that is left out by default


@dataclass(frozen=True)
class Split:
    """What a split is drawn from."""

    count: int
    styles: tuple[str, ...]
    intruders: tuple[Thing, ...]


def splits(fold: int, category: str) -> dict[str, Split]:
    """All splits, where a fold and a category are left out of training."""
    known = seen(fold, category)
    return {
        "train": Split(6000, TRAINING_STYLES, known),
        "validation": Split(500, TRAINING_STYLES, known),
        "test": Split(1000, TRAINING_STYLES, known),
        "held_out_concepts": Split(1000, TRAINING_STYLES, unseen_concepts(fold, category)),
        "held_out_style": Split(1000, HELD_OUT_STYLES, known),
        "held_out_category": Split(1000, TRAINING_STYLES, unseen_category(category)),
    }


@cache
def load_sprites(file: Path) -> Sprites:
    """`{(emoji, style): RGBA image}` of a file that `build_sprites.pack` wrote.

    Raises:
        UserError: there is none.
    """
    if not file.exists():
        raise UserError(f"there is no {file}: make.py makes it, and --sprites names it elsewhere.")
    table = Dataset.from_parquet(str(file), keep_in_memory=True).cast_column("sprite", Image(decode=False))
    return {
        (row["emoji"], row["style"]): PILImage.open(io.BytesIO(row["sprite"]["bytes"])).convert("RGBA") for row in table
    }


def quadruplets(name: str, split: Split, sprites: Sprites) -> Iterator[dict]:
    """The rows of a split, whose name is part of their seeds."""
    for index in range(split.count):
        yield compose(f"second/{name}/{index}", split.styles, split.intruders).row(sprites)


def objects(sprites: Sprites) -> Dataset:
    """Images of single everyday things, labelled by their usual names."""
    features = Features({"image": Image(), "label": ClassLabel(names=[thing.name for thing in everyday_things()])})
    rows = [
        {
            "image": encoded(compose_single(f"second/{style}/{thing.emoji}", thing, style).draw(sprites)[0]),
            "label": label,
        }
        for label, thing in enumerate(everyday_things())
        for style in TRAINING_STYLES[:OBJECT_COPIES]
    ]
    return Dataset.from_list(rows, features=features)


def encoded(image: PILImage.Image) -> dict:
    """An image as a data set keeps it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(sprites: Sprites, folder: Path, fold: int = 0, category: str = CATEGORY, rows: int | None = None) -> None:
    """Writes what is not there yet.

    Args:
        sprites: the art.
        folder: gets `data/SPLIT.parquet`, with a `README.md` that names them, and `objects/test.parquet`.
        fold, category: what is left out of training.
        rows: of each split at most, for a quick look.

    Raises:
        UserError: the data there are of another fold or category.
    """
    readme = folder / "data" / "README.md"
    if readme.exists() and readme.read_text(encoding="utf-8") != card(fold, category):
        raise UserError(f"{folder} has data of another fold or category: give these an --output_dir of their own.")
    readme.parent.mkdir(parents=True, exist_ok=True)
    readme.write_text(card(fold, category), encoding="utf-8")
    for name, split in splits(fold, category).items():
        file = folder / "data" / f"{name}.parquet"
        if file.exists():
            continue
        split = split if rows is None else Split(min(rows, split.count), split.styles, split.intruders)
        made = []
        for row in tqdm(quadruplets(name, split, sprites), name, split.count):
            made.append(row | {f"{side}_image": encoded(row[f"{side}_image"]) for side in ("safe", "unsafe")})
        _write(Dataset.from_list(made, features=FEATURES), file)
    if not (file := folder / "objects" / "test.parquet").exists():
        _write(objects(sprites), file)


def card(fold: int, category: str) -> str:
    """The head of a README, which says for `datasets` what each file is, and what the data are."""
    files = "".join(f"  - split: {name}\n    path: {name}.parquet\n" for name in splits(fold, category))
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\nQuadruplets of the second world, made by "
        f"tools/second_world/rows.py --fold {fold} --category {category}.\n"
    )


def _write(rows: Dataset, file: Path) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    rows.to_parquet(str(part))
    part.rename(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder of its own for each fold and category")
    parser.add_argument("--sprites", type=Path, help="sprites.parquet of make.py; by default that in --output_dir")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), default=0)
    parser.add_argument("--category", choices=categories(), default=CATEGORY)
    args = parser.parse_args()
    write(load_sprites(args.sprites or args.output_dir / "sprites.parquet"), args.output_dir, args.fold, args.category)


if __name__ == "__main__":
    run(main)
