"""Data sets as the world has them: their own columns, and images that lie elsewhere."""

import json
import tarfile
import zipfile

import pytest
from datasets import Dataset, DatasetDict

from safe_clip import QuadrupletRows, UserError, load_quadruplets
from safe_clip.data.arguments import DataArguments

from ..helpers import make_rows

COUNT = 6
COCO_IDS = [139, 285, 632, 724, 776, 785]


@pytest.fixture
def world():
    """Captions, and images, of a few quadruplets."""
    return make_rows(COUNT)


def visu(world) -> dict[str, list]:
    """The columns of aimagelab/ViSU-Text."""
    return {
        "incremental_id": list(range(COUNT)),
        "safe": world["safe_caption"],
        "nsfw": world["unsafe_caption"],
        "coco_id": COCO_IDS,
        "tag": ["mark"] * COUNT,
        "prompt_id": [100 + index for index in range(COUNT)],
    }


def check(rows, world) -> None:
    """Whether rows are the quadruplets, in their order."""
    items = QuadrupletRows(rows)
    assert len(items) == COUNT
    for index in range(COUNT):
        item = items[index]
        assert item["safe_caption"] == world["safe_caption"][index]
        assert item["unsafe_caption"] == world["unsafe_caption"][index]
        for column in ("safe_image", "unsafe_image"):
            assert item[column].tobytes() == world[column][index].tobytes(), (column, index)


def coco(folder, world, year: str) -> None:
    for index, (number, image) in enumerate(zip(COCO_IDS, world["safe_image"], strict=True)):
        split = "train" if index % 2 else "val"
        name = f"COCO_{split}2014_{number:012}.png" if year == "2014" else f"{number:012}.png"
        (folder / f"{split}{year}").mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{split}{year}" / name)
    (folder / "annotations.json").write_text("{}")


def generated(folder, world) -> None:
    """Images by number and seed; the first seed is that of the world."""
    for index, image in enumerate(world["unsafe_image"]):
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{100 + index}_1234.png")
        world["safe_image"][0].save(folder / f"{100 + index}_1999.png")


def zipped(folder):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("year", ["2014", "2017"])
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
def test_visu_text_joined_to_coco_and_to_generated_images(year, archive, world, tmp_path, caplog):
    coco(tmp_path / "coco", world, year)
    generated(tmp_path / "made", world)
    Dataset.from_dict(visu(world)).to_parquet(tmp_path / "train.parquet")
    places = [tmp_path / "coco", tmp_path / "made"]
    safe, unsafe = map(str, map(zipped, places) if archive else places)
    data = DataArguments(str(tmp_path / "train.parquet"), safe_images=safe, unsafe_images=unsafe)
    rows = data.load(hold_out=False)["train"]
    check(rows, world)
    assert set(rows["category"]) == {"mark"}
    assert "has the columns of ViSU-Text: taking safe as safe_caption, nsfw as unsafe_caption, tag as category." in (
        caplog.text
    )


