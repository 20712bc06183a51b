"""Embeddings in, named loss terms out; one method a file."""

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .base import Objective
from .safe_clip import SafeCLIPLoss
from .safe_ranking import SafeRankingLoss
from .safer_clip import SaferCLIPLoss
from .shield_clip import ShieldCLIPLoss

OBJECTIVES: dict[str, type[Objective]] = {
    "safe_ranking": SafeRankingLoss,
    "safe_clip": SafeCLIPLoss,
    "safer_clip": SaferCLIPLoss,
    "shield_clip": ShieldCLIPLoss,
}


def build_objective(
    name: str,
    logit_scale: float,
    weights: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    logit_bias: float | None = None,
) -> Objective:
    """The objective of a name.

    Args:
        name: a key of `OBJECTIVES`.
        logit_scale, weights: as `Objective` takes them.
        options: the other arguments of its class.
        logit_bias: as `Objective` has it.

    Raises:
        UserError: there is no such objective, or a weight or an option does not fit it.
    """
    if name not in OBJECTIVES:
        raise UserError(f"--objective {name} is none of {', '.join(OBJECTIVES)}.")
    known = [option for option in inspect.signature(OBJECTIVES[name]).parameters if option not in _COMMON]
    for option in options or {}:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UserError(f"--objective_options names '{option}', but for {name} {has}.")
    try:
        objective = OBJECTIVES[name](logit_scale, weights, **(options or {}))
    except TypeError as error:
        raise UserError(f"--objective_options {dict(options or {})} do not fit {name}: {error}.") from error
    objective.logit_bias = logit_bias
    return objective


_COMMON = ("logit_scale", "weights")
