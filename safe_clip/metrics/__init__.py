"""Figures of merit on embeddings: `evaluate` modules, each a folder that `evaluate.load(path)` opens offline."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate


@cache
def load_metric(name: str) -> "evaluate.EvaluationModule":
    """Opens the `evaluate` module of this folder that has this name."""
    import evaluate

    return evaluate.load(str(Path(__file__).parent / name), keep_in_memory=True)
