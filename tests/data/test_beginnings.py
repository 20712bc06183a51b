"""Texts that are far too long are cut before they are tokenised, without a change to what is kept."""

import random
import time

import pytest

from safe_clip import QuadrupletCollator
from safe_clip.data.beginnings import MOST_COUNTED, beginnings, longest_token, token_counts
from safe_clip.data.captions import check_captions
from safe_clip.models.families import CLIP

LONG = {
    "words": "a red square beside a blue one, " * 4000,
    "blanks": "\n \u3000\t" * 40_000 + "a red square" + " " * 40_000 + "a mark" * 9000,
    "no blanks": "redblue" * 20_000,
    "signs": "!?." * 40_000,
    "accents": "re\u0301d sq\u0308u\u0304are " * 9000,
    "emoji": "🐶🔫" * 40_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("count", [5, 77])
def test_the_first_tokens_are_those_of_the_whole(text, count, processor):
    tokenizer = processor.tokenizer
    (cut,) = beginnings([text], tokenizer, count)
    assert len(cut) < len(text)
    whole = tokenizer(text, truncation=True, max_length=count)["input_ids"]
    assert tokenizer(cut, truncation=True, max_length=count)["input_ids"] == whole and len(whole) == count


def test_texts_of_a_usual_length_are_left_as_they_are(processor):
    draw = random.Random(0)
    most = 77 * longest_token(processor.tokenizer)
    texts = ["".join(draw.choices("ab \n\té", k=draw.randint(0, most))) for _ in range(50)]
    assert all(one is other for one, other in zip(texts, beginnings(texts, processor.tokenizer, 77), strict=True))


def test_counts_end_somewhere_and_are_exact_before(processor):
    texts = ["a red square", "a red square " * 100, "a red square " * 100_000]
    exact = [len(processor.tokenizer(text)["input_ids"]) for text in texts[:2]]
    assert token_counts(texts, processor.tokenizer) == [*exact, MOST_COUNTED] and token_counts([], None) == []


def test_a_caption_of_megabytes_is_read_in_no_time(processor, model, caplog):
    from datasets import Dataset

    text = "a red square beside " * 1_000_000
    rows = Dataset.from_dict({"safe_caption": [text], "unsafe_caption": ["a mark"]})
    begin = time.perf_counter()
    assert check_captions([rows], processor.tokenizer, 77) == 1
    batch = QuadrupletCollator(processor, 77)([rows[0]])
    tokens = CLIP.tokenize(processor.tokenizer, [text], model.config)
    assert time.perf_counter() - begin < 5  # where all of it is tokenised, some 20 seconds each
    assert batch["input_ids"][0].tolist() == tokens["input_ids"][0].tolist()
    assert f"(the longest has {MOST_COUNTED} or more)" in caplog.text
