"""What is generated from: captions, and images, of both sides."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import Dataset, DatasetDict
from PIL import Image as PILImage

from ..data.allowance import check_bad_share
from ..data.arguments import DataArguments
from ..data.captions import leave_out_bad_captions
from ..data.features import cell_name, stored_images
from ..data.galleries import load_images
from ..data.images import open_image
from ..data.items import CAPTION_COLUMNS, IMAGE_COLUMNS, ITEM_COLUMNS, NOWHERE, ROW_COLUMN, layout_of
from ..data.minors import refuse_minors
from ..data.quadruplets import STREAMED_ROWS, first_rows
from ..data.rows import check_caption
from ..data.sources import load_splits
from ..errors import UserError
from ..evaluation.data import choose_splits, draw
from ..evaluation.quadruplets import CATEGORY_COLUMN, row_categories
from .arguments import GenerationArguments

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".text", ".md", "")
CATEGORY_NAMES = (CATEGORY_COLUMN, "categories")  # as I2P and others call it
DEFAULT_SPLIT = "test"


@dataclass(frozen=True)
class StoredImage:
    """An image that is not decoded yet: where it stands."""

    rows: Dataset = field(repr=False)
    place: int
    column: str

    def open(self) -> PILImage.Image:
        """The decoded RGB image; raises `UserError` where it cannot be read."""
        row = self.rows[self.place]
        return open_image(row[self.column], row.get(ROW_COLUMN, self.place), self.column)


@dataclass(frozen=True)
class Item:
    """One side of a quadruplet, as far as there is anything of it.

    Attributes:
        split: where it comes from: a split, a list of prompts, or a gallery.
        row: its number there.
        side: `"unsafe"` or `"safe"`.
        prompt: its caption.
        image: its image.
        category: of the row, where the data name any.
        reference: the safe caption that belongs to it; of a safe item, its own.
    """

    split: str
    row: int
    side: str
    prompt: str | None = None
    image: StoredImage | None = None
    category: str | None = None
    reference: str | None = None

    def placeholder(self, kind: str) -> str:
        """What stands in the place of an unsafe `kind` ("caption", "image") that is hidden."""
        return f"{self.side} {kind} hidden, row {self.row}" + (f", {self.category}" if self.category else "")


def by_split_and_side(items: Sequence[Item]) -> dict[str, dict[str, list[int]]]:
    """The numbers of some items, `{split: {side: numbers}}`."""
    made: dict[str, dict[str, list[int]]] = {}
    for number, item in enumerate(items):
        made.setdefault(item.split, {}).setdefault(item.side, []).append(number)
    return made


def load_prompts(
    data: DataArguments,
    generation: GenerationArguments,
    splits: Sequence[str] | None = None,
    max_samples: int | None = None,
) -> list[Item]:
    """What images are generated from: the captions of a data set, or a list of prompts.

    Args:
        data: the quadruplets.
        generation: which sides, and the list of prompts, if any.
        splits: of the quadruplets; `test` by default, or as `choose_splits`.
        max_samples: rows of each split, or of the list, drawn with a fixed seed.

    Raises:
        UserError: something cannot be found or opened, or there is nothing to generate from.
    """
    if generation.prompts:
        items = _listed(generation.prompts, generation.prompt_column, generation.sides, max_samples)
    else:
        items = load_items(data, splits, max_samples)
    return _some(items, generation, "prompt", f"no caption in {generation.prompts or data.dataset}")


def load_image_items(
    data: DataArguments,
    generation: GenerationArguments,
    splits: Sequence[str] | None = None,
    max_samples: int | None = None,
    galleries: Sequence[str] = (),
) -> list[Item]:
    """What captions are generated from: the images of a data set, and unsafe ones from elsewhere.

    Args:
        data, generation, splits, max_samples: as for `load_prompts`.
        galleries: as for `load_images`; these have no reference.

    Raises:
        UserError: something cannot be found or opened, there is no image, or one cannot be read and may not be
            skipped.
    """
    items = load_items(data, splits, max_samples)
    taken = {item.split for item in items}
    for gallery in galleries:
        found, missing = load_images(gallery)
        if missing:
            logger.warning("--unsafe_gallery %s: %d images could not be had.", gallery, len(missing))
        name = Path(gallery).name or gallery
        name = gallery if name in taken else name  # else two would count as one
        taken.add(name)
        rows = _undecoded(draw(found, max_samples).rows)
        numbers = rows[ROW_COLUMN] if ROW_COLUMN in rows.column_names else range(len(rows))
        items += [
            Item(name, int(number), "unsafe", image=StoredImage(rows, place, "image"))
            for place, number in enumerate(numbers)
        ]
    return readable(_some(items, generation, "image", f"no image in {data.dataset}"), data.skippable)


def load_items(data: DataArguments, splits: Sequence[str] | None = None, max_samples: int | None = None) -> list[Item]:
    """Both sides of the quadruplets of some splits, each item where its labels say that it belongs."""

    def choose(found: DatasetDict) -> list[str]:
        if splits is None and DEFAULT_SPLIT in found:
            return [DEFAULT_SPLIT]
        return choose_splits(found, splits, data.dataset)

    held_out = "validation" in (splits or ())
    loaded = data.load(hold_out=held_out, choose=None if held_out else choose)
    items = []
    for split in choose(loaded):
        rows = first_rows(loaded[split], STREAMED_ROWS) if data.streaming else loaded[split]
        if data.skippable is not None:
            rows, _ = leave_out_bad_captions(rows, f"split '{split}'", data.skippable)
        items += _items(draw(rows, max_samples).rows, split)
    return items


def readable(items: list[Item], max_bad_fraction: float | None = None) -> list[Item]:
    """Those whose images can be read.

    Raises:
        UserError: more than this share of the images cannot be read; by default, any.
    """
    faults: dict[int, str] = {}
    for number, item in enumerate(items):
        try:
            item.image.open()
        except UserError as error:
            if max_bad_fraction is None:
                raise
            faults[number] = str(error)
    if faults:
        summary = f"{len(faults):,} of {len(items):,} images cannot be read"
        check_bad_share(
            len(faults), len(items), max_bad_fraction, summary, f". The first: {next(iter(faults.values()))}"
        )
    for fault in faults.values():
        logger.warning("Left out: %s", fault)
    return [item for number, item in enumerate(items) if number not in faults]


def _items(rows: Dataset, split: str) -> Iterator[Item]:
    categories = row_categories(rows)
    layout, numbers = layout_of(rows), rows[ROW_COLUMN] if ROW_COLUMN in rows.column_names else range(len(rows))
    captions = {column: rows[column] for column in CAPTION_COLUMNS if column in rows.column_names}
    images = _undecoded(rows)
    for place, source in zip(layout.row.tolist(), layout.source.tolist(), strict=True):
        row = int(numbers[place])
        columns = [None if number == NOWHERE else ITEM_COLUMNS[number] for number in source]
        texts = [column and check_caption(captions[column][place], row, column) for column in columns[:2]]
        for side, text, column in zip(("safe", "unsafe"), texts, columns[2:], strict=True):
            image = StoredImage(images, place, column) if column else None
            yield Item(split, row, side, text, image, categories and categories[place], texts[0])


def _some(items: list[Item], generation: GenerationArguments, part: str, none: str) -> list[Item]:
    """The items of the sides that are asked for that have a part, the unsafe ones first."""
    chosen = [item for side in ("unsafe", "safe") if side in generation.sides for item in items if item.side == side]
    chosen = [item for item in chosen if getattr(item, part) is not None]
    if not chosen:
        raise UserError(f"there is nothing to generate from: {none} is of --sides {' '.join(generation.sides)}.")
    return chosen


def _undecoded(rows: Dataset) -> Dataset:
    """The columns of images, as they are stored, and the rows' numbers."""
    kept = [name for name in (*IMAGE_COLUMNS, "image", ROW_COLUMN) if name in rows.column_names]
    return stored_images(rows.select_columns(kept))


