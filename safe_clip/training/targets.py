"""What the terms of an objective compare a batch with."""

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..data.collator import QuadrupletCollator, model_inputs
from ..data.rows import QuadrupletRows
from ..data.streams import QuadrupletStream
from ..models.reference import FrozenReference
from ..objectives.base import Makeup, Objective, ReferenceEmbeds
from ..objectives.states import States
from .reference_cache import MODALITIES, Embedder, ReferenceTable, embed_in_memory, embed_on_disk

ANCHOR_ROWS = 8192  # of the training data, evenly spread, which anchors are drawn from, if not more are wanted


class Targets:
    """Gives each batch the original's embeddings of its items and the anchors that its objective wants.

    Training rows that are numbered are embedded once, before training, since the original never changes; others, and
    those of evaluation, when they come. A missing item's numbers are NaN.

    Args:
        reference: the frozen original.
        objective: what the targets are for.
        accelerator: the trainer's, for its device, precision and other processes.

    Attributes:
        table: of the training rows, or `None`.
        pairs: the embeddings that anchors are drawn from, on the device.
    """

    def __init__(self, reference: FrozenReference, objective: Objective, accelerator: Accelerator):
        self.accelerator = accelerator
        self.anchors = objective.anchors
        self.embed = Embedder(reference, accelerator, ("safe", "unsafe") if objective.reads_unsafe else ("safe",))
        self.rows: Dataset | None = None
        self.table: ReferenceTable | None = None
        self.pairs: dict[str, Tensor] = {}

    def prepare(
        self,
        rows: QuadrupletRows | QuadrupletStream,
        collator: QuadrupletCollator,
        batch_size: int,
        workers: int = 0,
        progress: bool = True,
        cache: bool = True,
    ) -> None:
        """Embeds training rows and what anchors are drawn from; does nothing for rows that it has embedded already.

        Args:
            rows: the training rows.
            collator: makes batches of them, which number their rows.
            batch_size: rows at a time.
            workers: processes that read pictures.
            progress: show a bar.
            cache: embed all of them, once; else anchors alone. A stream's rows have no numbers to find them by.

        Raises:
            UserError: a row cannot be used.
        """
        if rows is self.rows:
            return
        how = collator, batch_size, workers, progress and self.accelerator.is_main_process
        streamed = isinstance(rows, QuadrupletStream)
        self.table = None
        if cache and not streamed:
            known = rows.filing is not None and type(collator) is QuadrupletCollator
            make = embed_on_disk if known else embed_in_memory  # whose rows or tensors nothing can be known again by
            self.table = make(self.embed, rows, *how)
        if self.anchors != 0:
            if self.table is not None:
                few = self.table.take(np.array(self._spread(len(rows))))
            else:
                plain = copy.copy(rows)
                plain.augment = None  # anchors are the same in every training
                chosen = plain.head(self.most) if streamed else Subset(plain, self._spread(len(rows)))
                table = embed_in_memory(self.embed, chosen, *how)
                few = table.take(np.arange(len(table)))
            self.pairs = self._pairs(few)
        if self.table is not None:
            self.embed.reference.put_away()
        self.rows = rows

    @property
    def most(self) -> int:
        """Rows that anchors are drawn from, at most."""
        return max(ANCHOR_ROWS, self.anchors or 0)

    def _spread(self, count: int) -> Sequence[int]:
        """The rows that anchors are drawn from: all where few or where the objective wants all."""
        if self.anchors is None or count <= self.most:
            return range(count)
        return np.linspace(0, count - 1, self.most).astype(int).tolist()

    def _pairs(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those that are whole; of data without any pair, all."""
        there = torch.stack([~columns[f"safe_{modality}"][:, 0].isnan() for modality in MODALITIES])
        pairs = there.all(dim=0) if there.all(dim=0).any() else there.any(dim=0)
        return {modality: columns[f"safe_{modality}"][pairs].to(self.accelerator.device) for modality in MODALITIES}

    def of(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Tensor]:
        """The original's embeddings of a batch's items, by name, and what the batch is made of: B rows of each.

        Args:
            inputs: what the collator made of B rows.
            training: whether they are training rows, which the table has where there is one.
        """
        if training and self.table is not None and "row" in inputs:
            taken = self.table.take(inputs["row"].cpu().numpy())
            values = {name: column.to(self.accelerator.device, non_blocking=True) for name, column in taken.items()}
        else:
            values = self.embed(inputs)
        return values | {name: inputs[name] for name in Makeup._fields}

    def states(self, inputs: dict[str, Tensor], names: Iterable[str]) -> States:
        """The original's states of the safe items of a batch, which are too many to be kept.

        Args:
            inputs: what the collator made of it.
            names: the terms that they are for; a modality that none asks for is not run.
        """
        modalities = {"input_ids": "_text_", "pixel_values": "_image_"}
        items = {
            name: items
            for name, items in model_inputs(inputs, safe_only=True).items()
            if any(modalities[name] in term for term in names)
        }
        if not items:
            return States()
        with self.accelerator.autocast():
            return self.embed.reference.family.states(self.embed.reference(**items, output_hidden_states=True))

    def complete(self, values: dict[str, Tensor], training: bool, progress: float = 1.0) -> ReferenceEmbeds:
        """The targets of rows, of one batch or of several, out of what `of` gives for them; anchors are drawn here.

        Args:
            values: as from `of`.
            training: whether they are training rows.
            progress: share of training that is done.
        """
        makeup = Makeup(*(values[name] for name in Makeup._fields))
        embeds = {name: column for name, column in values.items() if name not in Makeup._fields}
        return ReferenceEmbeds(**embeds, **self.draw(training), makeup=makeup, progress=progress)

    def draw(self, training: bool) -> dict[str, Tensor]:
        """Anchors: drawn anew in training, the same on every process, else always the first ones."""
        if not self.pairs:
            return {}
        pairs, count = self.pairs, len(self.pairs["text"])
        if self.anchors is not None and self.anchors < count:
            # Drawn on the CPU, whose random state checkpoints bring back whatever the device.
            drawn = torch.randint(count, (self.anchors,)) if training else torch.arange(self.anchors)
            drawn = drawn.to(self.accelerator.device)
            drawn = broadcast(drawn) if training and self.accelerator.num_processes > 1 else drawn
            pairs = {modality: column[drawn] for modality, column in pairs.items()}
        return {f"anchor_{modality}": column for modality, column in pairs.items()}

    def __call__(self, inputs: dict[str, Tensor], training: bool, progress: float = 1.0) -> ReferenceEmbeds:
        """The targets of a batch.

        Args:
            inputs, training: as for `of`.
            progress: share of training that is done.
        """
        return self.complete(self.of(inputs, training), training, progress)
