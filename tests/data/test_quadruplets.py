import pytest
from datasets import Dataset, DatasetDict, Image
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as PILImage

from safe_clip import QuadrupletRows, UserError, load_quadruplets
from safe_clip.data import quadruplets, sources

from ..helpers import FEATURES, make_rows


def save(folder, **splits):
    DatasetDict(
        {name: Dataset.from_dict(make_rows(count), features=FEATURES) for name, count in splits.items()}
    ).save_to_disk(folder)
    return str(folder)


def test_loads_what_save_to_disk_wrote(dataset_dir):
    splits = load_quadruplets(dataset_dir)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 24, "validation": 8, "test": 8}
    assert splits["train"][0]["safe_caption"] == "a red square beside a green one"


def test_loads_a_folder_of_parquet_as_the_hub_keeps_it(tmp_path):
    rows = Dataset.from_dict(make_rows(8), features=FEATURES)
    rows.to_parquet(tmp_path / "train.parquet")
    rows.select(range(3)).to_parquet(tmp_path / "test.parquet")
    splits = load_quadruplets(str(tmp_path))
    assert len(splits["test"]) == 3
    assert isinstance(splits["train"][0]["safe_image"], PILImage.Image)


def test_validation_is_cut_off_training_where_there_is_none(tmp_path):
    first, second = (load_quadruplets(save(tmp_path / name, train=40)) for name in "ab")
    assert (len(first["train"]), len(first["validation"])) == (38, 2)
    chosen = list(first["validation"]["safe_clip_row"])
    assert sorted([*chosen, *first["train"]["safe_clip_row"]]) == list(range(40))
    assert list(first["validation"]["safe_caption"]) == list(second["validation"]["safe_caption"])
    both = [*first["train"]["unsafe_caption"], *first["validation"]["unsafe_caption"]]
    assert sorted(both) == sorted(make_rows(40)["unsafe_caption"])


def test_a_missing_column_says_what_is_there_and_guesses(tmp_path):
    rows = Dataset.from_dict(make_rows(4), features=FEATURES)
    rows.rename_column("unsafe_caption", "nsfw_caption").to_parquet(tmp_path / "train.parquet")
    message = (
        "split 'train' of .* lacks the column 'unsafe_caption'; it has 'safe_caption', 'safe_image', 'nsfw_caption', "
        """'unsafe_image'. Name them with --column_mapping '{"nsfw_caption": "unsafe_caption"}'"""
    )
    with pytest.raises(UserError, match=message):
        load_quadruplets(str(tmp_path))
    splits = load_quadruplets(str(tmp_path), column_mapping={"nsfw_caption": "unsafe_caption"})
    assert splits["train"][1]["unsafe_caption"].endswith("with a mark")


def test_a_mapping_of_a_column_that_is_not_there(dataset_dir):
    with pytest.raises(
        UserError, match="renames 'caption', which split 'train' .* lacks; its columns are 'safe_caption'"
    ):
        load_quadruplets(dataset_dir, column_mapping={"caption": "safe_caption"})


def test_an_empty_split(monkeypatch):
    rows = Dataset.from_dict(make_rows(4), features=FEATURES)
    monkeypatch.setattr(quadruplets, "load_splits", lambda *_, **__: DatasetDict(train=rows, test=rows.select([])))
    with pytest.raises(UserError, match="split 'test' of somewhere is empty"):
        load_quadruplets("somewhere")


def test_a_data_set_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="--dataset .*nowhere"):
        load_quadruplets(str(tmp_path / "nowhere"))


def test_a_gated_data_set(monkeypatch):
    def refuse(*args, **kwargs):
        raise DatasetNotFoundError("Dataset 'some/thing' is a gated dataset on the Hub.")

    monkeypatch.setattr(sources, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"gated: accept its terms at https://.*/some/thing, then log in with `hf auth"):
        load_quadruplets("some/thing")


def broken(column, value):
    rows = make_rows(6)
    rows = {name: list(values) for name, values in rows.items()}
    dataset = Dataset.from_dict(rows, features=FEATURES)
    for name in ("safe_image", "unsafe_image"):
        dataset = dataset.cast_column(name, Image(decode=False))
    table = dataset.to_dict()
    table[column][4] = value
    return QuadrupletRows(Dataset.from_dict(table, features=FEATURES))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "safe_image",
            {"bytes": b"<html>not found</html>", "path": None},
            "row 4, column 'safe_image': the image cannot be read",
        ),
        ("unsafe_image", {"bytes": b"", "path": None}, "row 4, column 'unsafe_image': the image cannot be read"),
        (
            "unsafe_image",
            {"bytes": None, "path": "/no/such.png"},
            r"'unsafe_image' \(/no/such.png\): the image cannot be read \(File",
        ),
        ("safe_caption", "  \n", "row 4, column 'safe_caption': the caption is empty"),
    ],
)
def test_bad_cells_are_named(column, value, message):
    rows = broken(column, value)
    rows[3]
    with pytest.raises(UserError, match=message):
        rows[4]


def test_a_truncated_image_is_named_when_it_is_read():
    import io

    buffer = io.BytesIO()
    PILImage.effect_noise((64, 64), 50).save(buffer, "PNG")
    rows = broken("safe_image", {"bytes": buffer.getvalue()[:700], "path": None})
    with pytest.raises(UserError, match="row 4, column 'safe_image': the image cannot be read .*trunc"):
        rows[4]


def test_rows_are_named_as_in_the_data_set_from_which_validation_was_cut(tmp_path):
    rows = make_rows(40)
    rows["unsafe_caption"][30] = " "
    Dataset.from_dict(rows, features=FEATURES).to_parquet(tmp_path / "train.parquet")
    splits = load_quadruplets(str(tmp_path))
    (split, position) = next(
        (name, list(data["safe_clip_row"]).index(30)) for name, data in splits.items() if 30 in data["safe_clip_row"]
    )
    assert position != 30
    with pytest.raises(UserError, match="row 30, column 'unsafe_caption': the caption is empty"):
        QuadrupletRows(splits[split])[position]


def test_images_are_turned_upright(tmp_path):
    image = PILImage.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "phone.jpg", exif=exif)
    assert broken("safe_image", {"bytes": None, "path": str(tmp_path / "phone.jpg")})[4]["safe_image"].size == (20, 40)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"safe_caption": "a", \n{]')
    with pytest.raises(UserError, match=r"could not be loaded \(.*\). Check its files."):
        load_quadruplets(str(tmp_path))


def test_any_sequence_of_dictionaries_will_do():
    table = make_rows(3)
    rows = QuadrupletRows([{name: values[i] for name, values in table.items()} for i in range(3)])
    assert len(rows) == 3 and rows[2]["safe_image"].mode == "RGB"
    with pytest.raises(UserError, match="row 0 lacks the columns 'safe_caption', .*; it has 'caption'"):
        QuadrupletRows([{"caption": "a"}])[0]
    with pytest.raises(UserError, match="row 0 is empty"):
        QuadrupletRows([{"safe_caption": None}])[0]


def test_streams_are_refused_with_the_cure(rows):
    with pytest.raises(UserError, match="make a QuadrupletStream of it, or load it without --streaming"):
        QuadrupletRows(rows.to_iterable_dataset())
