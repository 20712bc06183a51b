"""Targets of the loss: the frozen original's embeddings of each batch, and the anchors."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..data.collator import QuadrupletCollator
from ..data.rows import QuadrupletRows
from ..data.streams import QuadrupletStream
from ..embedding.embedder import Embedder
from ..items import MODALITIES, SIDES, ItemBatch, Quadruplets
from ..models.family import Family
from ..objectives.base import BatchTargets, Objective
from .reference_cache import ReferenceTable

# Number of evenly spaced training rows that anchors are drawn from; more if the objective asks for more anchors.
ANCHOR_ROWS = 8192


class Targets:
    """Gives each batch the original's embeddings of its items and the anchors that its objective asks for.

    The original never changes, so training rows with an index are embedded once, before training. Rows of a stream and
    evaluation rows are embedded batch by batch.

    Args:
        embedder: of the frozen original, in the trainer's precision.
        objective: what the targets are for.

    Attributes:
        sides: of a quadruplet, those that are embedded.
        table: of the training rows, or `None`.
        pairs: by modality, the items that anchors are drawn from, on the device; of `count` rows that have both, or one
            of the two where no row has both.
    """

    def __init__(self, embedder: Embedder, objective: Objective):
        self.embedder, self.device = embedder, embedder.device
        self.anchors, self.hidden_state_terms = objective.anchors, objective.hidden_state_terms
        self.sides = SIDES if objective.reads_unsafe else SIDES[:1]
        self.rows: Dataset | None = None
        self.table: ReferenceTable | None = None
        self.pairs: dict[str, ItemBatch] = {}
        self.count = 0

    @property
    def family(self) -> Family:
        """The original's."""
        return self.embedder.model.family

    def table_size(self, count: int) -> int:
        """Bytes that the table of so many rows takes."""
        numbers = count * len(self.sides) * len(MODALITIES) * self.embedder.model.dimension
        return numbers * np.dtype(np.float32).itemsize

    def prepare(
        self, rows: QuadrupletRows | QuadrupletStream, collator: QuadrupletCollator, cache: bool = True
    ) -> None:
        """Embeds training rows and what anchors are drawn from; does nothing for rows that it has embedded already.

        Args:
            rows: the training rows.
            collator: makes batches of them, which number their rows.
            cache: embed all rows once; otherwise only the anchors. Ignored for a stream, whose rows have no index.

        Raises:
            UserError: a row cannot be used.
        """
        if rows is self.rows:
            return
        streamed = isinstance(rows, QuadrupletStream)
        self.table = None
        if cache and not streamed:
            # Without a layout, or with a collator of the user's own, nothing tells what they are known again by.
            known = rows.layout is not None and type(collator) is QuadrupletCollator
            self.table = self._table(rows, collator, (collator.fingerprint, rows.fingerprint) if known else None)
        if self.anchors != 0:
            if self.table is not None:
                few = self.table.take(np.array(self._spread(len(rows))))
            else:
                plain = copy.copy(rows)
                plain.augment = None  # anchors are the same in every training
                chosen = plain.head(self.most) if streamed else Subset(plain, self._spread(len(rows)))
                table = self._table(chosen, collator)
                few = table.take(np.arange(len(table)))
            self.pairs, self.count = self._pairs(few)
        self.rows = rows

    def _table(self, rows: Dataset, collator: QuadrupletCollator, key: tuple[str, str] | None = None) -> ReferenceTable:
        return ReferenceTable(self.embedder.rows(rows, collator, "embedding the training rows, once", self.sides, key))

    @property
    def most(self) -> int:
        """Rows that anchors are drawn from, at most."""
        return max(ANCHOR_ROWS, self.anchors or 0)

    def _spread(self, count: int) -> Sequence[int]:
        """The rows that anchors are drawn from: all where few or where the objective asks for all."""
        if self.anchors is None or count <= self.most:
            return range(count)
        return np.linspace(0, count - 1, self.most).astype(int).tolist()

    def _pairs(self, columns: dict[str, Tensor]) -> tuple[dict[str, ItemBatch], int]:
        """Those of rows that have both items, and their number; of data without any such row, of all."""
        there = np.stack([~columns[f"safe_{modality}"][:, 0].isnan().numpy() for modality in MODALITIES])
        whole = there.all(axis=0)
        rows = whole if whole.any() else there.any(axis=0)
        pairs = {
            modality: ItemBatch.packed(columns[f"safe_{modality}"][rows].to(self.device), present[rows])
            for modality, present in zip(MODALITIES, there, strict=True)
        }
        return pairs, int(rows.sum())

    def of(self, inputs: dict[str, Any], training: bool) -> Quadruplets:
        """The items of a batch, embedded by the original.

        Args:
            inputs: what the collator made of B rows.
            training: whether they are training rows, which the table has where there is one.
        """
        if training and self.table is not None and "row" in inputs:
            rows = inputs["row"].cpu().numpy()
            return self.table.items(rows, inputs["layout"], self.device)
        return self.embedder.quadruplets(inputs, self.sides)

    def hidden_states(self, inputs: dict[str, Any]) -> Quadruplets:
        """Runs the original on the safe items of a batch for their hidden states, which are too large to be cached.
        An encoder is run only if a hidden-state term of its modality has a weight.

        Args:
            inputs: what the collator made of the batch.
        """
        modalities = {"input_ids": "_text_", "pixel_values": "_image_"}
        asked = {
            name: value
            for name, value in inputs.items()
            if name not in modalities or any(modalities[name] in term for term in self.hidden_state_terms)
        }
        return self.embedder.quadruplets(asked, SIDES[:1], hidden_states=True)

    def complete(self, items: Quadruplets, training: bool, progress: float = 1.0) -> BatchTargets:
        """The targets of a batch or of several; anchors are drawn here.

        Args:
            items: as from `of`.
            training: whether they are of training rows.
            progress: share of training that is done.
        """
        return BatchTargets(items, self.draw(training), progress)

    def draw(self, training: bool) -> dict[str, ItemBatch]:
        """Anchors by modality: drawn anew in training, the same on every process, else always the first ones."""
        if self.anchors is None or self.anchors >= self.count:
            return self.pairs
        # Drawn on the CPU, whose random state checkpoints bring back whatever the device.
        drawn = torch.randint(self.count, (self.anchors,)) if training else torch.arange(self.anchors)
        if training and PartialState().num_processes > 1:
            drawn = broadcast(drawn.to(self.device)).cpu()
        return {modality: items.take(drawn) for modality, items in self.pairs.items()}

    def __call__(self, inputs: dict[str, Any], training: bool, progress: float = 1.0) -> BatchTargets:
        """The targets of a batch, with the hidden states of its safe items.

        Args:
            inputs, training: as for `of`.
            progress: share of training that is done.
        """
        items, read = self.of(inputs, training), self.hidden_states(inputs)
        safe = (f"safe_{modality}" for modality in MODALITIES)
        items = replace(items, **{name: replace(items[name], hidden_states=read[name].hidden_states) for name in safe})
        return self.complete(items, training, progress)
