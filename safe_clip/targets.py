"""What the terms of an objective compare a batch with."""

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from .data.collator import QuadrupletCollator, model_inputs, place
from .errors import UserError
from .objectives.base import Makeup, Objective, ReferenceEmbeds
from .reference import FrozenReference

MODALITIES = ("text", "image")


class Targets:
    """Gives each batch the original's embeddings of its items and the anchors that its objective wants.

    Training rows are embedded once, before training, since the original never changes: N x dimension float32 numbers
    for captions and as many for pictures (twice that where the objective reads unsafe items too) stay on the device of
    training. Other rows are embedded when they come. A missing item's numbers are NaN.

    Args:
        reference: the frozen original.
        objective: what the targets are for.
        accelerator: the trainer's, for its device, precision and other processes.
    """

    def __init__(self, reference: FrozenReference, objective: Objective, accelerator: Accelerator):
        self.reference = reference
        self.accelerator = accelerator
        self.anchors = objective.anchors
        self.sides = ("safe", "unsafe") if objective.reads_unsafe else ("safe",)
        self.rows: Dataset | None = None
        self.table: dict[str, Tensor] = {}
        self.pairs: dict[str, Tensor] = {}  # what anchors are drawn from

    def prepare(
        self, rows: Dataset, collator: QuadrupletCollator, batch_size: int, workers: int = 0, progress: bool = True
    ) -> None:
        """Embeds N training rows, each process its share of them; does nothing for rows that it has embedded already.

        Args:
            rows: the training rows.
            collator: makes batches of them, which number their rows.
            batch_size: rows at a time.
            workers: processes that read pictures.
            progress: show a bar.

        Raises:
            UserError: a row cannot be used, or there are fewer rows than processes.
        """
        if rows is self.rows:
            return
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        if len(rows) < processes:
            raise UserError(f"{len(rows)} training rows cannot be shared among {processes} processes; start fewer.")
        mine = Subset(rows, range(process, len(rows), processes))
        loader = DataLoader(mine, batch_size, collate_fn=collator, num_workers=workers)
        bar = tqdm(loader, desc="Embedding the training rows by the original", disable=not (progress and process == 0))
        parts = [self._embed(send_to_device(batch, self.accelerator.device)) for batch in bar]
        self.table = {}
        for name in parts[0]:
            column = torch.cat([part[name] for part in parts])
            # Rows were dealt out in turn; the last round may not have reached every process.
            column = self.accelerator.gather(self.accelerator.pad_across_processes(column))
            column = column.view(processes, -1, column.shape[-1]).transpose(0, 1)
            self.table[name] = column.reshape(-1, column.shape[-1])[: len(rows)].contiguous()
        there = torch.stack([~self.table[f"safe_{modality}"][:, 0].isnan() for modality in MODALITIES])
        pairs = there.all(dim=0) if there.all(dim=0).any() else there.any(dim=0)
        self.pairs = {
            modality: column if pairs.all() else column[pairs]
            for modality in MODALITIES
            for column in [self.table[f"safe_{modality}"]]
        }
        self.rows = rows

    def __call__(self, inputs: dict[str, Tensor], training: bool, progress: float = 1.0) -> ReferenceEmbeds:
        """The targets of a batch.

        Args:
            inputs: what the collator made of B rows.
            training: whether they are training rows, which the table has where it was prepared. Anchors are then
                drawn anew; else they are the first rows of the table.
            progress: share of training that is done.
        """
        if training and self.table and "row" in inputs:
            values = {name: column[inputs["row"]] for name, column in self.table.items()}
        else:
            values = self._embed(inputs)
        if self.pairs and self.anchors != 0:
            pairs = self.pairs
            count = len(pairs["text"])
            if self.anchors is not None and self.anchors < count:
                # Drawn on the CPU, whose random state checkpoints bring back whatever the device.
                drawn = torch.randint(count, (self.anchors,)) if training else torch.arange(self.anchors)
                pairs = {modality: column[drawn.to(column.device)] for modality, column in pairs.items()}
            values |= {f"anchor_{modality}": column for modality, column in pairs.items()}
        makeup = Makeup(inputs["present"], inputs["generated"], inputs["mixed"])
        return ReferenceEmbeds(**values, makeup=makeup, progress=progress)

    def _embed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        items = model_inputs(inputs, safe_only=self.sides == ("safe",))
        embeds = (None, None)
        if items:
            with self.accelerator.autocast():
                embeds = self.reference(**items)
        present = inputs["present"]
        values = {}
        for number, (modality, made) in enumerate(zip(MODALITIES, embeds, strict=True)):
            there = present[:, 2 * number : 2 * number + len(self.sides)]
            if made is None:
                made = torch.empty(0, self.reference.dimension, device=present.device)
            for side, column in zip(self.sides, place(made.float(), there), strict=True):
                values[f"{side}_{modality}"] = column
        return values
