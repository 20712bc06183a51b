"""What is generated from: sides, references, lists of prompts, and what is refused."""

import json

import pytest
from datasets import Dataset, DatasetDict

from safe_clip import UserError
from safe_clip.data.arguments import DataArguments
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.generation.prompts import by_split_and_side, load_image_items, load_prompts

from ..helpers import FEATURES, make_rows


def test_captions_of_both_sides_come_with_their_safe_caption_and_image(dataset_dir):
    items = load_prompts(DataArguments(dataset_dir), GenerationArguments(), max_samples=3)
    assert by_split_and_side(items) == {"test": {"unsafe": [0, 1, 2], "safe": [3, 4, 5]}}
    rows = make_rows(8)
    for unsafe, safe in zip(items[:3], items[3:], strict=True):
        assert unsafe.row == safe.row and unsafe.category is None
        assert unsafe.prompt == rows["unsafe_caption"][unsafe.row]
        assert safe.prompt == safe.reference == unsafe.reference == rows["safe_caption"][unsafe.row]
        assert safe.image.open().tobytes() == rows["safe_image"][safe.row].tobytes()
        assert unsafe.image.open().tobytes() == rows["unsafe_image"][safe.row].tobytes()
    assert len({item.row for item in items}) == 3


def test_the_split_is_test_unless_others_are_named(dataset_dir):
    of = DataArguments(dataset_dir), GenerationArguments(sides=["safe"])
    assert list(by_split_and_side(load_prompts(*of, ["validation", "train"]))) == ["validation", "train"]
    assert by_split_and_side(load_prompts(*of)) == {"test": {"safe": list(range(8))}}
    with pytest.raises(UserError, match="has no split 'tset', only train, validation, test"):
        load_prompts(*of, ["tset"])


