"""Between the original and the safe model: a choice of how much safety for how much of what the original could do."""

import copy

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ..errors import UserError
from .families import family_of
from .load import load_clip

# Mean cosine: adapters leave embedding tables alone and full fine-tuning hardly moves them, while those of two CLIPs
# have next to nothing in common.
SAME_BASE = 0.9


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
    check_alike(base, safe)
    before, after = base.state_dict(), safe.state_dict()
    merged = copy.deepcopy(base)
    merged.load_state_dict(
        {
            name: value.lerp(after[name].to(value), strength) if value.is_floating_point() else value
            for name, value in before.items()
        }
    )
    return merged


def check_alike(base: PreTrainedModel, safe: PreTrainedModel) -> None:
    """Raises `UserError` where two models are not of one family, or not of one shape."""
    families = family_of(base), family_of(safe)
    if families[0] is not families[1]:
        raise UserError(
            f"the two models are a {families[0].name} and a {families[1].name}; interpolate between a model and what "
            "it was trained from."
        )
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (base, safe)]
    if shapes[0] != shapes[1]:
        raise UserError("the two models differ in shape; interpolate between a model and what it was trained from.")


def check_related(base: PreTrainedModel, safe: PreTrainedModel) -> None:
    """Raises `UserError` where one model was not trained from the other, as far as weights tell."""
    check_alike(base, safe)
    tables = [
        [each for tower in family_of(model).towers.values() for each in tower.embedding_tables(tower.of(model))]
        for model in (base, safe)
    ]
    cosine = table_cosine(*tables)
    if not cosine >= SAME_BASE:
        raise UserError(
            "the two models have one shape, but neither was trained from the other: the mean cosine of their embedding "
            f"tables is {cosine:.2f}, where {SAME_BASE} and more is to be expected. Name the model's own original."
        )


@torch.no_grad()
def table_cosine(theirs: list[Tensor], ours: list[Tensor]) -> float:
    """The mean cosine between the rows of embedding tables, N x `hidden_size` each."""
    rows = [cosine_similarity(a.float().cpu(), b.float().cpu()) for a, b in zip(theirs, ours, strict=True)]
    return torch.cat(rows).mean().item()
