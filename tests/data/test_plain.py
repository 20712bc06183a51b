"""Rows as anybody stores them: formats, lists of captions, classes, and kinds of columns."""

import json
import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value

from safe_clip import QuadrupletRows, UserError, evaluate_quadruplets, load_quadruplets
from safe_clip.data.captions import check_captions
from safe_clip.data.features import cell_name, texts_in
from safe_clip.data.plain import plain_rows
from safe_clip.data.quadruplets import hold_out_validation
from safe_clip.data.streams import QuadrupletStream

from ..helpers import FEATURES, make_rows

TEXTS = {"safe_caption": ["a dog", "a cat"], "unsafe_caption": ["a gun", "a dagger"]}


def captions(rows) -> list[tuple]:
    items = QuadrupletRows(rows)
    return [(row["safe_caption"], row["unsafe_caption"]) for row in (items[index] for index in range(len(items)))]


@pytest.mark.parametrize("kind", ["pandas", "arrow", "numpy", "torch", "polars"])
def test_a_format_is_undone(kind, model, processor, rows, tmp_path):
    if kind == "polars":
        pytest.importorskip("polars")
    formatted = rows.with_format(kind)
    plain, odd = QuadrupletRows(rows), QuadrupletRows(formatted)
    assert [odd[i]["safe_caption"] for i in range(24)] == [plain[i]["safe_caption"] for i in range(24)]
    assert odd[3]["unsafe_image"].tobytes() == plain[3]["unsafe_image"].tobytes()
    assert check_captions([formatted], processor.tokenizer, 77) == 0
    assert evaluate_quadruplets(model, processor, formatted) == evaluate_quadruplets(model, processor, rows)
    streamed = QuadrupletStream(rows.to_iterable_dataset().with_format(kind), shuffle_buffer=0)
    assert next(iter(streamed))["safe_caption"] == rows[0]["safe_caption"]
    formatted.save_to_disk(tmp_path)  # which keeps the format
    assert load_quadruplets(str(tmp_path), hold_out=False)["train"][0]["safe_caption"] == rows[0]["safe_caption"]


def test_a_format_of_some_columns_hides_none(rows):
    assert QuadrupletRows(rows.with_format("numpy", columns=["safe_caption"]))[0]["unsafe_caption"]


def test_a_transform_is_named_and_not_dropped(model, processor, rows):
    shouting = rows.with_transform(lambda batch: {name: [str(cell).upper() for cell in batch[name]] for name in batch})
    for use in (
        QuadrupletRows,
        lambda rows: check_captions([rows], processor.tokenizer, 77),
        lambda rows: evaluate_quadruplets(model, processor, rows),
        lambda rows: hold_out_validation({"train": rows}),
    ):
        with pytest.raises(UserError, match=r"has a transform .*; make its changes with rows\.map\(...\), or leave"):
            use(shouting)


LISTS = {
    "safe_caption": [["a dog", "a hound", "a puppet"], ["a cat"], []],
    "unsafe_caption": [["a gun", "a rifle"], ["a dagger"], ["a bomb"]],
}
SPREAD = [
    ("a dog", "a gun"),
    ("a hound", "a rifle"),
    ("a puppet", "a gun"),
    ("a cat", "a dagger"),
    (None, "a bomb"),
]


@pytest.mark.parametrize("kind", [List(Value("string")), LargeList(Value("large_string")), List(List(Value("string")))])
def test_lists_of_captions_are_spread_to_rows_and_it_is_said(kind, tmp_path, caplog):
    nested = isinstance(kind.feature, List)
    table = {name: [[cell] if nested else cell for cell in cells] for name, cells in LISTS.items()}
    rows = Dataset.from_dict(table, features=Features(dict.fromkeys(table, kind)))
    assert captions(rows) == SPREAD
    rows.save_to_disk(tmp_path)
    caplog.clear()
    loaded = load_quadruplets(str(tmp_path), hold_out=False)["train"]
    assert captions(loaded) == SPREAD
    said = [record.getMessage() for record in caplog.records if "lists of captions" in record.getMessage()]
    assert said == [
        f"split 'train' of {tmp_path}: 1 of 3 rows have lists of captions: spread to 5 rows, a caption in each."
    ]
    streamed = load_quadruplets(str(tmp_path), streaming=True)["train"]
    assert [
        (row["safe_caption"], row["unsafe_caption"]) for row in QuadrupletStream(streamed, shuffle_buffer=0)
    ] == SPREAD


