"""Figures of merit on embeddings: `evaluate` modules, each a folder that `evaluate.load(path)` opens offline."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    import evaluate


@cache
def load_metric(name: str) -> "evaluate.EvaluationModule":
    """Opens the `evaluate` module of this folder that has this name.

    Raises:
        UserError: there is none.
    """
    known = sorted(each.parent.name for each in Path(__file__).parent.glob("*/*.py") if each.stem == each.parent.name)
    if name not in known:
        raise UserError(f"there is no metric {name!r}; the metrics are {', '.join(known)}.")
    import evaluate

    return evaluate.load(str(Path(__file__).parent / name), keep_in_memory=True)


def scores(metric: str, **inputs: Any) -> dict[str, Any]:
    """What a metric of this folder makes of some inputs."""
    found = load_metric(metric).compute(**inputs)
    assert found is not None  # as it is where several processes share a metric
    return found
