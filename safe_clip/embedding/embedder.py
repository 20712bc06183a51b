"""Embedding texts and images once: cached on disk, resumable, shared among processes."""

import contextlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import BaseImageProcessor, PreTrainedModel, ProcessorMixin

from ..data.content import column_digest
from ..data.features import stored_images
from ..data.images import open_image
from ..data.items import ROW_COLUMN
from ..errors import UserError
from ..models.family import family_of
from ..models.load import check_processor
from ..store.chunks import Chunk, in_chunks
from ..store.fingerprints import content_id, settings_of, weights_digest
from .items import IdentifiedItems

CHUNK = 256  # rows a file of the cache holds: what an interruption can cost
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Embedder:
    """Embeds with one CLIP.

    Work is cut into chunks of `CHUNK` rows that all processes share out among themselves. With a
    cache, each finished chunk is a safetensors file under a fingerprint of (weights, processor,
    data, precision), which later runs, resumed ones included, read in place of embedding. Batches
    are the same however many processes share them, and so are the embeddings, to the last bit.

    Args:
        model: a `CLIPModel`, or what wraps one, used in eval mode on the device where it is.
        processor: its processor.
        label: what progress bars call the model.
        batch_size: items at a time.
        precision: `"float32"`, `"bfloat16"` or `"float16"` arithmetic (embeddings are float32);
            `"auto"` is float16 on a GPU, float32 elsewhere.
        cache_dir: a folder, on a disk that all processes see; `None` keeps nothing.
        accelerator: who shares the work; by default this process does all of it.
        num_workers: processes that read images; by default none beside a model on the CPU, and as many as there
            are cores for each process beside a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: ProcessorMixin,
        label: str = "Embedding",
        batch_size: int = 128,
        precision: str = "auto",
        cache_dir: Path | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int | None = None,
    ):
        self.model = cast(PreTrainedModel, model)  # what wraps one passes its attributes on
        check_processor(self.model, processor, embed=False)  # whatever it makes of inputs is what is measured
        if precision == "auto":
            precision = "float32" if self.model.device.type == "cpu" else "float16"
        if num_workers is None:
            processes = accelerator.num_processes if accelerator else 1
            num_workers = 0 if self.model.device.type == "cpu" else min(16, (os.cpu_count() or 1) // processes)
        if accelerator is not None and accelerator.num_processes > 1 and cache_dir is None:
            raise UserError("several processes share embeddings through the cache: give it a folder with --cache_dir.")
        self.processor, self.label = processor, label
        self.batch_size, self.precision, self.num_workers = batch_size, precision, num_workers
        self.cache_dir, self.accelerator = cache_dir, accelerator
        self.family = family_of(self.model)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.family.dimension(self.model.config)

    @cached_property
    def weights(self) -> str:
        """Changes with the model's weights, and with nothing else."""
        return weights_digest(self.model.state_dict().items())

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the model, the processor, the precision and the libraries."""
        adapters = cast(dict, getattr(self.model, "peft_config", {}))
        return Hasher.hash(
            [
                self.weights,
                {
                    name: json.dumps(adapter.to_dict(), sort_keys=True, default=str)
                    for name, adapter in adapters.items()
                },
                settings_of(self.model.config, self.processor),
                self.precision,
                self.model.device.type,
            ]
        )

    def texts(self, texts: Iterable[str], desc: str = "texts") -> IdentifiedItems:
        """Embeds N texts, cut to the text encoder's length."""
        texts = list(texts)
        data = Hasher.hash(texts)

        def collate(some: list[str]) -> dict[str, Tensor]:
            return self.family.tokenize(self.processor.tokenizer, some, self.model.config)

        chunks = self._chunks(texts, collate, cast(Callable, self.model.get_text_features), ("text", data), desc)
        ids = torch.tensor([content_id(text.encode()) for text in texts])
        return IdentifiedItems(chunks["embeds"], torch.arange(len(texts)), ids=ids, count=len(texts))

    def images(
        self,
        rows: Dataset,
        column: str,
        desc: str = "images",
        transform: Callable[[PILImage.Image], PILImage.Image] | None = None,
    ) -> IdentifiedItems:
        """Embeds the N images of a column, as far as they can be read.

        Args:
            rows: a data set.
            column: its column of images, as `datasets.Image`, paths or bytes.
            desc: label of the progress bar.
            transform: applied to the decoded image; a function of a module, which the cache knows by name and code.
        """
        images = _Images(rows, column, transform, self.processor.image_processor)
        key = (
            "picture",
            column_digest(images.rows, column),
            column,
            transform and _source(transform),
        )
        encode = cast(Callable, self.model.get_image_features)
        chunks = self._chunks(images, _collate_images, encode, key, desc)
        row, broken = (mask.nonzero().flatten() for mask in (chunks["readable"], ~chunks["readable"]))
        return IdentifiedItems(
            chunks["embeds"][row],
            row,
            ids=chunks["ids"][row],
            count=len(images),
            unreadable={index: images.why(index) for index in broken.tolist()},
        )

    # ---- Chunks ----

    def _chunks(
        self, data: Any, collate: Callable, encode: Callable, key: tuple[Any, ...], desc: str
    ) -> dict[str, Tensor]:
        made = in_chunks(
            self.cache_dir and self.cache_dir / Hasher.hash([self.fingerprint, *key]),
            len(data),
            lambda batches: self._embed(data, batches, collate, encode),
            f"{self.label}: {desc}",
            CHUNK,
            self.batch_size,
            self.accelerator,
            leave=False,
            is_final=_is_readable,
        )
        return cast(Chunk, made)[0]  # which every process reads

    @torch.inference_mode()
    def _embed(self, data: Any, batches: list[range], collate: Callable, encode: Callable) -> Iterator[Chunk]:
        """Yields each batch's tensors."""
        workers = self.num_workers if isinstance(data, _Images) else 0
        # pyrefly: ignore [bad-argument-type]: torch declares lists, and takes whatever numbers can be drawn from
        loader = DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=workers)
        training = self.model.training
        self.model.eval()
        try:
            for batch in loader:
                yield self._encode(batch, encode), []
        finally:
            self.model.train(training)

    def _encode(self, batch: dict[str, Tensor], encode: Callable) -> dict[str, Tensor]:
        readable, ids = batch.pop("readable", None), batch.pop("ids", None)
        embeds = torch.empty(0, self.dimension)
        if batch:
            device = self.model.device
            dtype = PRECISIONS[self.precision]
            with torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
                output = encode(**{name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})
            embeds = normalize(output.pooler_output.float(), dim=1).cpu()
            if not torch.isfinite(embeds).all():
                raise UserError(
                    f"{self.label} gives embeddings that are not finite numbers. Its weights are broken"
                    + (
                        ", or too large for this precision: try --precision float32."
                        if self.precision != "float32"
                        else "."
                    )
                )
        if readable is None:
            return {"embeds": embeds}
        whole = torch.full((len(readable), self.dimension), torch.nan)
        whole[readable] = embeds
        return {"embeds": whole, "ids": cast(Tensor, ids), "readable": readable}