def test_five_captions_of_a_pair_of_images(rows, caplog):
    table = rows.remove_columns(["safe_caption"]).add_column(
        "safe_caption", [[f"{caption} {number}" for number in range(5)] for caption in rows["safe_caption"]]
    )
    items, single = QuadrupletRows(table), QuadrupletRows(rows)
    assert len(items) == 5 * len(rows)
    for index in (0, 7, 119):
        item, own = items[index], single[index // 5]
        assert item["safe_caption"] == f"{own['safe_caption']} {index % 5}"
        assert item["unsafe_caption"] == own["unsafe_caption"]
        assert item["unsafe_image"].tobytes() == own["unsafe_image"].tobytes()


def test_rows_of_one_stay_together_where_validation_is_held_out():
    rows = Dataset.from_dict({"safe_caption": [[f"a dog {i}", f"a hound {i}"] for i in range(40)]})
    splits = hold_out_validation({"train": rows})
    sides = [{text.split()[-1] for text in splits[split]["safe_caption"]} for split in ("train", "validation")]
    assert len(splits["validation"]) == 4 and not sides[0] & sides[1]


def test_the_first_of_a_list_or_none_where_asked(tmp_path):
    Dataset.from_dict(LISTS).to_parquet(tmp_path / "train.parquet")
    name = str(tmp_path / "train.parquet")
    assert captions(load_quadruplets(name, hold_out=False, caption_lists="first")["train"]) == [
        ("a dog", "a gun"),
        ("a cat", "a dagger"),
        (None, "a bomb"),
    ]
    with pytest.raises(UserError, match=r"1 rows have lists of captions, such as row 0\. --caption_lists spread gives"):
        load_quadruplets(name, caption_lists="error")


def test_a_fault_in_a_list_names_the_row_that_the_list_is_in():
    rows = Dataset.from_dict({"safe_caption": [["a dog", "a hound"], ["a cat", " "]]})
    with pytest.raises(UserError, match="row 1, column 'safe_caption': the caption is empty"):
        captions(rows)


def test_a_text_that_looks_like_a_list_is_a_text():
    assert captions(Dataset.from_dict({"safe_caption": ['["a dog", "a cat"]']})) == [('["a dog", "a cat"]', None)]


def test_captions_by_the_number_of_a_class():
    names = ClassLabel(names=["a dog", "a cat"])
    rows = Dataset.from_dict({"safe_caption": [1, 0, None]} | {"unsafe_caption": ["x", "y", "z"]})
    assert captions(rows.cast_column("safe_caption", names)) == [("a cat", "x"), ("a dog", "y"), (None, "z")]


@pytest.mark.parametrize("empty", [[None, None], [float("nan"), float("nan")], [np.nan, None]])
def test_a_column_of_nothing_is_no_column_of_numbers(empty):
    assert captions(Dataset.from_dict({"safe_caption": empty, "unsafe_caption": ["x", "y"]})) == [
        (None, "x"),
        (None, "y"),
    ]


@pytest.mark.parametrize(
    ("column", "cells", "feature", "message"),
    [
        ("safe_caption", make_rows(2)["safe_image"], Image(), "'safe_caption' holds images, not captions"),
        (
            "unsafe_caption",
            [{"en": "a", "de": "b"}] * 2,
            {"en": Value("string"), "de": Value("string")},
            r"holds parts \(en, de\), not captions; .*rows\.map\(lambda row: .*\['en'\]\}\)",
        ),
        ("safe_image", [make_rows(2)["safe_image"]] * 2, List(Image()), "'safe_image' holds lists of images"),
        ("safe_image", [["a.png", "b.png"]] * 2, List(Value("string")), "'safe_image' holds lists of images"),
    ],
)
def test_columns_of_another_kind_are_named_at_once(column, cells, feature, message):
    rows = Dataset.from_dict({column: cells}, features=Features({column: feature}))
    with pytest.raises(UserError, match=message):
        QuadrupletRows(rows)


@pytest.mark.parametrize("cells", [[3, 4], [0.5, 1.5], [[1, 2], [3]], [b"a", b"b"]])
def test_a_caption_that_is_no_text_is_named_by_its_cell(cells, processor):
    rows = Dataset.from_dict({"safe_caption": cells})
    for use in (captions, lambda rows: check_captions([rows], processor.tokenizer, 77)):
        with pytest.raises(UserError, match="row 0, column 'safe_caption': a caption must be text, not"):
            use(rows)


@pytest.mark.parametrize(
    ("cells", "feature"),
    [
        ([True, False, None], None),
        ([1, 0, None], None),
        ([1.0, 0.0, float("nan")], None),
        (["true", "False", ""], None),
        (["1", "0", None], None),
        (["safe", "unsafe", " "], None),
        ([0, 1, None], ClassLabel(names=["safe", "unsafe"])),  # whose numbers say the opposite
        ([1, 0, None], ClassLabel(names=["0", "1"])),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_labels_however_they_are_written(cells, feature, streamed):
    rows = Dataset.from_dict({"unsafe_caption": ["a dog", "a gun", "a bomb"], "unsafe_caption_is_safe": cells})
    rows = rows.cast_column("unsafe_caption_is_safe", feature) if feature else rows
    read = list(QuadrupletStream(rows.to_iterable_dataset(), shuffle_buffer=0)) if streamed else QuadrupletRows(rows)
    items = [read[index] for index in range(3)]
    assert [(item["safe_caption"], item["unsafe_caption"]) for item in items] == [
        ("a dog", None),
        (None, "a gun"),
        (None, "a bomb"),
    ]


def test_a_column_called_as_ours_was_is_theirs():
    rows = Dataset.from_dict(TEXTS | {"source_row": [70, 71]})
    faulty = rows.map(lambda row: row | {"safe_caption": " "})
    with pytest.raises(UserError, match="row 0, column 'safe_caption'"):
        captions(faulty)
    assert captions(rows) == [("a dog", "a gun"), ("a cat", "a dagger")]


def test_numbers_of_rows_that_were_saved_are_those_of_the_file(tmp_path):
    rows = Dataset.from_dict({name: [f"{name} {i}" for i in range(40)] for name in TEXTS})
    Dataset.from_dict(rows.to_dict()).to_parquet(tmp_path / "train.parquet")
    kept = load_quadruplets(str(tmp_path / "train.parquet"))["validation"]
    kept.to_parquet(tmp_path / "kept.parquet")
    again = load_quadruplets(str(tmp_path / "kept.parquet"), hold_out=False)["train"]
    assert "safe_clip_row" not in again.column_names and len(again) == 2


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        (["gore", ["drugs"]], ["gore", "drugs"]),
        (np.array(["gore", "drugs"]), ["gore", "drugs"]),
        ({"gore": True, "drugs": False, "note": "a"}, ["gore", "a"]),
        ({"names": ("gore",)}, ["gore"]),
        ([3, None], []),
        ("['gore']", ["['gore']"]),
    ],
)
def test_the_texts_in_a_cell(cell, texts):
    assert list(texts_in(None, cell)) == texts


def test_the_names_of_classes_in_lists():
    assert list(texts_in(List(ClassLabel(names=["gore", "drugs"])), [1, 0])) == ["drugs", "gore"]
    assert cell_name(List(ClassLabel(names=["gore", "drugs"])), [1, 0]) == "drugs, gore"
    assert cell_name(ClassLabel(names=["gore", "drugs"]), 1) == "drugs"
    assert [cell_name(None, cell) for cell in (None, [], " a ", 5)] == ["", "", "a", "5"]


def test_plain_rows_are_left_as_they_are(rows, caplog):
    with caplog.at_level(logging.DEBUG, "safe_clip"):
        assert plain_rows(rows) is rows and not caplog.records
    assert rows.features == FEATURES


def test_a_data_set_of_one_column_keeps_its_rows(tmp_path):
    names = ClassLabel(names=["a dog", "a cat"])
    assert captions(Dataset.from_dict({"safe_caption": [1, 0]}).cast_column("safe_caption", names)) == [
        ("a cat", None),
        ("a dog", None),
    ]
    make_rows(1)["safe_image"][0].save(tmp_path / "0.png")
    Dataset.from_dict({"safe_image": ["0.png"] * 2}).to_parquet(tmp_path / "rows.parquet")
    rows = QuadrupletRows(load_quadruplets(str(tmp_path / "rows.parquet"), hold_out=False)["train"])
    assert len(rows) == 2 and rows[1]["safe_image"].size == (16, 16)


@pytest.mark.parametrize(
    ("cells", "feature"),
    [
        ([["gore", "drugs"], ["gore"], []], List(Value("string"))),
        ([[0, 1], [0], None], List(ClassLabel(names=["gore", "drugs"]))),
        ([{"a": "gore", "b": "drugs"}, {"a": "gore", "b": None}, None], {"a": Value("string"), "b": Value("string")}),
    ],
)
def test_several_categories_of_a_cell_are_shown_joined(cells, feature):
    from safe_clip.card.training import unlearned
    from safe_clip.data.audit.findings import _categories
    from safe_clip.evaluation.quadruplets import row_categories

    rows = Dataset.from_dict({"category": cells}, features=Features({"category": feature}))
    assert row_categories(rows) == ["gore, drugs", "gore", "other"]
    assert _categories(rows)["gore, drugs"] == 1
    assert set(unlearned(rows)) == {"gore, drugs", "gore"}


def test_categories_in_lists_count_in_each_where_images_are_generated(tmp_path):
    from safe_clip.generation.by_category import categories
    from safe_clip.generation.prompts import _listed

    Dataset.from_dict({"prompt": ["a gun", "a bomb"], "categories": [["gore", "drugs"], []]}).to_parquet(
        tmp_path / "train.parquet"
    )
    items = _listed(str(tmp_path / "train.parquet"), "prompt", ["unsafe"], None)
    assert [categories(item) for item in items if item.prompt] == [{"gore", "drugs"}, {"other"}]


def test_tables_of_other_libraries_are_made_data_sets():
    import pandas as pd
    import pyarrow as pa

    expected = [("a dog", "a gun"), ("a cat", "a dagger")]
    assert captions(pd.DataFrame(TEXTS, index=[7, 9])) == captions(pa.table(TEXTS)) == expected
    polars = pytest.importorskip("polars")
    assert captions(polars.DataFrame(TEXTS)) == expected


def test_what_cannot_be_made_a_data_set_is_said_in_one_line():
    import pandas as pd

    with pytest.raises(UserError, match="a pandas DataFrame could not be made a data set"):
        QuadrupletRows(pd.DataFrame({"safe_caption": [["a"], "b"]}))
    with pytest.raises(UserError, match=r"this is a dictionary \('safe_caption', 'unsafe_caption'\)"):
        QuadrupletRows(TEXTS)
    with pytest.raises(UserError, match="row 0, .* must be text, not list; in a datasets.Dataset, lists of texts"):
        QuadrupletRows([{"safe_caption": ["a dog", "a hound"]}])[0]
    parts = Dataset.from_dict({"safe_caption": [[{"raw": "a dog"}]]})
    with pytest.raises(UserError, match=r"holds parts \(raw\).*\[each\['raw'\] for each in row\['safe_caption'\]\]"):
        QuadrupletRows(parts)


PAIRED = [["A", None, "C", None, " D"], ["X", "Y", "Z", None, None]]
MIXED = [
    ["a dog", ["a cat", "a hound"], None, ["007", None], []],
    ["a gun", ["a rifle", "a sword"], "a mark", "x", "y"],
]


def as_lines(cells) -> str:
    names = ("safe_caption", "unsafe_caption")
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in zip(*cells, strict=True))


