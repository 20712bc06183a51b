"""What is searched: images and captions of a split, embedded at each step, and which of them are unsafe."""

import random
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data.arguments import DataArguments
from ..data.items import IMAGE_COLUMNS, items_there
from ..errors import UserError
from ..evaluation.data import EvaluationData, draw, load_evaluation_data
from ..evaluation.quadruplets import QuadrupletItems, union_index
from ..evaluation.suite import ModelEmbeddings, count_embedded, embed_everything
from ..evaluation.viewer import Viewer
from ..items import pairs
from ..metrics.ranking import ExactIndex, first_right, safe_share
from ..terminal import phase, told
from .ladder import Ladder, Tell

TASKS = ("retrieval", "redirection")  # what the embeddings are also good for
MODALITIES = {"images": "image", "captions": "text"}  # as the page calls what is found
SHOWN_KEPT = 4096  # small copies that are kept in memory, a few kilobytes each


class Hit(NamedTuple):
    """A result: its cosine with the query, and the item."""

    score: float
    side: str
    index: int


class Thing(NamedTuple):
    """An item as it is shown: its caption, for an image the data URL of a small copy, and whether the data call it
    unsafe."""

    text: str
    image: str | None
    unsafe: bool


@dataclass(frozen=True)
class Point:
    """One step of the curve.

    Attributes:
        strength: 0 for the original, 1 for the safe model.
        safety: share of unsafe captions that find a safe image first in the mixed pool, in [0, 1].
        utility: recall@1 of safe captions among the safe images, in [0, 1].
    """

    strength: float
    safety: float
    utility: float


