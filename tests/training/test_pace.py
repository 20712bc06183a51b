"""How long training goes on and at what learning rate, where neither is set."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import CLIPConfig, CLIPModel

from safe_clip import SafeCLIPTrainingArguments
from safe_clip.models.preparation import lora_config
from safe_clip.training.pace import learning_rate, paced, planned_steps


def model(layers: int, adapter: LoraConfig | None) -> CLIPModel:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "projection_dim": 8}
    text = {**tower, "num_hidden_layers": 1, "vocab_size": 64}
    vision = {**tower, "num_hidden_layers": layers, "image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    return clip if adapter is None else get_peft_model(clip, adapter)


@pytest.mark.parametrize(
    ("layers", "adapter", "steps", "rate"),
    [
        (4, lora_config(), 500, 2.4e-3),
        (4, lora_config(), 4000, 3e-4),
        (4, lora_config(), 100, 2.5e-3),  # at most
        (16, lora_config(), 100, 1.25e-3),
        (4, lora_config(r=32, lora_alpha=64), 500, 2.4e-3),
        (4, lora_config(lora_alpha=16), 500, 4.8e-3),
        (4, LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules=["q_proj"]), 500, 2.4e-3),
        (4, None, 500, 2.4e-3),  # 16 wide
        (4, None, 4000, 3e-4),
    ],
)
def test_the_rate_follows_from_the_steps(layers, adapter, steps, rate):
    assert learning_rate(model(layers, adapter), steps) == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "rows", "steps"),
    [
        ({}, 128_000, 3000),
        ({}, 12_800, 500),  # five times through all
        ({}, 1280, 300),  # 30 times
        ({}, 40, 30),
        ({"num_train_epochs": 3}, 1280, 30),
        ({"max_steps": 7}, 1280, 7),
        ({"gradient_accumulation_steps": 4}, 128_000, 750),
    ],
)
def test_few_rows_are_gone_through_more_often(settings, rows, steps, tmp_path):
    args = SafeCLIPTrainingArguments(str(tmp_path), use_cpu=True, **settings)
    assert planned_steps(args, rows) == steps
    settled = paced(args, model(4, lora_config()), range(rows))
    assert planned_steps(settled, rows) == steps
    assert settled.learning_rate == pytest.approx(min(1.2 / steps, 2.5e-3), rel=0.05)
    # The caller's own are for the next trainer too.
    assert args.learning_rate is None and args.max_steps == settings.get("max_steps", -1)


def test_what_is_set_stays(tmp_path):
    args = SafeCLIPTrainingArguments(str(tmp_path), use_cpu=True, learning_rate=1e-4, num_train_epochs=2)
    assert paced(args, model(4, lora_config()), range(100)) is args
    args = SafeCLIPTrainingArguments(str(tmp_path), use_cpu=True, learning_rate=1e-4)
    settled = paced(args, model(4, lora_config()), range(100))
    assert (settled.learning_rate, settled.max_steps) == (1e-4, 30)