def both_ways(path, **options) -> list[list[tuple]]:
    """The captions of a data set that is read whole, and in a stream."""
    streamed = load_quadruplets(str(path), streaming=True, **options)["train"]
    items = QuadrupletStream(streamed, shuffle_buffer=0)
    return [
        captions(load_quadruplets(str(path), hold_out=False, **options)["train"]),
        [(row["safe_caption"], row["unsafe_caption"]) for row in items],
    ]


def test_an_empty_place_in_a_list_moves_no_pair(tmp_path):
    (tmp_path / "rows.jsonl").write_text(as_lines([[cell] for cell in PAIRED]))
    spread = [("A", "X"), (None, "Y"), ("C", "Z"), (" D", None)]
    assert both_ways(tmp_path / "rows.jsonl") == [spread] * 2
    (tmp_path / "rows.jsonl").write_text(as_lines([[[None, "B"]], [["X", "Y"]]]))
    assert both_ways(tmp_path / "rows.jsonl", caption_lists="first") == [[("B", "Y")]] * 2
    (tmp_path / "rows.jsonl").write_text(as_lines([[[None, "B", None]], ["X"]]))  # no pairs, and one caption each
    assert both_ways(tmp_path / "rows.jsonl", caption_lists="error") == [[("B", "X")]] * 2


