"""Models in, results out: what `safe-clip eval` does, and `safe-clip train` before it publishes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from .. import __version__
from ..embedding.embedder import Embedder
from ..evaluation import TASKS
from ..metrics.ranking import ExactIndex
from ..models.load import load_clip, load_processor
from ..models.merge import check_strength, merge
from ..store.folders import folder_of
from ..terminal import phase
from .data import EvaluationData
from .quadruplets import IndexFactory
from .suite import ModelEmbeddings, count_embedded, describe, embed_everything, measure


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: `"demo"`, a Hub id or a folder.
        revision: branch, tag or commit of a Hub model.
        baseline: the original model, which weights are interpolated with if `strength` is not 1.
        strength: interpolation factor between the baseline (0) and the model (1).

    Raises:
        UserError: the strength is not from 0 to 1.
    """

    name: str
    revision: str | None = None
    baseline: "Subject | None" = None
    strength: float = 1.0

    def __post_init__(self):
        check_strength(self.strength)

    @property
    def label(self) -> str:
        """What results call it."""
        name = f"{self.name}@{self.revision}" if self.revision else self.name
        return name if self.strength == 1 else f"{name}, strength {self.strength:g}"

    def embed(
        self,
        data: EvaluationData,
        tasks: Sequence[str],
        accelerator: Accelerator | None = None,
        max_bad_fraction: float | None = None,
        cache_dir: Path | None = None,
        **options: Any,
    ) -> ModelEmbeddings:
        """Embeds what the tasks need; `options` are `Embedder`'s. All of the accelerator's processes must call it.

        Raises:
            UserError: the model cannot be used, a caption is bad, or an image cannot be read and may not be skipped.
        """
        model, processor = load_clip(self.name, self.revision), load_processor(self.name, self.revision)
        if self.strength != 1:
            assert self.baseline is not None  # both are given together
            model = merge(load_clip(self.baseline.name, self.baseline.revision), model, self.strength)
        embedder = Embedder(
            # pyrefly: ignore [bad-argument-type]: transformers wraps `to` so that its device is taken for `self`
            model.to(accelerator.device if accelerator else PartialState().device),
            processor,
            self.label,
            cache_dir=cache_dir or folder_of("embeddings"),
            accelerator=accelerator,
            **options,
        )
        processes, main = (accelerator.num_processes, accelerator.is_main_process) if accelerator else (1, True)
        with phase(f"Embedding by {self.label}", count_embedded(data, tasks) // processes, not main):
            return embed_everything(embedder, data, tasks, max_bad_fraction)


def evaluate(
    model: Subject,
    baseline: Subject | None,
    data: EvaluationData,
    accelerator: Accelerator | None = None,
    tasks: Sequence[str] = TASKS,
    factory: IndexFactory = ExactIndex,
    facts: dict[str, Any] | None = None,
    frozen_gallery: bool = False,
    **options: Any,
) -> tuple[dict, dict[str, ModelEmbeddings]] | None:
    """Measures a model, and the original beside it.

    Args:
        model, baseline: what is measured.
        data: on what.
        accelerator: who shares the work; all its processes must call this. By default this process does all of it.
        tasks: which of `TASKS`.
        factory: makes the indexes that are searched.
        facts: further facts for the results to state.
        frozen_gallery: all that is searched is embedded by the baseline, also for the model's queries.
        options: as for `Subject.embed`.

    Returns:
        What `results.json` holds, and the embeddings of each role; on processes other than the main one, `None`.

    Raises:
        UserError: as `Subject.embed`.
    """
    made = {}
    if baseline:
        made["baseline"] = baseline.embed(data, tasks, accelerator, **options)
    made["model"] = model.embed(data, tasks, accelerator, **options)
    if not alone_at_last(accelerator):
        return None
    results = describe(made, data, safe_clip=__version__, frozen_gallery=frozen_gallery, **(facts or {}))
    results["models"] = measure(made, data, tasks, factory, frozen_gallery)
    return results, made


def alone_at_last(accelerator: Accelerator | None) -> bool:
    """Returns whether this is the main process, and lets it use all CPU cores, since the other processes are done."""
    if accelerator is None:
        return True
    if accelerator.is_main_process and accelerator.num_processes > 1:
        torch.set_num_threads(os.cpu_count() or 1)  # a launcher gives each process a share
    return accelerator.is_main_process
