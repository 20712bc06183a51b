"""Fine-tune CLIP so that its encoders stop responding to unsafe inputs.

Names are resolved on first use: importing the package imports neither torch nor transformers.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "UserError": "errors",
    "load_quadruplets": "data.quadruplets",
    "QuadrupletRows": "data.rows",
    "QuadrupletCollator": "data.collator",
    "load_clip": "models.load",
    "load_processor": "models.load",
    "lora_config": "models.preparation",
    "merge": "models.merge",
    "FrozenReference": "models.reference",
    "SafeRankingLoss": "objectives.safe_ranking",
    "SafeCLIPLoss": "objectives.safe_clip",
    "SaferCLIPLoss": "objectives.safer_clip",
    "ShieldCLIPLoss": "objectives.shield_clip",
    "SafeCLIPTrainingArguments": "training.arguments",
    "SafeCLIPTrainer": "training.trainer",
    "open_index": "embedding.index",
    "redirection_score": "evaluation.redirection_score",
    "open_calibration": "evaluation.redirection_score",
    "load_metric": "metrics",
    "evaluate_quadruplets": "evaluation.summary",
    "compute_metrics": "evaluation.summary",
    "safe_text_to_image": "generation.swap",
    "safe_image_to_text": "generation.swap",
    "write_model_card": "card",
    "update_model_card": "card",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