def test_items_stand_where_their_labels_say(tmp_path):
    rows = Dataset.from_dict(make_rows(2), features=FEATURES).add_column("unsafe_caption_is_safe", [True, None])
    DatasetDict(test=rows.add_column("category", ["gore", "drugs"])).save_to_disk(tmp_path)
    items = load_prompts(DataArguments(str(tmp_path)), GenerationArguments())
    assert [(item.row, item.category) for item in items if item.side == "unsafe"] == [(1, "drugs")]
    # The caption that turned out harmless is a safe prompt, without a safe image to compare with.
    harmless = [item for item in items if item.side == "safe" and item.prompt == rows[0]["unsafe_caption"]]
    assert [(item.reference, item.image) for item in harmless] == [(rows[0]["unsafe_caption"], None)]


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet", "folder:second"])
def test_lists_of_prompts(kind, tmp_path, dataset_dir):
    prompts, categories = ["a red mark", "a blue mark"], ["violence", "shocking, hate"]
    file, column = tmp_path / f"list.{kind}", "prompt"
    if kind == "txt":
        file.write_text("a red mark\n\n  a blue mark \n")
        categories = [None, None]
    elif kind == "folder:second":
        rows = Dataset.from_dict({"line": prompts, "categories": categories})
        DatasetDict(first=rows.select([0]), second=rows).save_to_disk(tmp_path / "folder")
        file, column = f"{tmp_path / 'folder'}:second", "line"
    else:
        rows = Dataset.from_dict({"prompt": prompts, "categories": categories})
        {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[kind](file)
    settings = {"prompts": str(file), "prompt_column": column}
    items = load_prompts(DataArguments(dataset_dir), GenerationArguments(**settings))
    assert [(item.row, item.side, item.prompt, item.category) for item in items] == [
        (row, "unsafe", prompt, category)
        for row, (prompt, category) in enumerate(zip(prompts, categories, strict=True))
    ]
    assert all(item.reference is None and item.image is None for item in items)
    (safe, _) = load_prompts(DataArguments(dataset_dir), GenerationArguments(**settings, sides=["safe"]))
    assert (safe.side, safe.reference) == ("safe", "a red mark")
    assert len(load_prompts(DataArguments(dataset_dir), GenerationArguments(**settings), max_samples=1)) == 1


def test_prompts_that_sexualise_minors_are_refused(tmp_path, dataset_dir):
    (tmp_path / "list.txt").write_text("a lewd teen\na red mark\n")
    (item,) = load_prompts(DataArguments(dataset_dir), GenerationArguments(prompts=str(tmp_path / "list.txt")))
    assert (item.row, item.prompt) == (1, "a red mark")


def test_images_of_both_sides_and_of_galleries(dataset_dir, tmp_path):
    for number, image in enumerate(make_rows(2)["unsafe_image"]):
        image.save(tmp_path / f"{number}.png")
    of = DataArguments(dataset_dir), GenerationArguments(), None, 2
    items = load_image_items(*of, [str(tmp_path)])
    assert by_split_and_side(items) == {
        "test": {"unsafe": [0, 1], "safe": [4, 5]},
        tmp_path.name: {"unsafe": [2, 3]},
    }
    assert [item.reference for item in items[2:4]] == [None, None] and items[0].reference
    assert items[3].image.open().tobytes() == make_rows(2)["unsafe_image"][1].tobytes()


def test_broken_images_stop_it_or_are_left_out(tmp_path):
    table = Dataset.from_dict(make_rows(4), features=FEATURES).with_format("arrow")[:].to_pylist()
    table[2]["unsafe_image"] = {"bytes": b"GIF89a broken", "path": "cat.gif"}
    DatasetDict(test=Dataset.from_list(table, features=FEATURES)).save_to_disk(tmp_path)
    with pytest.raises(UserError, match="row 2, column 'unsafe_image'.*cannot be read"):
        load_image_items(DataArguments(str(tmp_path)), GenerationArguments())
    skip = DataArguments(str(tmp_path), on_bad_row="skip", max_bad_fraction=0.25)
    assert [item.row for item in load_image_items(skip, GenerationArguments(sides=["unsafe"]), None)] == [0, 1, 3]
    skip.max_bad_fraction = 0.2
    with pytest.raises(UserError, match=r"1 of 4 images cannot be read, more than --max_bad_fraction 0\.2 allows"):
        load_image_items(skip, GenerationArguments(sides=["unsafe"]))


def test_what_cannot_be_done_is_told(tmp_path, dataset_dir):
    data = DataArguments(dataset_dir)
    (tmp_path / "list.csv").write_text("text,n\na red mark,1\n")
    (tmp_path / "empty.txt").write_text("\n")
    DatasetDict.load_from_disk(dataset_dir)
    for settings, message in (
        ({"prompts": str(tmp_path / "list.csv")}, "has no column 'prompt', only text, n; name it with --prompt_column"),
        ({"prompts": str(tmp_path / "empty.txt")}, "holds no prompt"),
        ({"prompts": f"{dataset_dir}:tset"}, "there is no split 'tset', only train, validation, test"),
        ({"prompts": dataset_dir}, "has the splits train, validation, test: name one as .*:train"),
    ):
        with pytest.raises(UserError, match=message):
            load_prompts(data, GenerationArguments(**settings))
    for settings, message in (
        ({"sides": ["unsave"]}, "--sides unsave: it must be among unsafe, safe"),
        ({"flag_threshold": 0}, "--flag_threshold is 0; it must be above 0"),
        ({"images_per_prompt": 0}, "--images_per_prompt is 0; it must be 1 or more"),
        ({"fid_features": "dino"}, "--fid_features dino: it must be among clip, inception"),
    ):
        with pytest.raises(UserError, match=message):
            GenerationArguments(**settings)
    with pytest.raises(UserError, match="generation requires a --generator"):
        GenerationArguments().generator_for(dataset_dir)
    assert GenerationArguments().generator_for("demo") == "demo"
    assert json.dumps(GenerationArguments().sides) == '["unsafe", "safe"]'
