"""The drop-in has what consumers look for, new and old, and all of it says the same."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, lora_config
from safe_clip.models.drop_in import save_drop_in, save_processor

from ..helpers import build_model

TEXTS = ["a red square", "A  RED mark!", "", "naïve 🙂", "a blue square beside a green one " * 30]


@pytest.fixture
def own(processor) -> CLIPProcessor:
    return copy.deepcopy(processor)


def read(folder: Path, file: str) -> dict:
    return json.loads((folder / file).read_text(encoding="utf-8"))


def test_every_reader_finds_the_same_tokens_and_pixels(own, rows, tmp_path):
    expected = own.tokenizer(TEXTS)["input_ids"]
    own.tokenizer(TEXTS, padding=True, truncation=True, max_length=5)  # leaves its settings behind
    save_processor(own, tmp_path)
    for reader in (CLIPProcessor.from_pretrained(tmp_path).tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert reader(TEXTS)["input_ids"] == expected
        assert reader.special_tokens_map == own.tokenizer.special_tokens_map
    whole = read(tmp_path, "tokenizer.json")
    assert whole["truncation"] is None and whole["padding"] is None
    image = rows[0]["safe_image"].resize((40, 30))
    expected = own.image_processor(image, return_tensors="pt")["pixel_values"]
    (tmp_path / "processor_config.json").unlink()  # as before transformers 5
    found = CLIPImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected)


def test_the_files_of_older_tokenizers_say_what_the_new_one_does(own, tmp_path):
    own.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    expected = own.tokenizer(TEXTS)["input_ids"]
    save_processor(own, tmp_path)
    assert read(tmp_path, "special_tokens_map.json")["pad_token"] == "<pad>"
    assert read(tmp_path, "added_tokens.json") == {"<pad>": len(own.tokenizer) - 1}
    vocabulary, merges = read(tmp_path, "vocab.json"), (tmp_path / "merges.txt").read_text(encoding="utf-8")
    assert {**vocabulary, "<pad>": len(own.tokenizer) - 1} == own.tokenizer.get_vocab()
    pairs = [tuple(line.split()) for line in merges.splitlines()[1:]]  # the first is a heading, which they skip
    assert merges.startswith("#version") and pairs
    assert CLIPTokenizer(vocabulary, pairs)(TEXTS)["input_ids"] == expected
    (tmp_path / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"] == expected


def test_further_special_tokens_are_stored_under_the_name_that_all_know(own, tmp_path):
    """transformers 4 fails at a list of `extra_special_tokens`."""
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["<one>", "<two>"]})
    expected = own.tokenizer("a <one> red <two> square")["input_ids"]
    save_processor(own, tmp_path)
    settings = read(tmp_path, "tokenizer_config.json")
    assert settings["additional_special_tokens"] == ["<one>", "<two>"] and "extra_special_tokens" not in settings
    for reader in (CLIPProcessor.from_pretrained(tmp_path).tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert reader("a <one> red <two> square")["input_ids"] == expected
        assert reader.all_special_ids == own.tokenizer.all_special_ids
        assert "<one>" not in reader.decode(expected, skip_special_tokens=True)


def test_encoders_load_on_their_own(processor, own, tmp_path):
    model = build_model(processor)
    for part in (model.config.text_config, model.config.vision_config):
        part.projection_dim = 512  # as in some of LAION's
    save_drop_in(model, own, tmp_path)
    config = read(tmp_path, "config.json")
    assert [part["projection_dim"] for part in (config, config["text_config"], config["vision_config"])] == [24] * 3
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    assert torch.equal(text.text_projection.weight, model.text_projection.weight)
    vision = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    assert torch.equal(vision.visual_projection.weight, model.visual_projection.weight)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_weights_are_written_in_the_type_asked_for(dtype, model, own, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_drop_in(model, own, tmp_path, dtype)
    found = CLIPModel.from_pretrained(tmp_path).state_dict()
    for name, value in before.items():
        assert torch.equal(found[name], value.to(dtype or torch.float32))
        assert torch.equal(model.state_dict()[name], value)
    assert read(tmp_path, "config.json")["dtype"] == str(dtype or torch.float32).removeprefix("torch.")


def test_a_tokenizer_that_says_neither_length_nor_padding(own, rows, tmp_path):
    """It trains, and what is saved says both, so that a long caption is cut where the encoder ends."""
    own.tokenizer.model_max_length, own.tokenizer.pad_token = int(1e30), None
    args = SafeCLIPTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True)
    trainer = SafeCLIPTrainer(build_model(own), args, rows, None, own, lora_config(4, 8))
    trainer.train()
    trainer.save_model()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.model_max_length, tokenizer.pad_token) == (77, tokenizer.eos_token)
    tokens = tokenizer(["a red square " * 100, "a mark"], padding=True, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (2, 77)
    assert CLIPModel.from_pretrained(tmp_path).get_text_features(**tokens).pooler_output.shape == (2, 24)
