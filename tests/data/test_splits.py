"""Splits under the names that people give them, and parts of them."""

import pytest
from datasets import Dataset, DatasetDict

from safe_clip import UserError, load_quadruplets
from safe_clip.data.splits import known_splits, meant, part_off
from safe_clip.evaluation.data import load_evaluation_data


def rows(word: str, count: int = 10) -> Dataset:
    return Dataset.from_dict(
        {"safe_caption": [f"a dog {word} {i}" for i in range(count)], "unsafe_caption": ["a gun"] * count}
    )


def saved(folder, **splits) -> str:
    DatasetDict({split: rows(split, count) for split, count in splits.items()}).save_to_disk(folder)
    return str(folder)


MEANT = {
    "validation": ["val", "Valid", "DEV", "eval", "validation-00000", "val2017", "val_2014"],
    "train": ["training", "TRAIN", "train-00000"],
    "test": ["test", "testing"],
    None: ["dev_test", "full", "data"],
}


@pytest.mark.parametrize(("name", "role"), [(name, role) for role, names in MEANT.items() for name in names])
def test_what_a_split_is_meant_for(name, role):
    assert meant(name) == role


@pytest.mark.parametrize("name", ["val", "valid", "dev", "eval", "Validation"])
def test_a_split_that_is_called_alike_is_the_validation_split(name, tmp_path, caplog):
    splits = load_quadruplets(saved(tmp_path, train=40, **{name: 3}))
    assert {split: len(each) for split, each in splits.items()} == {"train": 40, "validation": 3}
    assert splits["validation"]["safe_caption"][2] == f"a dog {name} 2"
    assert f"the split '{name}' is taken as 'validation'" in caplog.text
    # It may be asked for by either name.
    assert known_splits([name, "train", "other"], splits) == ["validation", "train", "other"]
    data = load_evaluation_data(str(tmp_path), [name], tasks=["retrieval"])
    assert {split: len(each.rows) for split, each in data.splits.items()} == {"validation": 3}


def test_of_two_that_are_called_alike_neither_is_taken(tmp_path, caplog):
    splits = load_quadruplets(saved(tmp_path, train=40, val=3, dev=3))
    assert set(splits) == {"train", "val", "dev", "validation"} and len(splits["train"]) == 38
    assert "several that may be it: val, dev; none of them is taken for it" in caplog.text
    splits = load_quadruplets(saved(tmp_path / "other", train=40, validation=2, val=3))
    assert {split: len(each) for split, each in splits.items()} == {"train": 40, "validation": 2, "val": 3}


def test_training_is_train(tmp_path):
    assert set(load_quadruplets(saved(tmp_path, training=40, test=2), hold_out=False)) == {"train", "test"}


@pytest.mark.parametrize(
    ("part", "split", "numbers"),
    [
        ("train[:50%]", "train", [0, 1, 2, 3, 4]),
        ("train[8:]", "train", [8, 9]),
        ("train[:1]+val[:1]", "train", [0, 0]),
        ("val", "validation", [0, 1, 2]),
        ("validation[-1:]", "validation", [2]),
        ("full[2:4]", "train", [2, 3]),
        ("full", "train", [0, 1, 2, 3]),
    ],
)
def test_a_part_of_a_split(part, split, numbers, tmp_path):
    loaded = load_quadruplets(f"{saved(tmp_path, train=10, val=3, full=4)}:{part}", hold_out=False)
    assert {name: [int(text.split()[-1]) for text in each["safe_caption"]] for name, each in loaded.items()} == {
        split: numbers
    }


def test_rows_of_a_part_are_known_by_their_numbers_in_the_file(tmp_path):
    from safe_clip import QuadrupletRows

    table = {"safe_caption": ["a dog"] * 5 + [" "], "unsafe_caption": ["a gun"] * 6}
    Dataset.from_dict(table).to_csv(tmp_path / "a.csv")
    loaded = load_quadruplets(f"{tmp_path / 'a.csv'}:train[50%:]", hold_out=False)["train"]
    with pytest.raises(UserError, match="row 5, column 'safe_caption'"):
        QuadrupletRows(loaded)[2]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("other", "has no split 'other', only train"),
        ("train[:x]", r"Unrecognized instruction format.* Write it as in --dataset .*:train\[:50%\]"),
        ("train[:200%]", "Percent slice boundaries"),
        ("train[5:5]", r"train\[5:5\] has no rows"),
    ],
)
def test_a_part_that_is_not_there(part, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_quadruplets(f"{saved(tmp_path, train=10)}:{part}")


def test_streams_are_taken_whole(tmp_path):
    rows("x").to_csv(tmp_path / "a.csv")
    stream = load_quadruplets(f"{tmp_path / 'a.csv'}:train", streaming=True)["train"]
    assert len(list(stream)) == 10
    with pytest.raises(UserError, match="with --streaming, a split is taken whole"):
        load_quadruplets(f"{tmp_path / 'a.csv'}:train[:5]", streaming=True)


def test_names_with_colons_of_their_own(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert part_off(str(tmp_path / "a:b")) == (str(tmp_path / "a:b"), None)
    assert part_off("you/rows:train") == ("you/rows", "train")
    assert part_off("hf://datasets/you/rows") == ("hf://datasets/you/rows", None)
    assert part_off("rows.csv") == ("rows.csv", None)


def test_configurations_are_named(tmp_path):
    for config in ("easy", "hard"):
        (tmp_path / config).mkdir()
        rows(config).to_csv(tmp_path / config / "train.csv")
    listed = "".join(f"- config_name: {config}\n  data_files: {config}/*.csv\n" for config in ("easy", "hard"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    with pytest.raises(
        UserError, match="has several configurations, easy, hard: name one, such as --dataset_config easy"
    ):
        load_quadruplets(str(tmp_path))
    with pytest.raises(UserError, match="has no configuration 'medium', only easy, hard: name one"):
        load_quadruplets(str(tmp_path), "medium")
    loaded = load_quadruplets(str(tmp_path), "hard", hold_out=False)["train"]
    assert loaded["safe_caption"][0] == "a dog hard 0"
