import logging

import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from safe_clip import UserError
from safe_clip.data.captions import check_captions, count_tokens


def captions(safe, unsafe):
    return Dataset.from_dict({"safe_caption": safe, "unsafe_caption": unsafe})


def test_long_captions_are_counted_in_one_warning(processor, caplog):
    long = " ".join(["a red square beside a blue one"] * 30)
    rows = captions(["a red square", long, "a blue square"], [long, long, "a mark"])
    with caplog.at_level(logging.WARNING):
        assert check_captions([rows.select([0]), rows.select([1, 2])], processor.tokenizer, 77) == 3
    (record,) = [r for r in caplog.records if r.name == "safe_clip.data.captions"]
    length = len(processor.tokenizer(long, verbose=False)["input_ids"])
    assert record.getMessage() == (
        f"3 of 6 captions are longer than the text encoder's 77 tokens (the longest has {length}); "
        "they are cut, keeping the end token."
    )


def test_short_captions_are_silent(processor, caplog):
    with caplog.at_level(logging.WARNING):
        assert check_captions([captions(["a red square"], ["a mark"])], processor.tokenizer, 77) == 0
    assert not caplog.records


@pytest.mark.parametrize(("bad", "message"), [("", "is empty"), (" \t", "is empty"), ("a\0", "holds NUL")])
def test_an_unusable_caption_is_named(processor, bad, message):
    with pytest.raises(UserError, match=f"row 1, column 'unsafe_caption': .*{message}"):
        check_captions([captions(["a", "b"], ["a", bad])], processor.tokenizer, 77)


def test_the_row_is_right_beyond_the_first_batch(processor):
    texts = ["a red square"] * 2500
    with pytest.raises(UserError, match="row 2321, column 'safe_caption'"):
        check_captions([captions([*texts[:2321], "", *texts[2322:]], texts)], processor.tokenizer, 77)


def test_truncation_keeps_the_end_token(processor, model):
    from PIL import Image

    from safe_clip import QuadrupletCollator

    long = " ".join(["a red square beside a blue one"] * 30)
    row = {"safe_caption": long, "unsafe_caption": "a mark"}
    row |= {name: Image.new("RGB", (16, 16)) for name in ("safe_image", "unsafe_image")}
    batch = QuadrupletCollator(processor, 77)([row])
    assert batch["input_ids"].shape == (2, 77)
    assert batch["input_ids"][0, -1] == processor.tokenizer.eos_token_id
    with torch.no_grad():
        assert torch.isfinite(model.get_text_features(batch["input_ids"]).pooler_output).all()


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_tokens_are_counted_whatever_type_the_texts_are_stored_in(kind, processor, caplog):
    long = " ".join(["a red square"] * 60)
    texts = pa.chunked_array([pa.array(["a red square", long], pa.string()).cast(kind)])
    rows = Dataset(pa.table({"safe_caption": texts, "unsafe_caption": texts}))
    assert check_captions([rows], processor.tokenizer, 77) == 2
    counts = count_tokens(rows, processor.tokenizer)
    assert counts["safe_caption"] == [len(processor.tokenizer(text)["input_ids"]) for text in ("a red square", long)]
