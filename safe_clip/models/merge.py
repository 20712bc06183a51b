"""Between the original and the safe model: a choice of how much safety for how much of what the original could do."""

import copy

from peft import PeftModel
from transformers import PreTrainedModel

from ..errors import UserError
from .families import family_of
from .load import load_clip


def check_strength(strength: float) -> None:
    """Raises `UserError` for a strength that is not between the original and the safe model."""
    if not isinstance(strength, float | int) or not 0 <= strength <= 1:  # nor NaN
        raise UserError(f"--strength is {strength}; it must be from 0, the original, to 1, the safe model.")


def merge(
    base: str | PreTrainedModel,
    safe: str | PreTrainedModel,
    strength: float = 1.0,
    base_revision: str | None = None,
    safe_revision: str | None = None,
) -> PreTrainedModel:
    """A CLIP between the original and the safe one, weight by weight (WiSE-FT, Wortsman et al., CVPR 2022).

    Of a model that was fine-tuned with LoRA this is the adapter, scaled by `strength`.

    Args:
        base: the original: `"demo"`, a Hub id, a folder or a model; it is not changed.
        safe: what was made of it, likewise, or a `PeftModel` of one.
        strength: 0 for the original, 1 for the safe model, or anything in between.
        base_revision, safe_revision: branch, tag or commit of a model on the Hub.

    Raises:
        UserError: a model cannot be opened, the two differ in shape, or the strength is none.

    Example:
        >>> model = safe_clip.merge("openai/clip-vit-large-patch14", "you/safe-clip", 0.8)
        >>> model.save_pretrained("safe-clip-0.8")
    """
    check_strength(strength)
    base = load_clip(base, base_revision) if isinstance(base, str) else base
    safe = load_clip(safe, safe_revision) if isinstance(safe, str) else safe
    if isinstance(safe, PeftModel):
        safe = copy.deepcopy(safe).merge_and_unload()
    before, after = base.state_dict(), safe.state_dict()
    families = family_of(base), family_of(safe)
    if families[0] is not families[1]:
        raise UserError(
            f"the two models are a {families[0].name} and a {families[1].name}; interpolate between a model and what "
            "it was trained from."
        )
    if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in after.items()}:
        raise UserError("the two models differ in shape; interpolate between a model and what it was trained from.")
    merged = copy.deepcopy(base)
    merged.load_state_dict(
        {
            name: value.lerp(after[name].to(value), strength) if value.is_floating_point() else value
            for name, value in before.items()
        }
    )
    return merged
