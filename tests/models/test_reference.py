import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from safe_clip import FrozenReference, QuadrupletCollator, lora_config
from safe_clip.data.collator import model_inputs


@pytest.fixture
def inputs(processor, rows):
    from safe_clip import QuadrupletRows

    batch = QuadrupletCollator(processor, 77)([QuadrupletRows(rows)[i] for i in range(6)])
    return model_inputs(batch, safe_only=True)


ADAPTERS = {
    "lora": lora_config(lora_alpha=16, lora_dropout=0.1),
    "lora and biases": LoraConfig(r=4, target_modules=["q_proj", "fc1"], bias="all"),
    "lora and a whole module": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["visual_projection"]),
    "full": None,
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_training_moves_the_model_and_not_the_reference_by_one_bit(kind, model, inputs):
    with torch.no_grad():
        original = copy.deepcopy(model)(**inputs)
    trained = model if ADAPTERS[kind] is None else get_peft_model(model, ADAPTERS[kind])
    reference = FrozenReference(trained)
    trained.train()
    before = reference(**inputs)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    after = reference(**inputs)

    for name in ("text_embeds", "image_embeds"):
        expected, first, second = (output[name] for output in (original, before, after))
        assert torch.equal(expected, first)
        assert torch.equal(first, second)
        assert not second.requires_grad
    assert trained.training, "computing the reference must leave the model in training mode"
    trained.eval()
    with torch.no_grad():
        moved = trained(**inputs)
    assert (moved.text_embeds - original.text_embeds).abs().max() > 0.1
    assert (moved.image_embeds - original.image_embeds).abs().max() > 0.1


def test_dropout_of_the_adapter_does_not_reach_the_reference(model, inputs):
    trained = get_peft_model(model, LoraConfig(r=4, target_modules=["fc1"], lora_dropout=0.9, init_lora_weights=False))
    reference = FrozenReference(trained)
    trained.train()
    assert not torch.equal(trained(**inputs).text_embeds, trained(**inputs).text_embeds)
    assert torch.equal(reference(**inputs).text_embeds, reference(**inputs).text_embeds)


def test_what_was_frozen_in_the_adapter_stays_frozen(model, inputs):
    trained = get_peft_model(model, LoraConfig(r=4, target_modules=["fc1"]))
    frozen = next(p for name, p in trained.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    FrozenReference(trained)(**inputs)
    assert not frozen.requires_grad
    assert next(p for name, p in trained.named_parameters() if "lora_B" in name).requires_grad


def test_logit_scale_is_the_originals(model):
    model.logit_scale.data.fill_(4.0)
    reference = FrozenReference(get_peft_model(model, lora_config()))
    assert reference.logit_scale == pytest.approx(54.598, abs=1e-3)


def test_adapters_need_no_second_copy(model):
    reference = FrozenReference(get_peft_model(model, lora_config()))
    assert reference._copy is None
