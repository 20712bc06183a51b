import torch
from datasets import Dataset

from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.erasure import erase_unsafe_direction
from safe_clip.evaluation.quadruplets import embed_quadruplets


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


def test_missing_items_have_no_part_in_the_erasure(model, processor, rows):
    table = rows.with_format("arrow")[:].to_pylist()
    for row in table[20:]:
        row["unsafe_image"] = None
    gaps = Dataset.from_list(table, features=rows.features)
    erased = erase_unsafe_direction(model, processor, gaps.remove_columns("unsafe_caption"))
    assert torch.equal(erased.text_projection.weight, model.text_projection.weight)  # nothing to tell apart
    assert torch.isfinite(erased.visual_projection.weight).all()
    assert not torch.equal(erased.visual_projection.weight, model.visual_projection.weight)
