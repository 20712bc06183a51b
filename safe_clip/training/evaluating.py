"""Evaluation of quadruplets, in and beside training."""

from typing import Any

import torch
from datasets import IterableDataset, IterableDatasetDict
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from ..data.collator import item_ids
from ..data.rows import QuadrupletRows
from ..data.streams import QuadrupletStream
from ..errors import UserError


def as_evaluated(rows: Any) -> Any:
    """Rows as evaluation reads them, of each name where there are several.

    Raises:
        UserError: they are a stream, or no rows, or there is none.
    """
    if rows is None:
        return None
    if isinstance(rows, IterableDataset | IterableDatasetDict | QuadrupletStream):
        raise UserError(
            "a stream has no end that evaluation could rely on; take its first rows, such as "
            "Dataset.from_list(list(stream.take(1000)), features=stream.features)."
        )
    if isinstance(rows, dict) and rows:
        return {name: as_evaluated(each) for name, each in rows.items()}
    if not isinstance(rows, QuadrupletRows) and not isinstance(rows, dict):
        rows = QuadrupletRows(rows)
    if not len(rows):
        raise UserError("there is no row to evaluate on; pass some.")
    return rows


class EvaluationMixin:
    """For a `Trainer` of a CLIP: evaluation on quadruplets, which are given as at construction."""

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, for rows as at construction, or for those of construction by default.

        Raises:
            UserError: there are no rows, or none that can be used.
        """
        if not isinstance(eval_dataset, str):
            eval_dataset = as_evaluated(eval_dataset)
        if eval_dataset is None:
            self.eval_dataset = as_evaluated(self.eval_dataset)  # where somebody set it anew
            if self.eval_dataset is None:
                raise UserError("evaluate() requires rows: pass some, or give the trainer an eval_dataset.")
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As `Trainer.predict`, for rows as at construction: embeddings in the order of `ITEMS`, NaN for missing ones.

        Raises:
            UserError: they are no rows that can be used.
        """
        return super().predict(self._tested(test_dataset), *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of some rows, or of those that the trainer has."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            self.eval_dataset = as_evaluated(self.eval_dataset)
            named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
            if eval_dataset is not None and eval_dataset not in named:
                raise UserError(f"eval_dataset has no '{eval_dataset}' among [{', '.join(named)}].")
            return super().get_eval_dataloader(eval_dataset)
        # Kept with its worker processes, a loader would be taken for that of other rows.
        return self.get_test_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches of some rows."""
        return super().get_test_dataloader(self._tested(test_dataset))

    def _tested(self, rows: Any) -> QuadrupletRows:
        if rows is None or isinstance(rows, dict):
            named = f" such as '{next(iter(rows))}'" if rows else ""
            raise UserError(f"one data set is required here, not {type(rows).__name__}; name one{named}.")
        return as_evaluated(rows)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, Tensor | None]:
        """Loss and, where metrics are asked for, the embeddings of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, embeds = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        # The Trainer computes metrics only where there are labels; a quadruplet's are numbers by which its items
        # can be told apart, since a caption or picture that occurs twice has several right answers.
        return loss, tuple(items.dense(len(embeds)) for items in embeds), item_ids(inputs).to(loss.device)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """Adds the mean of every loss term to the metrics."""
        self.step.forget_terms("eval")
        with self.patches:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self.step.pop_term_means("eval")
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output