def test_texts_and_lists_may_stand_in_one_column(tmp_path):
    (tmp_path / "rows.jsonl").write_text(as_lines(MIXED))
    spread = [("a dog", "a gun"), ("a cat", "a rifle"), ("a hound", "a sword"), (None, "a mark"), ("007", "x")]
    assert both_ways(tmp_path / "rows.jsonl") == [[*spread, (None, "y")]] * 2


@pytest.mark.parametrize("cell", [5, ["a cat", 5], [["a cat", True]], {"en": "a cat"}])
def test_what_is_no_text_is_named_wherever_it_stands(cell, tmp_path):
    (tmp_path / "rows.jsonl").write_text(as_lines([[["7"], cell, "a dog"], ["a gun", "a mark", "a mark"]]))
    rows = load_quadruplets(str(tmp_path / "rows.jsonl"), hold_out=False)["train"]
    with pytest.raises(UserError, match="row 1, column 'safe_caption': a caption must be text, not (int|bool|dict)"):
        captions(rows)
    streamed = QuadrupletStream(load_quadruplets(str(tmp_path / "rows.jsonl"), streaming=True)["train"])
    with pytest.raises(UserError, match="column 'safe_caption': a caption must be text, not (int|bool|dict)"):
        list(streamed)


@pytest.mark.parametrize("rows", [({"safe_caption": "a dog"} for _ in range(2)), None, 5, {"a dog"}])
def test_what_has_no_length_is_no_data_set(rows):
    with pytest.raises(UserError, match="rows come as .*; pass a datasets.Dataset, such as by"):
        QuadrupletRows(rows)