def _listed(name: str, column: str, sides: Sequence[str], max_samples: int | None) -> list[Item]:
    """Prompts of a list: rows with one side's captions alone."""
    caption = "safe_caption" if list(sides) == ["safe"] else "unsafe_caption"
    path = Path(name)
    if path.is_file() and path.suffix.lower() in TEXT_SUFFIXES:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {name} cannot be read: {error}.") from error
        rows = Dataset.from_dict({caption: [line.strip() for line in lines if line.strip()]})
    else:
        rows = _prompt_rows(name, column).rename_column(column, caption)
    kept = [place for place, prompt in enumerate(rows[caption]) if isinstance(prompt, str) and prompt.strip()]
    if not kept:
        raise UserError(f"--prompts {name} holds no prompt.")
    if len(kept) < len(rows):
        logger.warning("--prompts %s: %d rows have no prompt, and are left out.", name, len(rows) - len(kept))
        rows = rows.select(kept)
    rows = draw(refuse_minors(rows, f"--prompts {name}"), max_samples).rows
    items = list(_items(rows, path.stem or name))
    if CATEGORY_COLUMN in rows.column_names:  # several of them stand in a cell, beyond what a name of a category is
        feature = rows.features[CATEGORY_COLUMN]
        cells = [cell_name(feature, cell) or None for cell in rows[CATEGORY_COLUMN]]
        names = dict(zip(rows[ROW_COLUMN] if ROW_COLUMN in rows.column_names else range(len(rows)), cells, strict=True))
        items = [replace(item, category=names[item.row]) for item in items]
    return items


def _prompt_rows(name: str, column: str) -> Dataset:
    """The prompts of a table, and their categories."""
    source, _, split = name.rpartition(":")
    if not source or Path(name).exists():
        source, split = name, ""
    splits = load_splits(source, option="--prompts")
    if split and split not in splits:
        raise UserError(f"--prompts {name}: there is no split '{split}', only {', '.join(splits)}.")
    if not split and len(splits) > 1:
        raise UserError(
            f"--prompts {name} has the splits {', '.join(splits)}: name one as {name}:{next(iter(splits))}."
        )
    rows = splits[split or next(iter(splits))]
    if column not in rows.column_names:
        raise UserError(
            f"--prompts {name} has no column '{column}', only {', '.join(rows.column_names)}; name it with "
            "--prompt_column."
        )
    category = next((each for each in CATEGORY_NAMES if each in rows.column_names and each != column), None)
    rows = rows.select_columns([column, *([category] if category else [])])
    return rows.rename_column(category, CATEGORY_COLUMN) if category not in (None, CATEGORY_COLUMN) else rows