class _Images(TorchDataset):
    """Images of a column, ready for the model: `(id, pixels)`, with no pixels where one cannot be read.

    Made ready one by one, so that of a batch of large images only the small tensors are held.
    """

    def __init__(self, rows: Dataset, column: str, transform: Callable | None, image_processor: BaseImageProcessor):
        keep = [name for name in (column, ROW_COLUMN) if name in rows.column_names]
        self.rows = stored_images(cast(Dataset, rows.select_columns(keep)))
        self.column, self.transform, self.image_processor = column, transform, image_processor

    def __len__(self) -> int:
        return len(self.rows)

    def _open(self, index: int) -> PILImage.Image:
        row = self.rows[index]
        return open_image(row[self.column], row.get(ROW_COLUMN, index), self.column)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None]:
        try:
            image = self._open(index)
        except UserError:
            return 0, None
        number = content_id(str(image.size).encode(), image.tobytes())
        if self.transform is not None:
            image = self.transform(image)
        return number, self.image_processor(image, return_tensors="pt")["pixel_values"][0]

    def why(self, index: int) -> str:
        """The error of an image that cannot be read."""
        try:
            self._open(index)
        except UserError as error:
            return str(error)
        row = self.rows[index].get(ROW_COLUMN, index)
        return f"row {row}, column '{self.column}': the image could not be read before, and now can. Run again."


def _collate_images(images: list[tuple[int, Tensor | None]]) -> dict[str, Tensor]:
    batch = {
        "readable": torch.tensor([pixels is not None for _, pixels in images]),
        "ids": torch.tensor([number for number, _ in images], dtype=torch.int64),
    }
    good = [pixels for _, pixels in images if pixels is not None]
    return {**batch, "pixel_values": torch.stack(good)} if good else batch


def _is_readable(chunk: Chunk) -> bool:
    """Whether all images of a chunk could be read; what could not may have been mended since."""
    return "readable" not in chunk[0] or bool(chunk[0]["readable"].all())


def _source(function: Callable) -> str:
    """A function's name and the code of its module, which `Hasher` would leave out."""
    # pyrefly: ignore [bad-argument-type]: it is of a module, as `Embedder.images` asks for
    return f"{function.__qualname__} {inspect.getsource(inspect.getmodule(function))}"
