"""Any point between the original and the safe model."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel

import safe_clip
from safe_clip import FrozenReference, UserError, lora_config, merge

from ..helpers import NO_DROPOUT, build_model, make_trainer


def trained_adapter(processor):
    torch.manual_seed(0)
    model = get_peft_model(build_model(processor), lora_config(4, 8))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model.eval()


def test_by_hand(processor):
    original, safe = build_model(processor, 0), build_model(processor, 1)
    quarter = merge(original, safe, 0.25)
    for name, value in quarter.state_dict().items():
        before, after = original.state_dict()[name], safe.state_dict()[name]
        expected = 0.75 * before + 0.25 * after if value.is_floating_point() else before
        assert torch.allclose(value, expected, atol=1e-6), name
    for strength, end in ((0, original), (1, safe)):
        merged = merge(original, safe, strength).state_dict()
        assert all(torch.equal(value, end.state_dict()[name]) for name, value in merged.items())


def test_models_of_different_shape_are_refused(processor):
    smaller = build_model(processor)
    smaller.visual_projection = torch.nn.Linear(32, 8, bias=False)
    with pytest.raises(UserError, match="the two models differ in shape"):
        merge(build_model(processor), smaller, 0.5)


def test_it_is_the_scale_of_the_adapter(processor):
    safe = trained_adapter(processor)
    halved = copy.deepcopy(safe)
    for module in halved.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    expected = halved.merge_and_unload().state_dict()
    merged = merge(build_model(processor), safe, 0.5).state_dict()
    original = build_model(processor).state_dict()
    moved = {name for name, value in merged.items() if not torch.equal(value, original[name])}
    assert len(moved) == 2 * 2 * 5 + 1  # both encoders' layers, and the patches
    for name, value in merged.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_models_may_be_named(processor, model_dir, tmp_path):
    merged_by_hand = merge(build_model(processor), build_model(processor, 1), 0.3)
    build_model(processor, 1).save_pretrained(tmp_path)
    named = safe_clip.merge(model_dir, str(tmp_path), 0.3)
    assert isinstance(named, CLIPModel)
    for name, value in named.state_dict().items():
        torch.testing.assert_close(value, merged_by_hand.state_dict()[name])
    with pytest.raises(UserError, match="nowhere was found neither"):
        merge(model_dir, "nowhere", 0.3)


@pytest.mark.parametrize("peft_config", [NO_DROPOUT, None], ids=["lora", "full"])
def test_training_leaves_the_model_where_strength_says(peft_config, processor, rows, tmp_path):
    settings = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(processor, rows, tmp_path / "whole", peft_config, **settings)
    part = make_trainer(processor, rows, tmp_path / "part", peft_config, strength=0.4, **settings)
    for trainer in (whole, part):
        trainer.train()
        trainer.save_model()
    saved = {name: CLIPModel.from_pretrained(tmp_path / name) for name in ("whole", "part")}
    expected = merge(build_model(processor), saved["whole"], 0.4).state_dict()
    assert max((expected[n] - v).abs().max() for n, v in saved["whole"].state_dict().items()) > 1e-4
    for name, value in saved["part"].state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)
    # What is evaluated after training is what was saved.
    inputs = {
        "input_ids": torch.tensor([[1, 5, 6, processor.tokenizer.eos_token_id]]),
        "pixel_values": torch.ones(1, 3, 16, 16),
    }
    with torch.no_grad():
        found, wanted = part.model.eval()(**inputs), saved["part"].eval()(**inputs)
    torch.testing.assert_close(found.text_embeds, wanted.text_embeds, atol=1e-5, rtol=0)
    # A checkpoint holds all of the training, so that going on from it goes on from there.
    weights = "adapter_model.safetensors" if peft_config else "model.safetensors"
    checkpoints = [(tmp_path / name / "checkpoint-4" / weights).read_bytes() for name in ("whole", "part")]
    assert checkpoints[0] == checkpoints[1]


def test_an_adapter_that_is_no_product_is_refused_before_training(processor, rows, tmp_path):
    for adapter in (
        LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
        LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["visual_projection"]),
    ):
        with pytest.raises(UserError, match="--strength requires LoRA or --full_finetuning"):
            make_trainer(processor, rows, tmp_path, adapter, strength=0.5)
    with pytest.raises(UserError, match="--strength is 0.0; it must be above 0"):
        make_trainer(processor, rows, tmp_path, strength=0.0)


def test_an_embedding_s_update_is_scaled_too(processor):
    config = LoraConfig(r=4, target_modules=["token_embedding", "fc1"])
    model = get_peft_model(build_model(processor), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:  # an embedding's first factor starts at 0
                weight.normal_(std=0.1)
    expected = merge(build_model(processor), model, 0.3).state_dict()
    FrozenReference(model).scale_update(model, 0.3)
    for name, value in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)
