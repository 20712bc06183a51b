import pytest
import torch

from safe_clip import UserError
from safe_clip.baselines import erase_unsafe_direction, interpolate
from safe_clip.evaluation.embedding import Embedder
from safe_clip.evaluation.quadruplets import embed_quadruplets

from .conftest import build_model


def test_interpolation_by_hand(processor):
    original, safe = build_model(processor, 0), build_model(processor, 1)
    quarter = interpolate(original, safe, 0.25)
    for name, value in quarter.state_dict().items():
        before, after = original.state_dict()[name], safe.state_dict()[name]
        expected = 0.75 * before + 0.25 * after if value.is_floating_point() else before
        assert torch.allclose(value, expected, atol=1e-6), name
    assert all(
        torch.equal(a, b)
        for a, b in zip(interpolate(original, safe, 0).parameters(), original.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="the two models differ in shape"):
        smaller = build_model(processor)
        smaller.visual_projection = torch.nn.Linear(32, 8, bias=False)
        interpolate(original, smaller, 0.5)


def test_no_linear_direction_tells_unsafe_from_safe_after_the_erasure(model, processor, rows):
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    erased = erase_unsafe_direction(model, processor, rows)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    moved = {name for name, value in erased.state_dict().items() if not torch.equal(value, kept[name])}
    assert moved == {"text_projection.weight", "visual_projection.weight"}

    items = embed_quadruplets(Embedder(model, processor, "test"), rows)
    for modality, name in (("text", "text_projection.weight"), ("image", "visual_projection.weight")):
        gap = (items.of("safe", modality).embeds - items.of("unsafe", modality).embeds).mean(dim=0)
        erasure = erased.state_dict()[name] @ torch.linalg.pinv(kept[name])
        assert gap.norm() > 0.05 and (erasure @ gap).norm() < 1e-4
    for name in moved:  # one direction of 24 is gone
        assert torch.linalg.matrix_rank(erased.state_dict()[name], tol=1e-4) == 23