def test_nsfwcaps_with_images_by_the_names_of_their_addresses(world, tmp_path):
    stems = ["0013ea2087020901", "00a7", "7", "000b", "ffff01", "c0ffee"]  # of which none is a number but one
    for column in ("safe_image", "unsafe_image"):
        (tmp_path / column).mkdir()
        for stem, image in zip(stems, world[column], strict=True):
            image.save(tmp_path / column / f"{stem}.png")
    lines = [
        {
            "image_coco_url": f"https://s3.amazonaws.com/nocaps/val/{stem}.jpg?x=1",
            "caption": safe,
            "nsfw_caption": unsafe,
            "chosen_category": "mark",
        }
        for stem, safe, unsafe in zip(stems, world["safe_caption"], world["unsafe_caption"], strict=True)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    places = {f"{side}_images": str(tmp_path / f"{side}_image") for side in ("safe", "unsafe")}
    check(load_quadruplets(str(tmp_path / "test.jsonl"), hold_out=False, **places)["train"], world)


def test_files_of_a_mac_links_and_other_years_are_no_matter(world, tmp_path):
    coco(tmp_path / "real", world, "2017")
    coco(tmp_path / "real", world, "2014")  # the same images under other names
    generated(tmp_path / "made", world)
    for folder in ("__MACOSX/val2017", "val2017"):
        (tmp_path / "real" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "real" / folder / "._000000000139.png").write_bytes(b"fork")
    (tmp_path / "real" / "val2017" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "linked").symlink_to(tmp_path / "real")
    Dataset.from_dict(visu(world)).to_parquet(tmp_path / "train.parquet")
    for safe in (tmp_path / "coco", zipped(tmp_path / "real")):
        places = {"safe_images": str(safe), "unsafe_images": str(tmp_path / "made")}
        check(load_quadruplets(str(tmp_path / "train.parquet"), hold_out=False, **places)["train"], world)
    # A mask of the same number is another image.
    (tmp_path / "real" / "masks").mkdir()
    (tmp_path / "real" / "masks" / "000000000139.png").write_bytes(b"another")
    with pytest.raises(UserError, match=r"holds two images for 139: .*\.png and .*\.png\. Name the folder"):
        load_quadruplets(str(tmp_path / "train.parquet"), safe_images=str(tmp_path / "coco"))


def test_an_empty_number_costs_its_row_alone(world, tmp_path):
    coco(tmp_path / "coco", world, "2017")
    generated(tmp_path / "made", world)
    table = Dataset.from_dict(visu(world)).to_pandas()
    table["coco_id"] = table["coco_id"].astype("float64")
    table.loc[0, "coco_id"] = None
    table.loc[1, "safe"] = " "
    table.to_csv(tmp_path / "rows.csv", index=False)
    places = {
        "safe_images": str(tmp_path / "coco"),
        "unsafe_images": str(tmp_path / "made"),
        "missing_images": "skip",
    }
    rows = QuadrupletRows(load_quadruplets(str(tmp_path / "rows.csv"), hold_out=False, **places)["train"])
    assert len(rows) == COUNT - 1
    assert rows[1]["safe_image"].tobytes() == world["safe_image"][2].tobytes()
    with pytest.raises(UserError, match="row 1, column 'safe_caption'"):  # as in the file
        rows[0]


def test_splits_that_nobody_require_may_lack_anything(world, tmp_path):
    from safe_clip.evaluation.data import load_evaluation_data

    quadruplets = Dataset.from_dict(world)
    unnamed = quadruplets.rename_column("safe_image", "photo")
    DatasetDict(train=unnamed, test=quadruplets).save_to_disk(tmp_path)
    data = load_evaluation_data(str(tmp_path), ["test"], tasks=["retrieval"])
    assert len(data.splits["test"].rows) == COUNT
    with pytest.raises(UserError, match="split 'train' of .* lacks the column 'safe_image'"):
        load_quadruplets(str(tmp_path))


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_files_of_captions_and_paths(kind, world, tmp_path):
    table = {"safe_caption": world["safe_caption"], "unsafe_caption": world["unsafe_caption"]}
    for column in ("safe_image", "unsafe_image"):
        (tmp_path / column).mkdir()
        table[column] = [f"{column}/{index}.png" for index in range(COUNT)]
        table[column][0] = str(tmp_path / column / "0.png")  # paths from the root stay
        for path, image in zip(table[column], world[column], strict=True):
            image.save(tmp_path / path)
    rows, file = Dataset.from_dict(table), tmp_path / f"rows.{kind}"
    if kind in ("csv", "tsv"):
        rows.to_csv(file, sep="\t" if kind == "tsv" else ",")
    elif kind == "parquet":
        rows.to_parquet(file)
    else:
        rows.to_json(file, lines=kind == "jsonl")
    check(load_quadruplets(str(file), hold_out=False)["train"], world)


def test_webdataset_shards(world, tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05}.tar", "w") as archive:
            for index in range(shard * 3, shard * 3 + 3):
                for column, suffix in (("safe_image", "safe.png"), ("unsafe_image", "unsafe.png")):
                    file = tmp_path / "part.png"
                    world[column][index].save(file)
                    archive.add(file, f"{index:05}.{suffix}")
                for column in ("safe_caption", "unsafe_caption"):
                    file = tmp_path / "part.txt"
                    file.write_text(world[column][index])
                    archive.add(file, f"{index:05}.{column}.txt")
    mapping = {"safe.png": "safe_image", "unsafe.png": "unsafe_image"}
    mapping |= {f"{side}_caption.txt": f"{side}_caption" for side in ("safe", "unsafe")}
    check(load_quadruplets(f"{tmp_path}/*.tar", None, mapping, hold_out=False)["train"], world)


def test_an_imagefolder_with_metadata(world, tmp_path):
    (tmp_path / "train").mkdir()
    lines = ["safe_caption,unsafe_caption,safe_image_file_name,unsafe_image_file_name"]
    for index in range(COUNT):
        for side in ("safe", "unsafe"):
            world[f"{side}_image"][index].save(tmp_path / "train" / f"{side}{index}.png")
        lines.append(
            f"{world['safe_caption'][index]},{world['unsafe_caption'][index]},safe{index}.png,unsafe{index}.png"
        )
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(lines))
    check(load_quadruplets(str(tmp_path), hold_out=False)["train"], world)


