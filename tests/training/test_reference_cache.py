from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from safe_clip import QuadrupletCollator, QuadrupletRows, UserError
from safe_clip.embedding import embedder
from safe_clip.objectives import OBJECTIVES
from safe_clip.objectives.hidden_states import HIDDEN_STATE_NEEDS
from safe_clip.training.reference_cache import ReferenceTable

from ..helpers import FEATURES, NO_DROPOUT, build_model, largest_difference, make_rows, weights
from ..helpers import make_trainer as _make_trainer

# Here the original's calls are counted, and asking it about the sides would add some.
make_trainer = partial(_make_trainer, sides_are_right=True)


def count_originals(trainer):
    """Counts the batches that the original embeds from now on."""
    calls = []
    embed = type(trainer.reference).__call__

    class Counting(type(trainer.reference)):
        def __call__(self, **inputs):
            calls.append(len(next(iter(inputs.values()))))
            return embed(self, **inputs)

    trainer.reference.__class__ = Counting
    return calls


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_the_same_with_the_cache_and_without(objective, processor, rows, tmp_path):
    losses = {}
    # Without the terms over states, which require the original at every step in any case.
    common = {"objective": objective, "loss_weights": dict.fromkeys(HIDDEN_STATE_NEEDS, 0), "max_steps": 6}
    for cache in ("auto", "off"):
        trainer = make_trainer(processor, rows, tmp_path, reference_cache=cache, **common)
        calls = count_originals(trainer)
        trainer.train()
        losses[cache] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        # Three batches of 8 rows at the start, unless an earlier objective left them; off, one a step, and anchors.
        assert len(calls) in ((0, 3) if cache == "auto" else (6, 9))
    assert len(losses["auto"]) == 6 and losses["auto"] == pytest.approx(losses["off"], abs=1e-5, rel=1e-5)


def test_it_is_kept_for_later_runs_of_the_same_original_on_the_same_rows(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "QUADRUPLETS", 10)
    table = make_rows(24)
    rows = Dataset.from_dict(table, features=FEATURES)

    def embedded(data=rows, **settings):
        trainer = make_trainer(processor, data, tmp_path, max_steps=1, objective="safe_clip", **settings)
        calls = count_originals(trainer)
        trainer.train()
        return sum(calls)

    embedded()
    assert embedded() == 0 and embedded(seed=4, per_device_train_batch_size=4, learning_rate=1e-4) == 0
    assert embedded(cache_images="off") == 0  # decoded before or not, they are the same images
    assert embedded(bf16=True, use_cpu=True) == 24  # other numbers
    assert embedded(rows.select(range(20))) == 20
    assert embedded(rows.add_column("unsafe_caption_is_safe", [True] + [None] * 23)) > 24  # makes one more quadruplet
    table["safe_caption"][3] = "a white square"
    assert embedded(Dataset.from_dict(table, features=FEATURES)) == 24
    other = make_trainer(processor, rows, tmp_path, max_steps=1, objective="safe_clip")
    with torch.no_grad():
        next(p for n, p in other.model.named_parameters() if n.endswith("text_projection.weight")).mul_(1.01)
    calls = count_originals(other)
    other.train()
    assert sum(calls) == 24


def test_what_trained_weights_became_is_no_other_original(processor, rows, tmp_path):
    """The adapter is not part of the original, of which each training has the same."""
    trainer = make_trainer(processor, rows, tmp_path, max_steps=2)
    digest = trainer.reference.weights
    trainer.train()
    del trainer.reference.weights
    assert trainer.reference.weights == digest
    full = make_trainer(processor, rows, tmp_path, None, max_steps=2)
    assert full.reference.weights == digest  # however it is kept from moving
    del full.reference.weights
    full.train()
    assert full.reference.weights == digest


