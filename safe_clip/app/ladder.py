"""The original, the safe model, and a few steps between them, which several people ask at once."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..embedding.embedder import Embedder
from ..errors import UserError
from ..models.load import check_processor, load_clip, load_processor, public_name
from ..models.merge import check_related, merge
from ..models.reference import FrozenCLIP

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the slider: 0 is the original, 1 the safe model


@dataclass(frozen=True)
class Opened:
    """A model that is open.

    Attributes:
        model, processor: of transformers.
        name: what a page calls it, which tells nothing of this machine.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    name: str

    @classmethod
    def of(cls, name: str, revision: str | None = None) -> "Opened":
        """By its name: `"demo"`, a Hub id or a folder.

        Raises:
            UserError: it cannot be opened, or sees no images.
        """
        model, processor = load_clip(name, revision), load_processor(name, revision)
        if processor.image_processor is None:
            raise UserError(f"--model {name} is a text encoder alone, and the page searches images: name a whole CLIP.")
        check_processor(model, processor)
        label = public_name(name)
        return cls(model, processor, f"{label}@{revision}" if revision else label)


class SharedCLIP(FrozenCLIP):
    """A frozen CLIP that threads ask one after another."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model.eval())
        self.lock = threading.RLock()

    def _run(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
        with self.lock:
            return super()._run(model, inputs)


class Ladder:
    """Embeds by the original (0), by the safe model (1) and by what lies between.

    Args:
        original, safe: the two models.
        device: where they run.
        cache_dir: where embeddings of the gallery are kept; `None` keeps none.
        options: as of `Embedder`.

    Raises:
        UserError: one was not trained from the other.
    """

    def __init__(
        self,
        original: Opened,
        safe: Opened,
        device: torch.device | str = "cpu",
        cache_dir: Path | None = None,
        **options: Any,
    ):
        try:
            check_related(original.model, safe.model)
        except UserError as error:
            raise UserError(f"{safe.name} and {original.name} do not belong together: {error}") from error
        self.original, self.safe = original, safe
        self.device, self._options = device, {"cache_dir": cache_dir, **options}
        self._ends = {0.0: self._embedder(original, original.name), 1.0: self._embedder(safe, safe.name)}
        self._between: tuple[float, Embedder] | None = None  # the last one asked for: large models fill the memory
        self._making = threading.Lock()

    def _embedder(self, opened: Opened, label: str) -> Embedder:
        # pyrefly: ignore [bad-argument-type]: transformers wraps `to` so that its device is taken for `self`
        model = SharedCLIP(opened.model.to(self.device))
        return Embedder(model, opened.processor, label, **self._options)

    def embedder(self, strength: float) -> Embedder:
        """That of a step.

        Raises:
            UserError: it is none of `STEPS`.
        """
        if strength not in STEPS:
            raise UserError(f"the strength must be among {', '.join(f'{step:g}' for step in STEPS)}.")
        if strength in self._ends:
            return self._ends[strength]
        with self._making:
            if self._between is None or self._between[0] != strength:
                self._between = None  # before the next takes its room
                merged = merge(self.original.model, self.safe.model, strength)
                opened = Opened(merged, copy.deepcopy(self.safe.processor), self.safe.name)
                self._between = strength, self._embedder(opened, f"{self.safe.name}, strength {strength:g}")
            return self._between[1]

    @contextmanager
    def alone(self, strength: float) -> Iterator[Embedder]:
        """The embedder of a step while no other thread uses it; nor its tokenizer, which two may not."""
        embedder = self.embedder(strength)
        with embedder.model.lock:
            yield embedder

    def embed(self, query: "str | Image", strength: float) -> Tensor:
        """The embedding of a text or of an RGB image, of which nothing is kept: 1 x dimension, of length 1."""
        with self.alone(strength) as embedder:
            if isinstance(query, str):
                clip = embedder.model
                return embedder.embed(clip.family.tokenize(embedder.processor.tokenizer, [query], clip.config))
            pixels = embedder.processor.image_processor(query, return_tensors="pt")["pixel_values"]
            return embedder.embed({"pixel_values": pixels})

    @property
    def weights(self) -> dict[str, str]:
        """Digests of the weights, as `safe-clip eval` writes them into its results."""
        return {"model": self._ends[1.0].model.weights, "baseline": self._ends[0.0].model.weights}


Tell = Callable[[int, int], None]