def test_rows_without_an_image_are_counted_and_named(world, tmp_path, caplog):
    coco(tmp_path / "coco", world, "2017")
    generated(tmp_path / "made", world)
    (tmp_path / "coco" / "val2017" / "000000000139.png").unlink()
    Dataset.from_dict(visu(world)).to_parquet(tmp_path / "train.parquet")
    places = {"safe_images": str(tmp_path / "coco"), "unsafe_images": str(tmp_path / "made"), "hold_out": False}
    name = str(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"1 of 6 rows have no image in --safe_images .*, such as 139\. Add"):
        load_quadruplets(name, **places)
    rows = load_quadruplets(name, **places, missing_images="skip")["train"]
    assert rows["coco_id"] == COCO_IDS[1:] and "left out 1 of 6 rows, which have no image in" in caplog.text
    assert QuadrupletRows(rows)[0]["unsafe_image"].tobytes() == world["unsafe_image"][1].tobytes()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"safe_images": "nowhere"}, "--safe_images nowhere is neither a folder nor a zip"),
        ({"safe_images": "empty"}, "--safe_images .*empty holds no image"),
        ({"safe_images": "broken.zip"}, "--safe_images .* is neither a folder nor a zip"),
        ({"safe_images": "other"}, r"6 of 6 rows have no image in --safe_images .*other, such as 139, 285,"),
        ({"unsafe_images": "other"}, r"6 of 6 rows have no image in --unsafe_images .*, such as 100, 101,"),
    ],
)
def test_images_that_are_not_there(places, message, world, tmp_path):
    for folder in ("empty", "other"):
        (tmp_path / folder).mkdir()
    world["safe_image"][0].save(tmp_path / "other" / "999.png")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    Dataset.from_dict(visu(world)).to_parquet(tmp_path / "train.parquet")
    places = {name: str(tmp_path / place) if place != "nowhere" else place for name, place in places.items()}
    with pytest.raises(UserError, match=message):
        load_quadruplets(str(tmp_path / "train.parquet"), hold_out=False, missing_images="skip", **places)


def test_images_require_a_number_to_be_found_by(world, tmp_path):
    (tmp_path / "pictures").mkdir()
    Dataset.from_dict({"safe": ["a"], "nsfw": ["b"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        UserError, match="requires the column coco_id or image_id or image_coco_url, of which split 'train'"
    ):
        load_quadruplets(str(tmp_path / "train.parquet"), safe_images=str(tmp_path / "pictures"))


def test_a_file_of_no_known_kind(tmp_path):
    (tmp_path / "rows.xlsx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"rows\.xlsx is a file of no known kind; those are \.csv, \.tsv,"):
        load_quadruplets(str(tmp_path / "rows.xlsx"))


def test_a_mapping_of_one_s_own_wins_over_what_is_known(world, tmp_path):
    table = {"safe": world["unsafe_caption"], "nsfw": world["safe_caption"]}  # the other way round
    table |= {column: world[column] for column in ("safe_image", "unsafe_image")}
    Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    mapping = {"nsfw": "safe_caption", "safe": "unsafe_caption"}
    with pytest.raises(UserError, match="makes 'nsfw' of .* safe_caption, but its name says unsafe, not safe"):
        load_quadruplets(str(tmp_path / "train.parquet"), None, mapping)
    meant = {"hold_out": False, "sides_are_right": True}
    check(load_quadruplets(str(tmp_path / "train.parquet"), None, mapping, **meant)["train"], world)
    # What it does not name is taken as it is known.
    table = {"safe": world["safe_caption"], "nsfw": world["unsafe_caption"], "kind": ["mark"] * COUNT}
    table |= {column: world[column] for column in ("safe_image", "unsafe_image")}
    Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    rows = load_quadruplets(str(tmp_path / "train.parquet"), None, {"kind": "category"}, hold_out=False)["train"]
    check(rows, world)
    with pytest.raises(UserError, match="gives split 'train' of .* two columns 'safe_image'; rename the other one too"):
        load_quadruplets(str(tmp_path / "train.parquet"), None, {"unsafe_image": "safe_image"}, sides_are_right=True)