def test_an_interruption_costs_one_chunk(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "QUADRUPLETS", 8)
    table = make_rows(24)
    table["safe_caption"] = [f"{caption} a" for caption in table["safe_caption"]]
    rows = Dataset.from_dict(table, features=FEATURES)
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1, cache_images="off", objective="safe_clip")
    open_image = Image.open
    seen = []

    def stops(*args, **kwargs):
        seen.append(1)
        if len(seen) > 40:  # of two images a row, in the third chunk
            raise KeyboardInterrupt
        return open_image(*args, **kwargs)

    monkeypatch.setattr(Image, "open", stops)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.setattr(Image, "open", open_image)
    again = make_trainer(processor, rows, tmp_path, max_steps=1, cache_images="off", objective="safe_clip")
    calls = count_originals(again)
    again.train()
    assert sum(calls) == 8


def test_a_bad_row_is_named_when_the_original_embeds_it(processor, tmp_path):
    table = make_rows(6)
    rows = Dataset.from_dict(table, features=FEATURES).cast_column("safe_image", FEATURES["safe_image"])
    broken = rows.with_format("arrow")[:].to_pylist()
    broken[4]["safe_image"] = {"bytes": b"no image", "path": None}
    trainer = make_trainer(processor, Dataset.from_list(broken, features=FEATURES), tmp_path, cache_images="off")
    with pytest.raises(UserError, match="row 4, column 'safe_image'"):
        trainer.train()


def test_rows_that_are_no_data_set_are_embedded_in_memory(processor, tmp_path):
    table = make_rows(24)
    plain = [{name: column[index] for name, column in table.items()} for index in range(24)]
    kept = Dataset.from_dict(table, features=FEATURES)
    trained = []
    for rows in (plain, kept):
        # Without states, which make more of how the two round their images.
        trainer = make_trainer(
            processor, rows, tmp_path, NO_DROPOUT, objective="safe_ranking", hidden_state_terms=False
        )
        trainer.train()
        trained.append(weights(trainer))
        assert len(trainer.targets.table) == 24
    assert largest_difference(*trained) < 1e-5


class Shouting(QuadrupletCollator):
    """Makes something else of captions, which nothing in a cache tells."""

    def __call__(self, rows):
        return super().__call__([{**row, "safe_caption": row["safe_caption"][2:]} for row in rows])


def test_what_another_collator_makes_is_not_taken_for_ours(processor, rows, tmp_path):
    tables = []
    for collator in (QuadrupletCollator, Shouting):
        trainer = make_trainer(processor, rows, tmp_path, max_steps=1, objective="safe_clip")
        trainer.data_collator = collator(processor, 77)
        trainer.train()
        tables.append(trainer.targets.table.take(np.arange(24)))
    assert (tables[0]["safe_text"] - tables[1]["safe_text"]).abs().max() > 0.01
    assert torch.equal(tables[0]["safe_image"], tables[1]["safe_image"])


def test_rows_that_are_changed_as_they_are_read_are_embedded_as_they_come(processor, rows, tmp_path, capsys):
    trainer = make_trainer(processor, rows, tmp_path, max_steps=2, objective="safe_clip", disable_tqdm=False)
    trainer.train_dataset.augment = lambda quadruplet: quadruplet
    calls = count_originals(trainer)
    trainer.train()
    assert sum(calls) == 16 and trainer.targets.table is None and trainer.train_dataset.shape is None
    assert "images are changed as they are read" in capsys.readouterr().out


def test_anchors_are_whole_images_and_a_seed_trains_the_same_weights(processor, rows, tmp_path):
    trained = []
    for noise in (0, 5):
        trainer = make_trainer(processor, rows, tmp_path, random_crop=0.5, objective="safe_ranking", seed=3)
        torch.rand(noise)
        trainer.train()
        trained.append(weights(trainer))
    assert largest_difference(*trained) == 0
    plain = make_trainer(processor, rows, tmp_path, objective="safe_ranking", max_steps=1)
    plain.train()
    for modality, pairs in plain.targets.pairs.items():
        assert (pairs.embeds - trainer.targets.pairs[modality].embeds).abs().max() < 1e-5


def test_as_many_anchors_as_are_asked_for(processor, rows, tmp_path, monkeypatch):
    from safe_clip.training import targets as module

    monkeypatch.setattr(module, "ANCHOR_ROWS", 6)
    for cache in ("auto", "off"):
        for anchors, expected in ((4, 6), (10, 10), (50, 24)):
            options = {"objective": "safe_ranking", "objective_options": {"anchors": anchors}, "max_steps": 1}
            trainer = make_trainer(processor, rows, tmp_path, reference_cache=cache, **options)
            trainer.train()
            assert len(trainer.targets.pairs["text"]) == expected
            assert len(trainer.targets.draw(training=True)["text"]) == min(anchors, expected)


