"""The families that are known, and which of them a model is of.

A further family is a further file here and its entry in `FAMILIES`.
"""

from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from ...errors import UserError
from ..family import Family
from .clip import CLIP
from .clip_text import CLIP_TEXT
from .metaclip_2 import METACLIP_2
from .siglip import SIGLIP

# By the model_type of their configurations.
FAMILIES = {family.config.model_type: family for family in (CLIP, METACLIP_2, SIGLIP, CLIP_TEXT)}
WHOLE = [family for family in FAMILIES.values() if family.image is not None]
# Likewise, of models that are near to a family's but not of it: what to take in their place.
NEAR = {
    "siglip2": "a SigLIP 2 for images of any shape (NaFlex), whose image encoder takes patches and their places. Name "
    "one of those for images of one size, such as google/siglip2-base-patch16-224.",
}


def _either(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


MODEL_NAMES = _either([family.model.__name__ for family in WHOLE])
PROCESSOR_NAMES = _either([family.processor.__name__ for family in WHOLE])


def family_of(model: Any) -> Family:
    """The family of a model, of a `PeftModel` of one, or of a configuration.

    Raises:
        UserError: it is of none.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    family = FAMILIES.get(getattr(getattr(model, "config", model), "model_type", None))
    if family is None or (isinstance(model, PreTrainedModel) and not isinstance(model, family.models)):
        raise UserError(
            f"the model is a {type(model).__name__}, not a {MODEL_NAMES} (both encoders in one). "
            f"Pass a {MODEL_NAMES}, a PeftModel of one, a folder or a Hub id."
        )
    return family


def family_named(model_type: str) -> Family:
    """The family that a `config.json` names.

    Raises:
        UserError: there is no such family; the message goes on after the name of the checkpoint.
    """
    if model_type in NEAR:
        raise UserError(f"is {NEAR[model_type]}")
    if model_type not in FAMILIES:
        families = WHOLE
        encoders = [tower.model_type for family in families for tower in family.towers.values()]
        part = ", but one encoder of it" if model_type in encoders else ""
        raise UserError(
            f"is a '{model_type}' model, not a {_either([family.name for family in families])}{part}. "
            f"Name a checkpoint of the {MODEL_NAMES} class, such as {_either([family.example for family in families])}."
        )
    return FAMILIES[model_type]
