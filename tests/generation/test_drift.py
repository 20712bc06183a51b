"""How far the states that generators read were moved."""

import pytest
import torch
from transformers import CLIPModel

from safe_clip.generation.drift import BATCH, state_drift
from safe_clip.generation.prompts import Item

from .conftest import build_safe


def captioned(*captions):
    return [Item("test", row, "safe", caption, reference=caption) for row, caption in enumerate(captions)]


def test_nothing_moves_between_a_model_and_itself(model, processor):
    model.eval()
    assert state_drift(model, model, processor.tokenizer, captioned("a dog", "two cats"), True).tolist() == [0, 0]


def test_captions_are_measured_in_both_layers_at_full_length(model, processor):
    safe = build_safe(processor).eval()
    model.eval()
    captions = ["a dog", *["two cats"] * BATCH, "a bus on a hill"]  # more than a batch
    made = state_drift(model, safe, processor.tokenizer, captioned(*captions), True)
    assert len(made) == len(captions) and made[1] == pytest.approx(made[BATCH].item(), rel=1e-5)
    length = model.config.text_config.max_position_embeddings
    tokens = processor.tokenizer(captions[-1], padding="max_length", max_length=length, return_tensors="pt")
    shares = []
    with torch.no_grad():
        before, after = (
            clip.text_model(input_ids=tokens["input_ids"], output_hidden_states=True) for clip in (model, safe)
        )
    for old, new in (
        (before.hidden_states[-2], after.hidden_states[-2]),
        (before.last_hidden_state, after.last_hidden_state),
    ):
        lengths = old[0].norm(dim=1)
        assert len(lengths) == length
        shares.append((((new - old)[0].norm(dim=1) / lengths) ** 2).mean().item())
    assert made[-1].item() == pytest.approx(sum(shares) / 2, rel=1e-4) and made[-1] > 1e-3


def test_images_are_measured_before_the_last_layer(model, processor, rows):
    class Stored:
        def __init__(self, image):
            self.image = image

        def open(self):
            return self.image

    items = [Item("test", row, "safe", image=Stored(rows[row]["safe_image"])) for row in range(3)]
    safe = CLIPModel(model.config)
    safe.load_state_dict(model.state_dict())
    model.eval()
    with torch.no_grad():
        safe.vision_model.encoder.layers[-1].mlp.fc1.weight.mul_(2)
    assert state_drift(model, safe.eval(), processor.image_processor, items, False).tolist() == [0, 0, 0]
    with torch.no_grad():
        safe.vision_model.encoder.layers[0].mlp.fc2.weight.mul_(2)
    assert (state_drift(model, safe, processor.image_processor, items, False) > 1e-4).all()