def test_the_table_is_read_from_disk_and_not_held(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1, objective="safe_clip")
    trainer.train()
    parts = [part for column in trainer.targets.table.columns.values() for part in column]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [line for line in lines if line[-1].endswith(".safetensors")]
    assert all(line[1].endswith("p") for line in mapped)  # so that nothing that is written reaches the file
    places = [range(*(int(end, 16) for end in line[0].split("-"))) for line in mapped]
    assert parts and not any(part.flags.owndata for part in parts)
    assert all(any(part.ctypes.data in place for place in places) for part in parts)


def test_rows_are_found_over_the_borders_of_parts():
    whole = np.arange(40, dtype=np.float32).reshape(10, 4)
    parts = map(torch.from_numpy, (whole[:3], whole[3:4], whole[4:]))
    table = ReferenceTable([{"a": part, "b": part + 1} for part in parts])
    rows = np.array([9, 0, 3, 2, 4, 3])
    taken = table.take(rows)
    assert len(table) == 10
    assert np.array_equal(taken["a"], whole[rows]) and np.array_equal(taken["b"], whole[rows] + 1)


def test_cropped_images_are_embedded_as_they_come_and_it_says_why(processor, rows, tmp_path, capsys):
    settings = {"random_crop": 0.6, "max_steps": 6, "disable_tqdm": False, "objective": "safe_clip"}
    trainer = make_trainer(processor, rows, tmp_path, eval_rows=rows, **settings)
    calls = count_originals(trainer)
    trainer.train()
    assert sum(calls) == 6 * 8 and trainer.targets.table is None and trainer.train_dataset.shape is None
    assert (
        "The original model is run at every step: images are cropped at random (--random_crop)"
        in capsys.readouterr().out
    )
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    first, second = (trainer.train_dataset[0]["safe_image"] for _ in range(2))
    assert first.tobytes() != second.tobytes() or first.size != second.size
    assert trainer.eval_dataset[0]["safe_image"].size == (16, 16)
    with pytest.raises(UserError, match="--cache_images on requires .* no --random_crop"):
        make_trainer(processor, rows, tmp_path, cache_images="on", **settings).train()
    with pytest.raises(UserError, match="--random_crop is 1.5; it must be above 0"):
        make_trainer(processor, rows, tmp_path, random_crop=1.5)
    with pytest.raises(UserError, match="--reference_cache on: it must be among auto, off"):
        make_trainer(processor, rows, tmp_path, reference_cache="on")


def test_a_table_that_the_disk_has_no_room_for_is_not_made(processor, rows, tmp_path, monkeypatch, capsys):
    from safe_clip.training import caching as module

    monkeypatch.setattr(module, "has_room", lambda size: size < 24 * 2 * 24 * 4)  # of two items of 24 numbers a row
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1, objective="safe_clip", disable_tqdm=False)
    trainer.train()
    assert trainer.targets.table is None
    assert "what it says of the training rows, 0 GB, would take over half of the free disk" in capsys.readouterr().out
    monkeypatch.setattr(module, "has_room", lambda size: size <= 24 * 2 * 24 * 4)
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1, objective="safe_clip", cache_images="off")
    trainer.train()
    assert len(trainer.targets.table) == 24


def test_the_original_of_a_table_is_the_original(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, max_steps=2)
    trainer.train()
    taken = trainer.targets.table.take(np.arange(24))
    data = QuadrupletRows(rows)
    batch = trainer.data_collator([data[index] for index in range(24)])
    with torch.no_grad():
        output = build_model(processor)(
            input_ids=batch["input_ids"][:24],
            attention_mask=batch["attention_mask"][:24],
            pixel_values=batch["pixel_values"][:24],
        )
    assert (taken["safe_text"] - output.text_embeds).abs().max() < 1e-5
    assert (taken["safe_image"] - output.image_embeds).abs().max() < 1e-5
