import pytest
import torch

from safe_clip import QuadrupletCollator, QuadrupletRows
from safe_clip.data.collator import item_ids

from ..helpers import make_rows


@pytest.fixture
def batch(processor, rows):
    return QuadrupletCollator(processor, 77)([QuadrupletRows(rows)[i] for i in range(5)])


def test_both_sides_share_one_length(batch):
    assert batch["pixel_values"].shape == (10, 3, 16, 16)
    length = batch["attention_mask"].sum(dim=1).max().item()
    assert batch["input_ids"].shape == (10, length)
    assert length < 77


def test_sides_are_not_mixed_up(batch, rows, processor):
    decoded = processor.tokenizer.batch_decode(batch["input_ids"][5:], skip_special_tokens=True)
    assert [text.strip() for text in decoded] == rows["unsafe_caption"][:5]
    expected = processor.image_processor([rows[3]["unsafe_image"]], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(batch["pixel_values"][8], expected)


def test_padding_to_the_longest_gives_the_embedding_of_padding_to_77(batch, model, rows, processor):
    full = processor.tokenizer(rows["safe_caption"][:5], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        short = model.get_text_features(batch["input_ids"][:5], batch["attention_mask"][:5]).pooler_output
        long = model.get_text_features(**full).pooler_output
    assert full["input_ids"].shape == (5, 77)
    assert (short - long).abs().max() < 1e-5


def test_ids_are_equal_where_items_are_and_whatever_they_are_padded_to(processor):
    rows = make_rows(3)
    rows = [{name: rows[name][index] for name in rows} for index in (0, 1, 0, 2)]
    rows[3]["safe_caption"] = rows[0]["unsafe_caption"]
    collate = QuadrupletCollator(processor, max_length=77)
    ids = item_ids(collate(rows))
    assert ids.shape == (4, 4) and ids.dtype == torch.int64
    assert torch.equal(ids[0], ids[2]) and (ids[0] != ids[1]).all()
    assert ids[3, 0] == ids[0, 1]  # the same caption on the other side
    padded = collate([*rows, {**rows[1], "safe_caption": "a red square " * 9}])
    assert torch.equal(item_ids(padded)[:4], ids)
