"""Tables of text: cells as they were written, whatever stands between and around them."""

import json

import pytest
from datasets import Value

from safe_clip import UserError
from safe_clip.data.sources import load_splits

COUNT = 6
SAFE = [f"a dog {n}" for n in range(COUNT)]
UNSAFE = [f"a gun {n}" for n in range(COUNT)]
HEAD = "safe_caption,unsafe_caption\n"
PAIRS = list(zip(SAFE, UNSAFE, strict=True))


def columns(path, **options) -> tuple:
    rows = load_splits(str(path), **options)["train"]
    rows = list(rows)
    return [row.get("safe_caption") for row in rows], [row["unsafe_caption"] for row in rows]


def lines(form: str, head: str = HEAD) -> str:
    return head + "".join(form.format(safe, unsafe) + "\n" for safe, unsafe in PAIRS)


READ = {
    "empty cells at the end.csv": (lines("{},{},"), SAFE, UNSAFE),
    "spaces before marks.csv": (lines('"{}", "{}, x"'), SAFE, [f"{each}, x" for each in UNSAFE]),
    "spaces and doubled marks.csv": (
        lines('"{}, ""b""", "c, {}"'),
        [f'{s}, "b"' for s in SAFE],
        [f"c, {u}" for u in UNSAFE],
    ),
    "backslashes.csv": (lines('"{} \\"big\\", brown",{}'), [f'{each} "big", brown' for each in SAFE], UNSAFE),
    "lines in cells.csv": (lines('"{},\nbrown",{}'), [f"{each},\nbrown" for each in SAFE], UNSAFE),
    "inches.tsv": (lines('{} 5" long\t{}', HEAD.replace(",", "\t")), [f'{each} 5" long' for each in SAFE], UNSAFE),
    "sayings.tsv": (lines('"{}" sign\t{}', HEAD.replace(",", "\t")), [f'"{each}" sign' for each in SAFE], UNSAFE),
    "old Mac.csv": (lines("{},{}").replace("\n", "\r"), SAFE, UNSAFE),
    "Excel.csv": ("sep=;\n" + lines("{};{}", HEAD.replace(",", ";")), SAFE, UNSAFE),
    "comment.csv": ("# my rows\n" + lines("{},{}"), SAFE, UNSAFE),
    "one column.csv": (lines("{1}, c", "unsafe_caption\n"), [None] * COUNT, [f"{each}, c" for each in UNSAFE]),
    "one quoted column.csv": (lines('"{1}, c; d"', "unsafe_caption\n"), [None] * COUNT, [f"{u}, c; d" for u in UNSAFE]),
    "numbers.csv": (lines("007,{1}"), ["007"] * COUNT, UNSAFE),
    "empty first.csv": (
        HEAD + "".join(f",{each}\n" for each in UNSAFE) * 2000 + "a dog,x\n",
        None,
        UNSAFE * 2000 + ["x"],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_cells_are_what_was_written(name, tmp_path):
    text, safe, unsafe = READ[name]
    (tmp_path / name).write_text(text, newline="")
    found = columns(tmp_path / name)
    assert found == (safe or [None] * (len(unsafe) - 1) + ["a dog"], unsafe)


@pytest.mark.parametrize("places", [(1,), (1, 4), (0, 1, 2)])
def test_a_mark_that_begins_a_text_swallows_no_rows(places, tmp_path):
    safe = [f'"{each}' if number in places else each for number, each in enumerate(SAFE)]
    (tmp_path / "rows.tsv").write_text(
        "safe_caption\tunsafe_caption\n" + "".join(f"{s}\t{u}\n" for s, u in zip(safe, UNSAFE, strict=True))
    )
    assert columns(tmp_path / "rows.tsv") == (safe, UNSAFE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lines("{}, brown,{}"), "line 2: it has 3 cells, and the line of names 2"),
        (HEAD + "a dog, brown,a gun\n" + "a dog,a gun\n" * 3, "line 2: it has 3 cells"),
        (HEAD + "a dog,a gun\n" * 3 + "a dog,a gun,\n", "line 5: it has 3 cells, and other lines 2"),
        (HEAD + "a dog, brown,\n" + "a dog,a gun\n", "line 3: it has 2 cells, and other lines 3"),
        (HEAD + '"a dog,a gun\n' + "a dog,a gun\n" * 3, "line 2: a quotation mark is opened and never closed"),
        (
            HEAD + '"a dog,a gun\n' + "a dog,a gun\n" * 3 + 'a dog,a gun"\n',
            "line 2: a quotation mark makes one cell of",
        ),
        (HEAD + '"a" dog,a gun\n', "line 2: a quotation mark stands inside"),
        (HEAD, "no rows below its line of names"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
        ("<!DOCTYPE html>\n<html>, </html>\n", "a web page, not a table; fetch it anew"),
    ],
)
def test_what_would_shift_or_lose_cells_is_named(text, said, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=rf"rows\.csv could not be loaded: .*{said}") as error:
        load_splits(str(tmp_path / "rows.csv"))
    assert "\n" not in str(error.value)


def test_columns_hold_what_all_their_cells_do(tmp_path):
    tweet = 1234567890123456780
    rows = [
        (n, "" if n == 1 else tweet + n, "" if n < 3 else "weapons", n if n < 4 else f"x{n}", n / 4, n > 2)
        for n in range(6)
    ]
    table = "source_row,image_id,category,prompt_id,score,safe\n" + "".join(
        ",".join(map(str, row)) + "\n" for row in rows
    )
    (tmp_path / "0.csv").write_text(table)
    (tmp_path / "1.csv").write_text(table.replace(",", ";"))
    found = load_splits(f"{tmp_path}/*.csv")["train"]
    assert found["image_id"][:] == [None if n == 1 else tweet + n for n in range(6)] * 2
    assert found["category"][:] == ([None] * 3 + ["weapons"] * 3) * 2
    assert found["prompt_id"][:] == ["0", "1", "2", "3", "x4", "x5"] * 2
    assert found["score"][:] == [n / 4 for n in range(6)] * 2 and found["safe"][:] == [n > 2 for n in range(6)] * 2
    assert found.features["source_row"] == Value("int64")
    (tmp_path / "2.csv").write_text(table.replace("score", "points"))
    with pytest.raises(UserError, match=r"2\.csv and 0\.csv have different columns: only one has 'points'"):
        load_splits(f"{tmp_path}/*.csv")


WORDS = ["NA", "None", "null", "nan", "a gun"]


@pytest.mark.parametrize("beside", ["card", "settings", "tsv", "images"])
def test_words_for_nothing_are_words_in_folders_too(beside, tmp_path):
    table = "safe_caption;unsafe_caption\n" + "".join(f"a dog;{word}\n" for word in WORDS)
    name = "train.csv"
    if beside == "card":
        card = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n---\n"
        (tmp_path / "README.md").write_text(card)
    elif beside == "settings":
        (tmp_path / "settings.json").write_text('{"a": 1}')
    elif beside == "images":
        from PIL import Image

        for number in range(len(WORDS)):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        name = "metadata.csv"
        rows = (f"{number}.png,{word}\n" for number, word in enumerate(WORDS))
        table = "file_name,unsafe_caption\n" + "".join(rows)
    else:
        (tmp_path / "validation.tsv").write_text(table.replace(";", "\t"))
    (tmp_path / name).write_text(table)
    before = sorted(tmp_path.iterdir())
    splits = load_splits(str(tmp_path))
    assert all(rows["unsafe_caption"][:] == WORDS for rows in splits.values())
    assert set(splits) == ({"train", "validation"} if beside == "tsv" else {"train"})
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.csv", "more.csv"], "more.csv"),
        (["rows.csv", "test/rows.csv"], "rows.csv"),
        (["train_a.csv", "b.csv", "val.csv"], "b.csv"),
        (["rows.csv", "more.csv"], {"train": 2}),
        (["2024/rows.csv", "2025/rows.csv"], {"train": 2}),
        (["train/rows.csv", "val/rows.csv"], {"train": 1, "validation": 1}),
        (["rows.csv", "~$rows.csv"], {"train": 1}),
    ],
)
def test_no_table_of_a_folder_is_passed_over(files, splits, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("lock" if "~" in file else lines("{},{}"))
    if isinstance(splits, str):
        with pytest.raises(UserError, match=rf"and those of others none: {splits}\. Say it in all names"):
            load_splits(str(tmp_path))
        return
    found = load_splits(str(tmp_path))
    assert {split: len(rows) for split, rows in found.items()} == {name: COUNT * n for name, n in splits.items()}


ROWS = [{"safe_caption": safe, "unsafe_caption": unsafe} for safe, unsafe in PAIRS]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"data": ROWS}, "its rows stand behind 'data'. Save the list behind it alone."),
        ({"train": ROWS, "validation": ROWS}, "behind 'train' and 'validation'. Save the list behind each in a file"),
        ({"safe_caption": dict(enumerate(SAFE)), "unsafe_caption": dict(enumerate(UNSAFE))}, 'orient="records"'),
        (ROWS, None),
        (ROWS[0], None),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_objects_that_hold_rows_somewhere_are_told(held, said, indent, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(held, indent=indent))
    if said is None:
        assert list(load_splits(str(tmp_path / "rows.json"))["train"]) == (held if isinstance(held, list) else [held])
        return
    with pytest.raises(UserError) as error:
        load_splits(str(tmp_path / "rows.json"))
    assert said in str(error.value)


def test_a_column_that_comes_late_in_lines_of_json_is_named(tmp_path):
    rows = [{"safe_caption": f"a dog {n} {'x' * 200}"} | ({"tag": "w"} if n > 59_000 else {}) for n in range(60_000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UserError, match="Each row must have the same columns, 'tag' too, of one kind from the first on"
    ):
        load_splits(str(tmp_path / "rows.jsonl"))
