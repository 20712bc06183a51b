"""Rows that cannot be used, and what becomes of them."""

import pytest
from datasets import Dataset

from safe_clip import QuadrupletRows, UserError
from safe_clip.data.bad_rows import LIST_FILE, leave_out_bad_rows
from safe_clip.data.items import ROW_COLUMN

from ..helpers import FEATURES, make_rows


def damaged(cells: dict[tuple[int, str], object], count: int = 24) -> Dataset:
    table = Dataset.from_dict(make_rows(count), features=FEATURES).with_format("arrow")[:].to_pylist()
    for (row, column), value in cells.items():
        table[row][column] = {"bytes": value, "path": None} if isinstance(value, bytes) else value
    return Dataset.from_list(table, features=FEATURES)


BAD = {
    (1, "safe_caption"): "",
    (5, "unsafe_caption"): " \t\n ",
    (7, "safe_caption"): "caf\ufffd\ufffd",
    (9, "unsafe_caption"): "a dog\0",
    **dict.fromkeys([(11, column) for column in FEATURES]),
    (13, "unsafe_image"): b"<html>404</html>",
    (13, "safe_image"): b"",
    (20, "safe_image"): b"GIF89a",
}
SAID = [
    "split 'train', row 1, column 'safe_caption': the caption is empty",
    "split 'train', row 5, column 'unsafe_caption': the caption is empty",
    "split 'train', row 7, column 'safe_caption': the caption was read in the wrong encoding",
    "split 'train', row 9, column 'unsafe_caption': the caption was read in the wrong encoding",
    "split 'train', row 11 is empty: it has neither captions nor images",
    "split 'train', row 13, column 'safe_image': the image cannot be read (UnidentifiedImageError: it is empty",
    "split 'train', row 20, column 'safe_image': the image cannot be read",
]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_left_out_and_listed_and_the_others_keep_their_numbers(workers, tmp_path, caplog):
    rows = leave_out_bad_rows(damaged(BAD), "split 'train'", tmp_path / "out", 0.3, workers)
    assert list(rows[ROW_COLUMN]) == [row for row in range(24) if row not in {row for row, _ in BAD}]
    items = QuadrupletRows(rows)
    assert len(items) == 17 and items[1]["safe_caption"] == make_rows(3)["safe_caption"][2]
    lines = (tmp_path / "out" / LIST_FILE).read_text().splitlines()
    assert len(lines) == len(SAID) and "holds NUL" in lines[3] and "holds U+FFFD" in lines[2]
    for line, said in zip(lines, SAID, strict=True):
        assert line.startswith(said)
    assert (
        f"7 of 24 rows of split 'train' cannot be used and are left out; they are listed in {tmp_path}" in caplog.text
    )
    # What breaks later is named by the number that the person knows.
    broken = rows.map(lambda row: {"safe_caption": "" if row[ROW_COLUMN] == 8 else row["safe_caption"]})
    with pytest.raises(UserError, match="row 8, column 'safe_caption'"):
        [QuadrupletRows(broken)[index] for index in range(len(broken))]


def test_too_many_bad_rows_are_no_bad_luck(tmp_path):
    with pytest.raises(
        UserError, match=r"7 of 24 rows of split 'train' cannot be used, more than --max_bad_fraction 0.29 "
    ):
        leave_out_bad_rows(damaged(BAD), "split 'train'", tmp_path, 0.29)
    assert len((tmp_path / LIST_FILE).read_text().splitlines()) == 7
    everything = {(row, "safe_caption"): "" for row in range(4)}
    with pytest.raises(UserError, match="4 of 4 rows of split 'train' cannot be used, and none is left; "):
        leave_out_bad_rows(damaged(everything, 4), "split 'train'", tmp_path, 1.0)


def test_good_rows_are_left_as_they_are(tmp_path):
    rows = damaged({})
    assert leave_out_bad_rows(rows, "split 'train'", tmp_path, 0.0) is rows
    assert not (tmp_path / LIST_FILE).exists()


@pytest.mark.parametrize(
    "caption",
    [
        "a dog 🐕\u200d🦺",
        "כלב על ספה",
        "كلب",
        "犬と猫",
        "a dog\nand a cat",
        "x" * 5,
        "word " * 5000,
        "é\u0301",
        "a \ufffd b",
        "caf\u00c3\u00a9",
        "\u202ea dog\u202c",
        "\x1b[31ma dog\x07",
        "\ufeffa dog\u200b",
        "1234",
        "-",
    ],
    ids=[
        *["emoji", "hebrew", "arabic", "japanese", "lines", "one word", "5,000 words", "combining", "one typo"],
        *["mojibake", "turned around", "control characters", "zero width", "digits", "a dash"],
    ],
)
def test_unusual_captions_are_captions(caption, processor):
    from safe_clip import QuadrupletCollator

    rows = damaged({(0, "safe_caption"): caption}, 2)
    items = QuadrupletRows(rows)
    batch = QuadrupletCollator(processor, 77)([items[0], items[1]])
    assert batch["input_ids"].shape[1] <= 77
    ids = batch["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.eos_token_id) >= 1  # also where the end was cut off


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("\u200b\ufeff", "the caption is empty"),
        ("\u00ad", "the caption is empty"),
        ("\x01\x07", "the caption is empty"),
        ("\u3000\u2029", "the caption is empty"),
        ("caf\udce9", "holds lone surrogates"),
        ({"a": 1}, "a caption must be text, not dict"),
        ({"bytes": None, "path": None}, "a caption must be text, not dict"),
    ],
)
def test_captions_without_anything_that_can_be_read(caption, said):
    row = {name: values[0] for name, values in make_rows(1).items()}
    with pytest.raises(UserError, match=f"row 0, column 'unsafe_caption': .*{said}"):
        QuadrupletRows([row | {"unsafe_caption": caption}])[0]


def test_words_that_a_csv_reader_might_take_for_nothing_are_captions(tmp_path):
    from safe_clip import load_quadruplets

    (tmp_path / "rows.csv").write_text("safe_caption,unsafe_caption\nNA,None\nnull,nan\n,a knife\n")
    rows = load_quadruplets(str(tmp_path / "rows.csv"), hold_out=False)["train"]
    assert rows["safe_caption"] == ["NA", "null", None] and rows["unsafe_caption"] == ["None", "nan", "a knife"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_files_in_another_encoding_are_named_with_the_cure(kind, tmp_path):
    from safe_clip import load_quadruplets

    text = {
        "csv": "safe_caption,unsafe_caption\ncafé,a\n",
        "jsonl": '{"safe_caption": "café", "unsafe_caption": "a"}\n',
    }
    (tmp_path / f"rows.{kind}").write_text(text[kind], encoding="latin-1")
    with pytest.raises(UserError, match=rf"--dataset .*rows\.{kind} could not be loaded .* Save its texts as UTF-8\."):
        load_quadruplets(str(tmp_path / f"rows.{kind}"))
