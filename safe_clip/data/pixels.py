"""Images decoded and resized once, and kept as the small uint8 squares that a model sees."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from transformers import BaseImageProcessor

from ..store.tables import one_by_one, table_in_chunks
from .content import column_digest
from .images import open_image
from .items import IMAGE_COLUMNS, ROW_COLUMN, items_there

SHARE_OF_DISK = 0.5  # of what is free, that a cache may take without being asked for
LIBRARIES = ("pillow", "torch", "transformers")  # whose versions may change a pixel


def pixel_shape(image_processor: BaseImageProcessor) -> tuple[int, int, int] | None:
    """Channels, height and width of what an image processor makes; `None` where that is more than levels of 0 to
    255."""
    sample = Image.effect_noise((67, 45), 80).convert("RGB")
    levels = to_levels(sample, image_processor)
    whole = image_processor(sample, return_tensors="pt")["pixel_values"][0]
    made = from_levels([levels.to(torch.uint8)], image_processor)[0]
    return tuple(levels.shape) if torch.allclose(made, whole, atol=1e-6) else None


def to_levels(image: Image.Image, image_processor: BaseImageProcessor) -> torch.Tensor:
    """An image resized and cropped; channels x height x width levels of 0 to 255."""
    return image_processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]


def from_levels(levels: list[torch.Tensor], image_processor: BaseImageProcessor) -> torch.Tensor:
    """The `pixel_values` of images that are resized and cropped already."""
    return image_processor(
        levels, do_resize=False, do_center_crop=False, input_data_format="channels_first", return_tensors="pt"
    )["pixel_values"]


def cache_size(rows: Dataset, shape: tuple[int, int, int]) -> int:
    """Bytes that the cache of a data set's images takes."""
    count = sum(int(items_there(rows, column).sum()) for column in IMAGE_COLUMNS)
    return count * shape[0] * shape[1] * shape[2]


def has_room(size: int) -> bool:
    """Whether the disk of the cache has room enough for so many bytes that nobody will miss them."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return size <= SHARE_OF_DISK * shutil.disk_usage(folder).free


def cache_pixels(
    rows: Dataset,
    image_processor: BaseImageProcessor,
    workers: int = 0,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Dataset:
    """Decodes the images of rows, once: `datasets` keeps them, and a run that was interrupted goes on where it was.

    Args:
        rows: with images as they are stored.
        image_processor: the model's.
        workers: processes that decode.
        progress: show a bar.
        accelerator: knows the processes that share the work.

    Returns:
        The rows, whose cells of images hold the bytes of channels x height x width levels of 0 to 255.

    Raises:
        UserError: an image cannot be read.
    """
    columns = [column for column in IMAGE_COLUMNS if column in rows.column_names]
    if not columns:
        return rows
    made = [json.dumps(image_processor.to_dict(), sort_keys=True, default=str), type(image_processor).__name__]
    made += [importlib.metadata.version(name) for name in LIBRARIES]
    features = Features({column: Value("binary") for column in columns})

    def arguments(chunk: Dataset, first: int) -> dict[str, Any]:
        return {"rows": _Levels(chunk, first, columns, image_processor), "workers": workers}

    def key(chunk: Dataset) -> str:
        return Hasher.hash([[(column, column_digest(chunk, column)) for column in columns], made])

    how = ("Decoding images, once", progress, "pixels", accelerator)
    pixels = table_in_chunks(rows, features, arguments, key, one_by_one, *how)
    return concatenate_datasets([rows.remove_columns(columns), pixels], axis=1)


class _Levels(TorchDataset):
    """The images of rows as bytes of levels."""

    def __init__(self, rows: Dataset, first: int, columns: list[str], image_processor: BaseImageProcessor):
        self.rows, self.first, self.columns, self.image_processor = rows, first, columns, image_processor
        self.there = {column: items_there(rows, column) for column in columns}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, bytes | None]:
        row = self.rows[index]
        number = row.get(ROW_COLUMN, self.first + index)
        return {
            column: to_levels(open_image(row[column], number, column), self.image_processor)
            .to(torch.uint8)
            .numpy()
            .tobytes()
            if self.there[column][index]
            else None
            for column in self.columns
        }