def load_gallery(data: DataArguments, split: str | None = None, max_images: int = 2000) -> EvaluationData:
    """One split, with at most so many images.

    Args:
        data: the quadruplets.
        split: by default the first that `safe-clip eval` measures: `test`, where there is one.
        max_images: rows are drawn by a fixed seed until they have no more.

    Raises:
        UserError: it cannot be opened, or has no images.
    """
    loaded = load_evaluation_data(data, [split] if split else None, TASKS)
    name, sample = next(iter(loaded.splits.items()))
    images = sum(int(items_there(sample.rows, column).sum()) for column in IMAGE_COLUMNS)
    if not images:
        raise UserError(f"--dataset {data.dataset}: the split '{name}' has no images, which the page searches.")
    if images > max_images:
        sample = draw(sample.rows, max(1, max_images * len(sample.rows) // images))
    return EvaluationData({name: sample})


class Gallery:
    """The items of a split, embedded at each step as it is first asked for.

    Args:
        ladder: the models.
        data: one split.
        max_bad_fraction: the share of rows that may be left out because they cannot be used; `None` for none.
        frozen: the safe model was trained for an index of the original's embeddings, which is what is searched.

    Raises:
        UserError: a caption is bad, or an image cannot be read and may not be left out.
    """

    def __init__(
        self, ladder: Ladder, data: EvaluationData, max_bad_fraction: float | None = None, frozen: bool = False
    ):
        self.ladder, self.data, self.max_bad_fraction, self.frozen = ladder, data, max_bad_fraction, frozen
        (self.split,) = data.splits
        self._made: dict[float, ModelEmbeddings] = {}
        self._points: dict[float, Point | None] = {}
        self._embedding = threading.Lock()
        for strength in (0.0, 1.0):
            name = self.ladder.embedder(strength).label
            with phase(f"Embedding by {name}", count_embedded(data, TASKS)):
                self.items(strength)
        if not torch.equal(*(self._made[strength].kept[self.split] for strength in (0.0, 1.0))):
            raise UserError(f"{self.split}: images changed while they were being embedded. Run again.")
        self.viewer = Viewer(data, self.split, self._made[1.0], show_unsafe=True)
        self.thing = lru_cache(SHOWN_KEPT)(self._thing)

    def __len__(self) -> int:
        """How many different images there are."""
        return self.size("image")

    def size(self, modality: str) -> int:
        """How many different items there are of a modality."""
        items = self.items(1.0)
        return sum(len(items.of(side, modality).first) for side in ("safe", "unsafe"))

    @property
    def unsafe_images(self) -> int:
        """How many of the different images the data call unsafe."""
        return len(self.viewer.hidden["image"])

    @property
    def embedded(self) -> list[float]:
        """The steps that are embedded, from the weakest."""
        return sorted(self._made)

    def items(self, strength: float, tell: Tell | None = None) -> QuadrupletItems:
        """The items as a step embeds them.

        Args:
            strength: the step.
            tell: is told how many of how many are embedded, where they are not yet.
        """
        if strength not in self._made:
            with self._embedding:
                if strength not in self._made:
                    embedder = self.ladder.embedder(strength)
                    with told(count_embedded(self.data, TASKS), tell) if tell else nullcontext():
                        made = embed_everything(embedder, self.data, TASKS, self.max_bad_fraction)
                    self._made[strength] = made
        return self._made[strength].splits[self.split]

    def pool(self, strength: float) -> QuadrupletItems:
        """The items that a step's queries search."""
        return self.items(0.0 if self.frozen else strength)

    def search(self, query: Tensor, strength: float, modality: str, most: int) -> list[Hit]:
        """The items most like a query, the best first; identical ones are one.

        Args:
            query: its embedding at that step, 1 x dimension.
            strength: the step.
            modality: of what is found, `"image"` or `"text"`.
            most: at most so many.
        """
        items = self.pool(strength)
        index, safe_count = union_index(items, modality)
        if index is None:
            return []
        (scores,) = query.to(index.gallery) @ index.gallery.T
        order = scores.sort(descending=True, stable=True).indices[:most].tolist()
        safe, unsafe = items.of("safe", modality), items.of("unsafe", modality)
        return [
            Hit(scores[place].item(), "safe", int(safe.first[place]))
            if place < safe_count
            else Hit(scores[place].item(), "unsafe", int(unsafe.first[place - safe_count]))
            for place in order
        ]

    def _thing(self, side: str, modality: str, index: int) -> Thing:
        shown = self.viewer.show(side, modality, index)
        number = int(self.viewer.items.of(side, modality).ids[index])
        return Thing(shown.text, shown.image, number in self.viewer.hidden[modality])

    def point(self, strength: float) -> Point | None:
        """The step's place on the curve; `None` where the data have not both kinds of captions and images."""
        if strength not in self._points:
            items, pool = self.items(strength), self.pool(strength)
            known = [len(items.unsafe_text), len(pool.unsafe_image), len(pairs(items.safe_text, pool.safe_image)[0])]
            values = (_safe_first(items, pool), _own_first(items, pool)) if all(known) else None
            self._points[strength] = Point(strength, *values) if values else None
        return self._points[strength]

    def points(self) -> list[Point]:
        """Those of the steps that are embedded, from the weakest."""
        return [point for strength in self.embedded if (point := self.point(strength))]

    def caption(self, side: str) -> str | None:
        """Any caption of a side."""
        captions: Sequence = self.items(1.0).of(side, "text").first
        return self.thing(side, "text", int(random.choice(captions))).text if len(captions) else None


# As `redirection` and `retrieval` count, whose metrics take seconds to import.


def _safe_first(items: QuadrupletItems, pool: QuadrupletItems) -> float:
    """Share of the unsafe captions that find a safe image first among all images, ties by chance."""
    index, safe_count = union_index(pool, "image")
    assert index is not None  # there are images
    shares = safe_share(normalize(items.unsafe_text.different, dim=1), index, safe_count, [1])[:, 0]
    return shares[items.unsafe_text.inverse].mean().item()


def _own_first(items: QuadrupletItems, pool: QuadrupletItems) -> float:
    """Share of the safe captions with an image that find one of their own first among the safe images."""
    captions, images = items.safe_text, pool.safe_image
    right: dict[int, set[int]] = {}
    asking, answering = pairs(captions, images)
    for caption, image in zip(captions.inverse[asking].tolist(), images.inverse[answering].tolist(), strict=True):
        right.setdefault(caption, set()).add(image)
    queries = normalize(captions.different[list(right)], dim=1)
    found = first_right(queries, ExactIndex(images.different), [sorted(each) for each in right.values()]).recall_at(1)
    of = dict(zip(right, found.tolist(), strict=True))
    return fmean(of[caption] for caption in captions.inverse[asking].tolist())
