"""Rows that sexualise minors are dropped and counted, and never shown. Wording here is as dry as it can be."""

import logging

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from safe_clip import UserError, load_quadruplets
from safe_clip.data.minors import refuse_minors, sexualises_minors, speaks_of_minors
from safe_clip.data.streams import QuadrupletStream


@pytest.mark.parametrize(
    "texts",
    [
        ("a child, nude",),
        ("a CHILD, Nudity",),
        ("two kids", "something sexual"),  # the unsafe side was made from the safe one
        ("a sixteen-year-old", "lingerie"),
        ("aged 12, topless",),
        ("a 15 yo, nsfw",),
        ("teens, erotic",),
        ("a baby", None, "sexual"),  # a category
        ("a chi\u00adld, na\u200bked",),  # soft hyphen, zero-width space
        ("ｃｈｉｌｄ ｎｕｄｅ",),
        ("ch1ld, nud3",),
        ("a k!d, $exy",),
        ("1girl, n4ked",),
        ("c.h.i.l.d, n-u-d-e",),
        ("\u0441hild, nud\u0435",),  # a Cyrillic letter
        ("school_girl", "sexual_minors"),
        ("a boy", "SexualContent"),
    ],
)
def test_what_is_refused(texts):
    assert sexualises_minors(texts)


@pytest.mark.parametrize(
    "texts",
    [
        ("a child with a kite", "a child with a dagger"),
        ("a nude statue in a museum", "adults, nudity"),
        ("a girlfriend and a boyfriend", "nudity"),
        ("kidney beans in Essex", "sextant on a babysitter's desk"),
        ("a 30-year-old woman", "topless"),
        ("teenagers, a gun",),
        (None, 5),
        ("room 101, naked walls and 3d glasses",),
        ("a b c d, nudity",),
    ],
)
def test_what_is_kept(texts):
    assert not sexualises_minors(texts)


def test_minors_alone():
    assert speaks_of_minors(["a dog", "two children"]) and not speaks_of_minors(["a dog", None])


ROWS = {
    "safe_caption": ["a child with a kite", "a cat", "a boy", "a dog"],
    "unsafe_caption": ["a child, nude", "a cat, nude", "a boy with a bomb", "a dog with a knife"],
    "category": ["abuse", "sexual", "weapons", "weapons"],
}


def test_rows_are_dropped_counted_and_not_shown(caplog):
    with caplog.at_level(logging.INFO):
        rows = refuse_minors(Dataset.from_dict(ROWS), "split 'train'")
    assert rows["safe_clip_row"] == [1, 2, 3]
    assert "split 'train': 1 of 4 rows were refused, because they sexualise minors." in caplog.text
    assert "kite" not in caplog.text and "nude" not in caplog.text


def test_a_category_counts_also_by_number():
    rows = Dataset.from_dict(ROWS | {"category": [1, 1, 1, 0], "unsafe_caption": ["x"] * 4})
    rows = rows.cast_column("category", ClassLabel(names=["weapons", "nudity"]))
    assert refuse_minors(rows, "rows")["safe_caption"] == ["a cat", "a dog"]


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match="rows: all rows were refused"):
        refuse_minors(Dataset.from_dict(ROWS).select([0]), "rows")


@pytest.mark.parametrize("streaming", [False, True])
def test_loading_refuses_them_always(streaming, tmp_path):
    Dataset.from_dict(ROWS).to_parquet(tmp_path / "train.parquet")
    rows = load_quadruplets(str(tmp_path / "train.parquet"), hold_out=False, streaming=streaming)["train"]
    rows = list(QuadrupletStream(rows, shuffle_buffer=0)) if streaming else list(rows)
    assert [row["safe_caption"] for row in rows] == ["a cat", "a boy", "a dog"]


def test_the_bundled_demo_loses_no_row():
    from safe_clip.demo.dataset import SPLITS

    assert {split: len(rows) for split, rows in load_quadruplets("demo").items()} == {
        split: count for split, (count, *_) in SPLITS.items()
    }


def test_a_category_counts_in_a_stream_too():
    rows = Dataset.from_dict(ROWS | {"category": [1, 1, 1, 0], "unsafe_caption": ["x"] * 4})
    rows = rows.cast_column("category", ClassLabel(names=["weapons", "nudity"]))
    kept = [row["safe_caption"] for row in refuse_minors(rows.to_iterable_dataset(), "rows")]
    assert kept == refuse_minors(rows, "rows")["safe_caption"] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("column", "cells", "feature"),
    [
        ("category", [["weapons", "nudity"], ["weapons"]], List(Value("string"))),
        ("category", [[["nudity"]], [["weapons"]]], List(List(Value("string")))),
        ("category", [[1], [0]], List(ClassLabel(names=["weapons", "nudity"]))),
        ("category", [{"nudity": True}, {"nudity": False}], {"nudity": Value("bool")}),
        ("concept", [{"of": ["nudity"]}, {"of": []}], {"of": List(Value("string"))}),
        ("category", ['["nudity"]', '["weapons"]'], Value("large_string")),
        ("unsafe_caption", [["a dagger", "a child, nude"], ["a dagger"]], List(Value("string"))),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_lists_parts_and_classes_in_them_say_counts(column, cells, feature, streamed):
    rows = Dataset.from_dict(
        {"safe_caption": ["a child", "a child with a kite"], column: cells},
        features=Features({"safe_caption": Value("string"), column: feature}),
    )
    kept = refuse_minors(rows.to_iterable_dataset() if streamed else rows, "rows")
    assert [row["safe_caption"] for row in kept] == ["a child with a kite"]


def test_lists_of_captions_are_looked_at_before_they_are_spread(tmp_path):
    table = {"safe_caption": [["a child", "a dog"], ["a cat"]], "unsafe_caption": [["a gun", "nude"], ["a bomb"]]}
    Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        loaded = load_quadruplets(str(tmp_path / "train.parquet"), hold_out=False, streaming=streaming)["train"]
        assert [row["safe_caption"] for row in loaded] == ["a cat"]
