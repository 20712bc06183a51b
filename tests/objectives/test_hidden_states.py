"""Terms over states, against numbers computed by hand."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import CLIPModel

from safe_clip import (
    FrozenReference,
    SafeCLIPLoss,
    SafeCLIPTrainingArguments,
    SafeRankingLoss,
    UserError,
    lora_config,
)
from safe_clip.config import parse_arguments
from safe_clip.items import Layout, Quadruplets
from safe_clip.models.families import CLIP
from safe_clip.models.patches import accept_one_modality
from safe_clip.objectives import OBJECTIVES, build_objective
from safe_clip.objectives.base import hidden_state_terms
from safe_clip.objectives.hidden_states import HIDDEN_STATE_NEEDS, nearest_state_distance, relative_error

ORIGINAL = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])  # one item, two positions, lengths 5 and 2


def test_drift_is_a_share_of_the_states_own_length():
    assert relative_error(ORIGINAL, ORIGINAL).tolist() == [0]
    assert relative_error(torch.zeros(1, 2, 2), ORIGINAL).tolist() == [1]
    moved = ORIGINAL + torch.tensor([[[0.0, 5.0], [1.0, 0.0]]])
    assert relative_error(moved, ORIGINAL).item() == pytest.approx((25 / 25 + 1 / 4) / 2)
    assert relative_error(10 * moved, 10 * ORIGINAL).item() == pytest.approx(0.625)  # whatever the scale


def test_states_stray_to_the_nearest_that_is_allowed():
    # The order does not matter, nor how many positions there are.
    assert nearest_state_distance(ORIGINAL.flip(1), ORIGINAL).tolist() == [0]
    assert nearest_state_distance(ORIGINAL[:, [1, 1, 0]], ORIGINAL).tolist() == [0]
    # (3, 0) is 16 away from (3, 4), which is 16/25 of its length, and 13 from (0, 2), which is 13/4.
    assert nearest_state_distance(torch.tensor([[[3.0, 0.0]]]), ORIGINAL).item() == pytest.approx(16 / 25)


def test_states_are_pulled_to_the_nearest_and_to_nothing_else():
    states = torch.tensor([[[3.0, 0.0]]], requires_grad=True)
    nearest_state_distance(states, ORIGINAL).sum().backward()
    assert states.grad.tolist() == [[[0, pytest.approx(2 * (0 - 4) / 25)]]]


def items(*values):
    return (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1),)


def values_of(layout, trained, original):
    """The losses of the terms. By modality, layers of the trained model, of safe items and then of unsafe ones, and of
    the original, of safe items."""

    def quadruplets(layers, sides):
        embeds = [torch.zeros(len(layers[name][0]), 2) if name in layers else None for name in ("text", "image")]
        return Quadruplets.of_sides(*embeds, layout, layers, sides)

    terms = hidden_state_terms(quadruplets(trained, ("safe", "unsafe")), quadruplets(original, ("safe",)))
    return {name: mean.losses(torch.arange(len(mean.row))) for name, mean in terms.items()}


def test_rows_find_their_own_items_where_some_are_missing():
    """Of four rows, the second has no safe caption and the third no unsafe one."""
    layout = Layout.of(np.array([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=bool))
    # Safe captions of rows 0, 2, 3, then unsafe ones of rows 0, 1, 3.
    values = values_of(layout, {"text": items(1.0, 2.0, 4.0, 3.0, 9.0, 6.0)}, {"text": items(1.0, 1.0, 4.0)})
    assert set(values) == {"preservation_text_states", "redirection_text_states"}  # there are no images
    assert values["preservation_text_states"].tolist() == [0, 1, 0]
    assert values["redirection_text_states"].tolist() == [4, 0.25]  # (3 - 1)^2 / 1^2, (6 - 4)^2 / 4^2


def test_several_layers_count_alike():
    trained = {"text": (*items(2.0, 1.0), *items(1.0, 4.0)), "image": items(1.0, 1.0)}
    original = {"text": (*items(1.0), *items(1.0)), "image": items(1.0)}
    found = {name: value.item() for name, value in values_of(Layout.whole(1), trained, original).items()}
    assert found == {
        "preservation_text_states": (1 + 0) / 2,
        "redirection_text_states": (0 + 9) / 2,
        "preservation_image_states": 0,
        "redirection_image_states": 0,
    }


def test_positions_count_in_images_and_not_in_captions():
    trained = torch.cat([ORIGINAL, ORIGINAL.flip(1)])  # the unsafe item has the safe one's states in another order
    made = {"text": (trained, trained), "image": (trained,)}, {"text": (ORIGINAL, ORIGINAL), "image": (ORIGINAL,)}
    values = values_of(Layout.whole(1), *made)
    assert values["redirection_text_states"].tolist() == [0]
    # (0, 2) and (3, 4) are 13 apart.
    assert values["redirection_image_states"].item() == pytest.approx((13 / 25 + 13 / 4) / 2)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_objective_takes_weights_for_states(objective):
    assert set(objective.STATE_WEIGHTS) == set(HIDDEN_STATE_NEEDS)
    made = objective(weights={"preservation_text_states": 3})
    assert made.total({"preservation_text_states": 1.0}) == 3 / made.divisor
    assert made.term_rows(Layout.whole(5))["preservation_text_states"] == 5
    with pytest.raises(UserError, match="preservation_text_states"):
        objective(weights={"preservation_text_state": 3})


def test_the_papers_objective_leaves_states_alone_and_the_default_does_not():
    assert SafeCLIPLoss().hidden_state_terms == ()
    assert set(SafeRankingLoss().hidden_state_terms) == set(HIDDEN_STATE_NEEDS)
    loss = SafeCLIPLoss(weights={"preservation_text_states": 3})
    assert loss.total({"redirection_text_cosine": 1.0}) == SafeCLIPLoss().total({"redirection_text_cosine": 1.0})


def test_generators_can_be_left_out(tmp_path):
    def weights(**settings):
        args = SafeCLIPTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **settings)
        made = build_objective(args.objective, 1.0, args.term_weights, None)
        return {name: made.weights[name] for name in made.hidden_state_terms}

    assert weights() == SafeRankingLoss.STATE_WEIGHTS
    assert weights(hidden_state_terms=False) == {}
    own = {"preservation_text_states": 5.0}
    assert weights(hidden_state_terms=False, loss_weights=own) == own  # what is named wins
    (parsed,) = parse_arguments([SafeCLIPTrainingArguments], ["--no_hidden_state_terms", "--output_dir", str(tmp_path)])
    assert not parsed.hidden_state_terms


def test_states_are_those_that_generators_read(model, processor, rows):
    """What `transformers` gives for `hidden_states` and for the last, normalised states of the text encoder."""
    tokens = processor.tokenizer(["a dog", "two cats"], padding="max_length", max_length=16, return_tensors="pt")
    pixels = processor.image_processor([rows[0]["safe_image"]], return_tensors="pt")["pixel_values"]
    model.eval()
    wanted = {"output_hidden_states": True}
    with accept_one_modality(model):
        made = CLIP.hidden_states(model(input_ids=tokens["input_ids"], pixel_values=pixels, **wanted))
        captions = CLIP.hidden_states(model(input_ids=tokens["input_ids"], **wanted))
        images = CLIP.hidden_states(model(pixel_values=pixels, **wanted))
    text = model.text_model(input_ids=tokens["input_ids"], **wanted)
    image = model.vision_model(pixel_values=pixels, **wanted)
    assert len(text.hidden_states) == model.config.text_config.num_hidden_layers + 1
    assert torch.equal(made["text"][0], text.hidden_states[-2]) and torch.equal(made["text"][1], text.last_hidden_state)
    assert torch.equal(made["image"][0], image.hidden_states[-2]) and len(made["image"]) == 1
    last = model.vision_model.encoder.layers[-1](made["image"][0], attention_mask=None)
    assert torch.allclose(last[0] if isinstance(last, tuple) else last, image.last_hidden_state, atol=1e-6)
    assert captions.keys() == {"text"} and torch.equal(captions["text"][1], made["text"][1])
    assert images.keys() == {"image"} and torch.equal(images["image"][0], made["image"][0])


def test_the_reference_gives_the_originals_states_through_adapters(model, processor):
    original = CLIPModel(model.config)
    original.load_state_dict(model.state_dict())
    trained = get_peft_model(model, lora_config())
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tokens = processor.tokenizer(["a dog"], return_tensors="pt")["input_ids"]
    before = CLIP.hidden_states(FrozenReference(trained)(input_ids=tokens, output_hidden_states=True))
    expected = original.eval().text_model(input_ids=tokens, output_hidden_states=True)
    assert torch.allclose(before["text"][0], expected.hidden_states[-2], atol=1e-6)
    with accept_one_modality(trained.get_base_model()):
        moved = CLIP.hidden_states(trained(input_ids=tokens, output_hidden_states=True))
    assert relative_error(moved["text"][0], before["text"][0]).item() > 1e-2
