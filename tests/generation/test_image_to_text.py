"""Captions: of one image or many, kept and gone on with, hidden, and figures worked out by hand."""

import json

import pytest
import torch

from safe_clip import safe_image_to_text
from safe_clip.data.arguments import DataArguments
from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.generation import image_to_text
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.generation.image_to_text import (
    Captions,
    caption,
    caption_all,
    figures,
    open_processor,
    prompt_for,
    warn_of_another_original,
)
from safe_clip.generation.prompts import Item, load_image_items
from safe_clip.generation.run import caption_grid

from ..helpers import build_model, make_rows
from .conftest import FakeJudge, build_llava, build_safe

PROMPT = "USER: <image>\nWhat is it? ASSISTANT:"


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds, and is not tested here."""
    monkeypatch.setattr("shutil.which", lambda *_: None)


@pytest.fixture
def llava(processor):
    return build_llava(processor, build_model(processor))


def captions_of(captions, scores, **parts):
    items = [Item("test", row, "unsafe", **parts) for row in range(len(captions))]
    return Captions(items, captions, [{"words": score} for score in scores])


def test_captions_do_not_depend_on_their_batch_and_are_the_same_for_equal_towers(llava, processor):
    model, made = llava
    images = make_rows(4)["safe_image"] + make_rows(4)["unsafe_image"]
    together = caption(model, made, images, PROMPT, 6)
    assert together == [caption(model, made, [image], PROMPT, 6)[0] for image in images]
    assert len(set(together)) > 1
    # What stock transformers says, the prompt left out.
    inputs = made(images=images[:1], text=[PROMPT], return_tensors="pt")
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert together[0] == made.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert caption(safe_image_to_text(model, build_model(processor)), made, images, PROMPT, 6) == together
    assert caption(safe_image_to_text(model, build_safe(processor)), made, images, PROMPT, 6) != together


def test_a_generator_is_asked_as_its_processor_says(llava, llava_dir):
    _, processor = llava
    assert prompt_for(processor, "What is it?", "you/llava") == PROMPT
    assert prompt_for(processor, "What is it?", "demo") == "<image>"
    processor.chat_template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "[{{ part['text'] if part['type'] == 'text' else '<image>' }}]{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    assert prompt_for(processor, "What is it?", "you/llava") == "[<image>][What is it?]>"
    assert open_processor(llava_dir).tokenizer.padding_side == "left"


def test_interrupted_work_goes_on_at_the_first_missing_chunk(llava, dataset_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(image_to_text, "CHUNK", 2)
    model, processor = llava
    judge = FakeJudge("length", lambda text: min(1.0, len(text) / 20))
    items = load_image_items(DataArguments(dataset_dir), GenerationArguments(), max_samples=3)
    settings = GenerationArguments(max_new_tokens=4, generation_batch_size=2)
    some = (model, processor, items, settings, "you/llava", [judge])
    whole = caption_all(*some, tmp_path / "whole")
    calls, real = [], image_to_text.caption

    def until(most):
        def counting(*args):
            if len(calls) >= most:
                raise KeyboardInterrupt
            calls.append(1)
            return real(*args)

        return counting

    monkeypatch.setattr(image_to_text, "caption", until(2))
    with pytest.raises(KeyboardInterrupt):
        caption_all(*some, tmp_path / "parts")
    monkeypatch.setattr(image_to_text, "caption", until(3))
    assert caption_all(*some, tmp_path / "parts") == whole
    assert caption_all(*some, tmp_path / "parts") == whole  # with nothing left to do
    kept = [record for file in sorted((tmp_path / "parts").rglob("*.json")) for record in json.loads(file.read_text())]
    assert [record["caption"] for record in kept] == whole.captions
    assert [record["scores"] for record in kept] == [{"length": min(1.0, len(text) / 20)} for text in whole.captions]
    with pytest.raises(KeyboardInterrupt):  # another question is other work
        settings.question = "And now?"
        caption_all(*some, tmp_path / "parts")


def test_figures_worked_out_by_hand():
    some = captions_of(["a dog", "a cat", "a gun", "a bus"], [0.1, 0.6, 0.9, 0.4])
    made = figures(some, 0.5)["test"]["unsafe"]
    assert set(made) == {"unsafe_out"} and made["unsafe_out"]["value"] == 0.5
    assert some.flagged(1, 0.5) and not some.flagged(1, 0.7)


def test_what_the_safe_caption_names_is_looked_for():
    first, second = (concept.names[0] for concept in load_vocabulary()[:2])
    reference = f"a {first} beside a {second}"
    some = captions_of([f"a picture of a {second}", reference, "nothing"], [0.0] * 3, reference=reference)
    assert figures(some, 0.5, objects=True)["test"]["unsafe"]["objects"]["value"] == pytest.approx(0.5)


def test_captions_are_compared_with_the_safe_ones():
    pytest.importorskip("pycocoevalcap")
    reference = "a red dog sits here on the grass"
    means, others = image_to_text.quality([reference, "two big buses", "anything"], [reference, reference, None])
    assert means["rouge_l"].tolist()[:2] == [pytest.approx(1), pytest.approx(0)] and means["rouge_l"][2].isnan()
    assert 0 < others["bleu_4"]["value"] < 1
    exact = captions_of([reference] * 2, [0.0] * 2, reference=reference)
    made = figures(exact, 0.5)["test"]["unsafe"]
    assert made["rouge_l"] == {"value": 1.0, "low": 1.0, "high": 1.0} and made["bleu_4"] == {"value": pytest.approx(1)}


def test_without_its_package_the_comparison_is_left_out(monkeypatch, capsys):
    def missing(name):
        raise ImportError("No module named 'pycocoevalcap'")

    monkeypatch.setattr(image_to_text, "load_metric", missing)
    assert image_to_text.quality(["a dog"], ["a dog"]) == ({}, {})
    assert "is left out: No module named 'pycocoevalcap'" in capsys.readouterr().out
    assert image_to_text.quality(["a dog"], [None]) == ({}, {})


def test_a_grid_hides_what_is_unsafe(dataset_dir, monkeypatch):
    items = load_image_items(DataArguments(dataset_dir), GenerationArguments(), max_samples=1)
    made = {
        "baseline": Captions(items, ["a flagged caption", "fine"], [{"words": 0.9}, {"words": 0.1}]),
        "model": Captions(items, ["harmless", "fine too"], [{"words": 0.2}, {"words": 0.1}]),
    }
    drawn = []
    monkeypatch.setattr("safe_clip.generation.run.draw_grid", drawn.append)
    for show in (False, True):
        caption_grid(items, made, 0.5, show)
    hidden, shown = ([[cell.text for cell in cells] for _, cells in rows] for rows in drawn)
    row = items[0].row
    assert hidden == [["", ""], [f"unsafe caption hidden, row {row}", "fine"], ["harmless", "fine too"]]
    assert shown[1] == ["a flagged caption", "fine"]
    images = [[cell.image.tobytes() for cell in rows[0][1]] for rows in drawn]
    assert images[0][0] != images[1][0] and images[0][1] == images[1][1]
    assert images[1][0] == items[0].image.open().tobytes()


def test_a_tower_that_is_not_the_baselines_is_told_of(llava, processor, caplog):
    model, _ = llava
    warn_of_another_original(model, build_model(processor), ("you/llava", "you/clip"))
    assert not caplog.records
    warn_of_another_original(model, build_safe(processor), ("you/llava", "you/clip"))
    assert "The vision tower of you/llava is not that of --baseline you/clip" in caplog.text


def test_half_precision(llava):
    model, processor = llava
    made = caption(model.to(torch.bfloat16), processor, make_rows(1)["safe_image"], PROMPT, 3)
    assert len(made) == 1
