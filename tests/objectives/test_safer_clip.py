import math
from dataclasses import replace

import pytest
import torch

from safe_clip import SaferCLIPLoss, UserError
from safe_clip.items import ItemBatch, Layout, Quadruplets
from safe_clip.objectives.base import BatchTargets
from safe_clip.objectives.safer_clip import relative

EYE = torch.eye(4)


def reference_of(columns, *anchors):
    """Items by the original, in the order of `ITEMS`, and anchors."""
    drawn = {
        name: ItemBatch(embeds, torch.arange(len(embeds)))
        for name, embeds in zip(("text", "image"), anchors, strict=True)
    }
    return BatchTargets(Quadruplets.packed(columns, Layout.whole(len(columns[0]))), drawn)


def test_relative_by_hand():
    """One query on the other item, one on its target."""
    queries, target, other = EYE[[0, 1]], EYE[[2, 1]], EYE[[0, 3]]
    expected = [math.log(1 + math.e), math.log(1 + math.exp(-1))]
    assert relative(queries, target, other).tolist() == pytest.approx(expected)


def test_the_target_is_the_pair_whose_caption_is_nearest_to_the_unsafe_one():
    """The unsafe caption lies nearest to anchor 2, whatever its own counterpart is."""
    anchors_text, anchors_image = EYE, EYE[[1, 2, 3, 0]]
    unsafe_text = torch.tensor([[0.0, 0.0, 0.8, 0.6]])
    reference = reference_of([EYE[[0]], unsafe_text, EYE[[0]], EYE[[1]]], anchors_text, anchors_image)
    embeds = EYE[[0]], anchors_text[[2]], EYE[[0]], anchors_image[[2]]
    loss, terms = SaferCLIPLoss()(*embeds, reference=reference)
    assert terms["redirection_text_cosine"].item() == pytest.approx(0, abs=1e-6)
    assert terms["redirection_image_cosine"].item() == pytest.approx(0, abs=1e-6)
    # cos(T(t*), V0(v*)) = 0, cos(T(t*), V0(v')) = 0; cos(V(v*), T0(t*)) = 0.6, cos(V(v*), T0(t')) = 0.
    assert terms["redirection_text_relative"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert terms["redirection_image_relative"].item() == pytest.approx(math.log(1 + math.exp(0.6)), abs=1e-6)
    assert loss.item() == pytest.approx(math.log(2) + math.log(1 + math.exp(0.6)), abs=1e-5)


def test_the_curriculum_begins_with_the_easy_half():
    close = torch.tensor([1.0, 0.9, 0.5, 0.1])  # to the one anchor
    unsafe_text = torch.stack([close, (1 - close**2).sqrt(), torch.zeros(4), torch.zeros(4)], dim=1)
    reference = reference_of([EYE, unsafe_text, EYE, EYE], EYE[[0]], EYE[[0]])
    embeds = EYE, unsafe_text, EYE, EYE
    objective = SaferCLIPLoss(first_share=0.5)
    begun, ended = (
        objective(*embeds, reference=replace(reference, progress=progress))[1]["redirection_text_cosine"].item()
        for progress in (0.0, 1.0)
    )
    assert begun == pytest.approx(0.05, abs=1e-6)  # mean of 1 - 1 and 1 - 0.9
    assert ended == pytest.approx(0.375, abs=1e-6)


def test_bad_share():
    with pytest.raises(UserError, match="first_share above 0 and up to 1, not 0"):
        SaferCLIPLoss(first_share=0)
