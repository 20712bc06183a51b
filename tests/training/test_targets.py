import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from safe_clip import FrozenReference, QuadrupletCollator, QuadrupletRows, lora_config
from safe_clip.embedding.embedder import Embedder
from safe_clip.objectives import SafeCLIPLoss, SafeRankingLoss, SaferCLIPLoss
from safe_clip.training.targets import Targets


@pytest.fixture
def collator(processor):
    return QuadrupletCollator(processor, 77)


@pytest.fixture
def targets_of(processor):
    """Targets of an objective for a model, whose rows are embedded in batches that do not divide them."""
    return lambda model, objective: Targets(Embedder(FrozenReference(model), processor, batch_size=7), objective)


def batch_of(collator, data, rows):
    return collator([data[index] for index in rows])


@pytest.mark.parametrize("objective", [SafeCLIPLoss(), SafeRankingLoss(), SaferCLIPLoss()])
def test_the_table_gives_what_embedding_the_batch_gives(objective, model, collator, rows, targets_of):
    targets = targets_of(get_peft_model(model, lora_config()), objective)
    data = QuadrupletRows(rows)
    batch = batch_of(collator, data, [20, 3, 11])
    before = targets(batch, training=True)  # no table yet
    targets.prepare(data, collator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0)  # whatever becomes of the model, the table stands
    after = targets(batch, training=True)
    sides = ("safe", "unsafe") if objective.reads_unsafe else ("safe",)
    for side in sides:
        for modality in ("text", "image"):
            name = f"{side}_{modality}"
            assert len(after.items[name]) == 3 and torch.equal(before.items[name].row, after.items[name].row)
            assert (before.items[name].embeds - after.items[name].embeds).abs().max() < 1e-5, name
    assert bool(len(after.items.unsafe_text)) == objective.reads_unsafe
    assert not torch.equal(after.items.safe_text.embeds[0], after.items.safe_text.embeds[1])


def test_states_are_the_originals_of_the_safe_items(model, collator, rows, targets_of):
    def reading(*terms):
        weights = dict.fromkeys(SafeRankingLoss.STATE_WEIGHTS, 0.0) | dict.fromkeys(terms, 1.0)
        return targets_of(model, SafeRankingLoss(weights=weights))

    batch = batch_of(collator, QuadrupletRows(rows), [0, 1, 2])
    targets = reading("preservation_text_states", "redirection_image_states")
    made = targets.hidden_states(batch)
    with torch.no_grad():
        text = model.eval().text_model(input_ids=batch["input_ids"][:3], output_hidden_states=True)
        image = model.vision_model(pixel_values=batch["pixel_values"][:3], output_hidden_states=True)
    wanted = text.hidden_states[-2], text.last_hidden_state, image.hidden_states[-2]
    for ours, theirs in zip((*made.safe_text.hidden_states, *made.safe_image.hidden_states), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    # What no term asks for is not run.
    assert reading("preservation_text_states").hidden_states(batch).safe_image.hidden_states is None
    assert reading("preservation_image_states").hidden_states(batch).safe_text.hidden_states is None
    assert made.unsafe_text.hidden_states is None and len(made.unsafe_text) == 0


def test_anchors_are_safe_pairs_of_the_training_data(model, collator, rows, targets_of):
    data = QuadrupletRows(rows)
    batch = batch_of(collator, data, [0, 1])

    def anchors(objective, training=True):
        targets = targets_of(model, objective)
        targets.prepare(data, collator)
        made = targets(batch, training)
        drawn = [made.anchors[name].embeds if made.anchors else None for name in ("text", "image")]
        return targets.table.take(np.arange(len(rows))), *drawn

    table, text, image = anchors(SafeRankingLoss(anchors=5))
    assert text.shape == image.shape == (5, 24)
    drawn = [(table["safe_text"] == row).all(dim=1).nonzero()[0].item() for row in text]
    assert torch.equal(table["safe_image"][drawn], image)  # pairs stay pairs
    assert not torch.equal(text, anchors(SafeRankingLoss(anchors=5))[1])  # drawn anew
    # In evaluation always the same, so that losses can be compared.
    assert torch.equal(anchors(SafeRankingLoss(anchors=5), training=False)[1], table["safe_text"][:5])
    assert len(anchors(SafeRankingLoss(anchors=5000))[1]) == len(rows)
    assert len(anchors(SaferCLIPLoss())[1]) == len(rows)
    assert anchors(SafeRankingLoss(anchors=0))[1] is None and anchors(SafeCLIPLoss())[1] is None


def test_labels_of_the_data_reach_the_objective(model, collator, rows, targets_of):
    labels = [index % 3 == 0 for index in range(len(rows))]
    data = QuadrupletRows(rows.add_column("unsafe_caption_is_safe", labels))
    # Row 0 makes two quadruplets, the second of its harmless caption.
    made = targets_of(model, SafeCLIPLoss())(batch_of(collator, data, [0, 1, 2]), True, 0.25)
    layout = made.items.layout
    assert layout.present.tolist() == [[True, False, True, True], [True, False, False, False], [True] * 4]
    assert layout.relabelled.tolist() == [False, True, False] and layout.half_unsafe.tolist() == [True, False, False]
    assert made.items.safe_image.row.tolist() == [0, 2] and made.items.safe_text.row.tolist() == [0, 1, 2]
    assert made.progress == 0.25


@pytest.mark.parametrize("lacking", [["safe_image", "unsafe_image"], ["safe_caption", "unsafe_caption"]])
def test_data_of_one_modality_have_anchors_in_that_alone(lacking, model, collator, rows, targets_of):
    data = QuadrupletRows(rows.remove_columns(lacking))
    targets = targets_of(model, SafeRankingLoss(anchors=5))
    targets.prepare(data, collator)
    made = targets(batch_of(collator, data, [0, 1]), True)
    there, gone = ("text", "image") if "image" in lacking[0] else ("image", "text")
    assert made.anchors[there].embeds.shape == (5, 24) and not made.anchors[there].embeds.isnan().any()
    assert len(made.anchors[gone]) == 0


def test_anchors_are_drawn_from_rows_that_have_both(model, collator, rows, targets_of):
    table = rows.with_format("arrow")[:].to_pylist()
    for index, row in enumerate(table):
        if index % 3:
            row["safe_image" if index % 3 == 1 else "safe_caption"] = None
    data = QuadrupletRows(Dataset.from_list(table, features=rows.features))
    targets = targets_of(model, SaferCLIPLoss())
    targets.prepare(data, collator)
    made = targets(batch_of(collator, data, [0, 1]), True)
    table = targets.table.take(np.arange(len(rows)))
    assert torch.equal(made.anchors["text"].embeds, table["safe_text"][::3])
    assert torch.equal(made.anchors["image"].embeds, table["safe_image"][::3])
