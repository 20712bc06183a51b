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
from accelerate.utils import send_to_device
from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import BaseImageProcessor, ProcessorMixin
from transformers.utils import ModelOutput

from ..data.collator import check_sees, model_inputs
from ..data.content import column_digest
from ..data.features import stored_images
from ..data.images import open_image
from ..data.items import ROW_COLUMN
from ..errors import UserError
from ..items import MODALITIES, SIDES, Quadruplets
from ..models.load import check_processor
from ..models.reference import FrozenCLIP
from ..store.chunks import Chunk, in_chunks, joined
from ..store.fingerprints import content_id, settings_of
from .items import IdentifiedItems

# Rows that a file of the cache holds: what an interruption can cost.
CHUNK = 256
QUADRUPLETS = 1000
MOST_CHUNKS = 500  # of quadruplets, of which there may be millions
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Embedder:
    """Embeds with one CLIP: columns of texts or images, and batches and rows of quadruplets.

    Work is cut into chunks that all processes share out among themselves. With a cache, each
    finished chunk is a safetensors file under a fingerprint of (weights, processor, data,
    precision), which later runs, resumed ones included, read in place of embedding. Batches
    are the same however many processes share them, and so are the embeddings, to the last bit.

    Args:
        model: a `CLIPModel`, or what wraps one, on the device where it is; or a `FrozenCLIP`, such as the original of a
            training.
        processor: its processor.
        label: what progress bars call the model.
        batch_size: items, or quadruplets, at a time.
        precision: `"float32"`, `"bfloat16"` or `"float16"` arithmetic (embeddings are float32);
            `"auto"` is float16 on a GPU, float32 elsewhere.
        cache_dir: a folder, on a disk that all processes see; `None` keeps nothing.
        accelerator: who shares the work; by default this process does all of it.
        num_workers: processes that read images; by default none beside a model on the CPU, and as many as there
            are cores for each process beside a GPU.
        progress: show bars.
    """

    def __init__(
        self,
        model: nn.Module | FrozenCLIP,
        processor: ProcessorMixin,
        label: str = "Embedding",
        batch_size: int = 128,
        precision: str = "auto",
        cache_dir: Path | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int | None = None,
        progress: bool = True,
    ):
        self.model: FrozenCLIP = model if isinstance(model, FrozenCLIP) else FrozenCLIP(model)
        check_processor(self.model.model, processor, embed=False)  # whatever it makes of inputs is what is measured
        self.processor, self.label = processor, label
        self.cache_dir, self.accelerator, self.progress = cache_dir, accelerator, progress
        if precision == "auto":
            precision = "float32" if self.device.type == "cpu" else "float16"
        processes = accelerator.num_processes if accelerator else 1
        if num_workers is None:
            num_workers = 0 if self.device.type == "cpu" else min(16, (os.cpu_count() or 1) // processes)
        if processes > 1 and cache_dir is None:
            raise UserError("several processes share embeddings through the cache: give it a folder with --cache_dir.")
        self.batch_size, self.precision, self.num_workers = batch_size, precision, num_workers

    @property
    def device(self) -> torch.device:
        """Where the model is run."""
        return self.accelerator.device if self.accelerator else self.model.model.device

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the model, the processor, the precision and the libraries."""
        adapters = {
            name: json.dumps(adapter.to_dict(), sort_keys=True, default=str)
            for name, adapter in self.model.adapters.items()
        }
        settings = settings_of(self.model.config, self.processor)
        return Hasher.hash([self.model.weights, adapters, settings, self.precision, self.device.type])

    # ---- What is embedded ----

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of N captions or of N images, by what the model takes for them: float32 on the CPU.

        Raises:
            UserError: they are not finite.
        """
        output = self._run(inputs)
        return self._checked(output.image_embeds if output.text_embeds is None else output.text_embeds)

    def quadruplets(
        self, batch: dict[str, Any], sides: tuple[str, ...] = SIDES, hidden_states: bool = False
    ) -> Quadruplets:
        """Embeds the items of a batch; float32, on the device.

        Args:
            batch: as a `QuadrupletCollator` makes it.
            sides: those that are embedded: both, or the safe one.
            hidden_states: with those that generators read.
        """
        inputs, layout = model_inputs(batch, safe_only=sides != SIDES), batch["layout"]
        if not inputs:
            nothing = torch.empty(0, self.model.dimension, device=self.device)
            return Quadruplets.of_sides(nothing, nothing, layout, sides=())
        output = self._run(inputs, **({"output_hidden_states": True} if hidden_states else {}))
        layers = self.model.family.hidden_states(output) if hidden_states else None
        embeds = (None if each is None else each.float() for each in (output.text_embeds, output.image_embeds))
        return Quadruplets.of_sides(*embeds, layout, layers, sides)

    def texts(self, texts: Iterable[str], desc: str = "texts") -> IdentifiedItems:
        """Embeds N texts, cut to the text encoder's length."""
        texts = list(texts)
        data = Hasher.hash(texts)

        def collate(some: list[str]) -> dict[str, Tensor]:
            return self.model.family.tokenize(self.processor.tokenizer, some, self.model.config)

        def encode(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"embeds": self.embed(batch)}

        embeds = joined(self._chunks(texts, collate, encode, ("text", data), desc, CHUNK))[0]["embeds"]
        ids = torch.tensor([content_id(text.encode()) for text in texts])
        return IdentifiedItems(embeds, torch.arange(len(texts)), ids=ids, count=len(texts))

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
        check_sees(self.processor)
        images = _Images(rows, column, transform, self.processor.image_processor)
        key = "picture", column_digest(images.rows, column), column, transform and _source(transform)

        def encode(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            readable = batch["readable"]
            embeds = torch.full((len(readable), self.model.dimension), torch.nan)
            if "pixel_values" in batch:
                embeds[readable] = self.embed({"pixel_values": batch.pop("pixel_values")})
            return {"embeds": embeds, **batch}

        made = joined(self._chunks(images, _collate_images, encode, key, desc, CHUNK))[0]
        row, broken = (mask.nonzero().flatten() for mask in (made["readable"], ~made["readable"]))
        return IdentifiedItems(
            made["embeds"][row],
            row,
            ids=made["ids"][row],
            count=len(images),
            unreadable={index: images.why(index) for index in broken.tolist()},
        )

    def rows(
        self,
        rows: TorchDataset,
        collator: Callable,
        desc: str,
        sides: tuple[str, ...] = SIDES,
        key: tuple[Any, ...] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Embeds the items of N quadruplets.

        Args:
            rows: the quadruplets.
            collator: makes batches of them, as a `QuadrupletCollator` does.
            desc: label of the progress bar.
            sides: as of `quadruplets`.
            key: what the batches are known again by, for the cache; `None` keeps nothing.

        Returns:
            Parts of the rows, which follow one another: for each item, such as `safe_text`, M x dimension float32, NaN
            where it is missing; mapped into memory from the cache.
        """
        names = [f"{side}_{modality}" for modality in MODALITIES for side in sides]

        def encode(batch: dict[str, Any]) -> dict[str, Tensor]:
            made = self.quadruplets(batch, sides).map(self._checked)
            return {name: made[name].dense(len(made)) for name in names}

        size = max(QUADRUPLETS, -(-len(rows) // MOST_CHUNKS)) if key else len(rows)
        return [tensors for tensors, _ in self._chunks(rows, collator, encode, key and (*key, names), desc, size)]

    def _run(self, inputs: dict[str, Tensor], **options: Any) -> ModelOutput:
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext():
            return self.model(**send_to_device(inputs, self.device, non_blocking=True), **options)

    def _checked(self, embeds: Tensor) -> Tensor:
        """Float32, on the CPU."""
        embeds = embeds.float().cpu()
        if not torch.isfinite(embeds).all():
            cure = "." if self.precision == "float32" else f", or too large for {self.precision}: try float32."
            raise UserError(f"{self.label} gives embeddings that are not finite numbers. Its weights are broken{cure}")
        return embeds

    # ---- Chunks ----

    def _chunks(
        self,
        data: Any,
        collate: Callable,
        encode: Callable[[dict[str, Any]], dict[str, Tensor]],
        key: tuple[Any, ...] | None,
        desc: str,
        chunk_size: int,
    ) -> list[Chunk]:
        made = in_chunks(
            self.cache_dir / Hasher.hash([self.fingerprint, *key]) if self.cache_dir and key else None,
            len(data),
            lambda batches: self._embed(data, batches, collate, encode),
            f"{self.label}: {desc}",
            chunk_size,
            self.batch_size,
            self.accelerator,
            leave=False,
            is_final=_is_readable,
            progress=self.progress,
        )
        return cast(list[Chunk], made)  # which every process reads

    def _embed(self, data: Any, batches: list[range], collate: Callable, encode: Callable) -> Iterator[Chunk]:
        """Yields each batch's tensors."""
        workers = 0 if isinstance(data, list) else self.num_workers
        # pyrefly: ignore [bad-argument-type]: torch declares lists, and takes whatever numbers can be drawn from
        for batch in DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=workers):
            yield encode(batch), []


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
