"""Data sets under whatever name, in whatever files, from here and from elsewhere."""

import bz2
import gzip
import io
import json
import lzma
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import datasets
import huggingface_hub.constants
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from safe_clip import UserError, load_quadruplets
from safe_clip.data import damage
from safe_clip.data.arguments import DataArguments
from safe_clip.data.confinement import confined
from safe_clip.data.own_folders import load_files
from safe_clip.data.places import _braces, find_place
from safe_clip.data.rows import QuadrupletRows
from safe_clip.data.sources import load_splits
from safe_clip.data.streams import QuadrupletStream

COUNT = 12
TABLE = [{"safe_caption": f"a dog {n}", "unsafe_caption": f"a gun {n}"} for n in range(COUNT)]
CSV = "safe_caption,unsafe_caption\n" + "".join(f"{r['safe_caption']},{r['unsafe_caption']}\n" for r in TABLE)
LINES = "".join(json.dumps(row) + "\n" for row in TABLE)


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def shard(count: int = COUNT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(count):
            cells = {"safe_caption": b"a dog", "unsafe_caption": b"a gun", "safe_image.png": png() + b"x" * 600}
            for name, content in cells.items():
                entry = tarfile.TarInfo(f"{number:05}.{name}" + ".txt" * ("caption" in name))
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(name: str, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def loaded(name: object, **options) -> list[dict]:
    return list(load_splits(str(name), **options)["train"])


@pytest.mark.parametrize(
    "folder", ["run [1]", "a*b?", "{x,y}", "a b#1%20", "x::y", "日本", "train", "[", "test-[0-9]", "~", "$HOME"]
)
def test_what_exists_is_meant_as_it_is(folder, tmp_path, monkeypatch):
    place = tmp_path / folder
    place.mkdir()
    (place / "rows.csv").write_text(CSV)
    (place / "other [2].jsonl").write_text(LINES)
    assert loaded(place / "rows.csv") == loaded(place / "other [2].jsonl") == TABLE
    assert loaded(place / "rows.csv", streaming=True) == TABLE
    (place / "other [2].jsonl").unlink()
    splits = load_splits(f"{place}/")
    assert [row for rows in splits.values() for row in rows] == TABLE
    if "::" not in folder:  # where `datasets` does not save
        Dataset.from_list(TABLE).save_to_disk(place / "saved")
        assert loaded(place / "saved") == TABLE
    monkeypatch.chdir(tmp_path)
    assert loaded(f"{folder}/rows.csv") == TABLE


def test_home_links_and_addresses_of_files(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text(CSV)
    (tmp_path / "link.csv").symlink_to(tmp_path / "rows.csv")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    for name in ("~/rows.csv", "$DATA/rows.csv", tmp_path / "link.csv", (tmp_path / "rows.csv").as_uri()):
        assert loaded(name) == TABLE
    assert find_place("https://huggingface.co/datasets/you/quadruplets").name == "you/quadruplets"


PACKED = {
    "rows.CSV": CSV.encode(),
    "rows.tsv": CSV.replace(",", "\t").encode(),
    "semicolons.csv": CSV.replace(",", ";").encode(),
    "tabs.csv": CSV.replace(",", "\t").encode(),
    "marked.csv": b"\xef\xbb\xbf" + CSV.replace(",", ";").encode(),
    "rows.ndjson": LINES.encode(),
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "rows.jsonl.bz2": bz2.compress(LINES.encode()),
    "rows.json.xz": lzma.compress(LINES.encode()),
    "rows.csv.gz": gzip.compress(CSV.replace(",", ";").encode()),
    "rows.csv.zip": zipped("rows.csv", CSV),
    "archive.zip": zipped("in/rows.csv", CSV),
}


@pytest.mark.parametrize("name", PACKED)
def test_files_of_every_kind_and_packing(name, tmp_path):
    (tmp_path / name).write_bytes(PACKED[name])
    assert loaded(tmp_path / name) == TABLE


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz"])
@pytest.mark.parametrize("streaming", [False, True])
def test_shards(name, streaming, tmp_path):
    (tmp_path / name).write_bytes(shard() if name == "s.tar" else gzip.compress(shard()))
    assert len(loaded(tmp_path / name, streaming=streaming)) == COUNT


def test_patterns(tmp_path):
    (tmp_path / "s [1]").mkdir()
    for number in range(3):
        (tmp_path / f"{number:05}.tar").write_bytes(shard(2))
        Dataset.from_list(TABLE[4 * number : 4 * number + 4]).to_parquet(tmp_path / f"part-{number}.parquet")
        (tmp_path / "s [1]" / f"{number}.csv").write_text(CSV)
    assert len(loaded(f"{tmp_path}/{{00000..00001}}.tar")) == 4
    assert len(loaded(f"{tmp_path}/*.tar")) == 6
    assert loaded(f"{tmp_path}/*.parquet") == TABLE == loaded(f"{tmp_path}/part-{{0,1,2}}.parquet")
    assert len(loaded(f"{tmp_path}/s*/[01].csv")) == 2 * COUNT
    assert find_place(f"{tmp_path}/**/*.csv").home == tmp_path / "s [1]"
    assert len(loaded(f"{tmp_path}/s [1]/{{0..1}}.csv")) == 2 * COUNT  # whose folder is meant as it is
    with pytest.raises(UserError, match=r"nothing-\*\.csv fits no file of this machine"):
        load_splits(f"{tmp_path}/nothing-*.csv")
    with pytest.raises(UserError, match=r"fits files of several kinds \(3 \.parquet, 3 \.tar\)"):
        load_splits(f"{tmp_path}/*")


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("{00008..00010}", ["00008", "00009", "00010"]),
        ("{8..10}.{a,b}", ["8.a", "8.b", "9.a", "9.b", "10.a", "10.b"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern, files):
    assert list(_braces(pattern)) == files


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.xlsx", "It is a spreadsheet; save it as CSV"),
        ("rows.pkl", "It is a pickle, which could run code when it is read; save it as Parquet"),
        ("rows.npz", "It is an archive of arrays"),
        ("rows.txt", "It is a text without columns"),
        ("images.zip", "It is an archive; unpack it and name the folder"),
        ("rows", "is a file of no known kind"),
    ],
)
def test_files_that_are_not_read(name, said, tmp_path):
    (tmp_path / name).write_bytes(zipped("a.png", "") if name.endswith("zip") else b"x")
    with pytest.raises(UserError, match=said):
        load_splits(str(tmp_path / name))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(UserError, match="neither a file nor a folder, but a device, pipe or socket"):
        load_splits(str(tmp_path / "rows.csv"))
    with pytest.raises(UserError, match="there is no such file or folder"):
        load_splits(str(tmp_path / "nowhere.csv"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="could not be loaded \\(it holds no rows\\)"):
        load_splits(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="is an address; download the file and name it"):
        load_splits("https://example.com/rows.csv")


def test_a_table_beside_a_folder_of_images(tmp_path):
    (tmp_path / "pics" / "deep").mkdir(parents=True)
    for number in range(COUNT):
        (tmp_path / "pics" / "deep" / f"{number}.png").write_bytes(png())
    table = CSV.splitlines()
    cells = ["safe_image", *(rf"pics\deep\{n}.png" if n % 2 else f"pics/deep/{n}.png" for n in range(COUNT))]
    (tmp_path / "rows.csv").write_text("\n".join(f"{line},{cell}" for line, cell in zip(table, cells, strict=True)))
    for name in (tmp_path, tmp_path / "rows.csv"):
        rows = QuadrupletRows(load_quadruplets(str(name), hold_out=False)["train"])
        assert len(rows) == COUNT and all(rows[n]["safe_image"].size == (16, 16) for n in range(COUNT))
    (tmp_path / "settings.json").write_text("{}")
    assert len(loaded(tmp_path)) == COUNT
    (tmp_path / "more.csv").write_text(CSV)
    with pytest.raises(UserError, match=r"holds 2 tables beside its images: more\.csv, rows\.csv"):
        load_splits(str(tmp_path))
    (tmp_path / "more.csv").rename(tmp_path / "test.csv")
    (tmp_path / "rows.csv").rename(tmp_path / "train.csv")
    (tmp_path / "test.csv").write_text((tmp_path / "train.csv").read_text())
    assert {split: len(rows) for split, rows in load_splits(str(tmp_path)).items()} == {"train": COUNT, "test": COUNT}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_each_of_several_tables_names_images_from_its_own_folder(kind, streaming, tmp_path, monkeypatch):
    place = tmp_path / "my rows [1]"
    colours = {"train": (255, 0, 0), "val": (0, 0, 255)}
    for folder, colour in colours.items():
        (place / folder / "images").mkdir(parents=True)
        PILImage.new("RGB", (4, 4), colour).save(place / folder / "images" / "1.png")
        # The first row has no image; a file of another folder may be named from the one that all lie in.
        cells = [None, "images/1.png", "train/images/1.png"]
        table = pd.DataFrame({"safe_image": cells, "unsafe_caption": ["a gun", "a knife", "a dagger"]})
        {
            "csv": lambda to, table=table: table.to_csv(to, index=False),
            "jsonl": lambda to, table=table: table.to_json(to, orient="records", lines=True),
            "parquet": lambda to, table=table: table.to_parquet(to),
        }[kind](place / folder / f"rows.{kind}")

    def shown(rows) -> list:
        cells = [row["safe_image"] for row in rows]
        return [cell and PILImage.open(cell).getpixel((0, 0)) for cell in cells]

    monkeypatch.chdir(tmp_path)
    for name in (place, place.name, f"./{place.name}"):  # from where a person stands, too
        found = load_quadruplets(str(name), hold_out=False, streaming=streaming)
        assert set(found) == {"train", "validation"}
        for split, colour in (("train", colours["train"]), ("validation", colours["val"])):
            assert shown(found[split]) == [None, colour, colours["train"]]
        found = load_quadruplets(f"{name}/*/rows.{kind}", hold_out=False, streaming=streaming)
        assert shown(found["train"]) == [None, *[colours["train"]] * 2, None, colours["val"], colours["train"]]


def test_each_table_may_name_another_side_s_images(tmp_path):
    for folder, column in (("a", "safe_image"), ("b", "unsafe_image")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(png())
        row = {"safe_image": None, "unsafe_image": None, "safe_caption": "a dog"} | {column: "1.png"}
        pd.DataFrame([row]).to_csv(tmp_path / folder / "rows.csv", index=False)
    rows = load_quadruplets(f"{tmp_path}/*/rows.csv", hold_out=False)["train"]
    assert rows["safe_image"][:] == [str(tmp_path / "a" / "1.png"), None]
    assert rows["unsafe_image"][:] == [None, str(tmp_path / "b" / "1.png")]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_tables_of_several_folders_are_not_decoded_to_find_paths(streaming, tmp_path):
    features = Features({"safe_caption": Value("string"), "safe_image": Image()})
    for folder in ("a", "b"):
        cells = [{"bytes": b"no image", "path": None}] * 2
        rows = Dataset.from_dict({"safe_caption": ["a", "b"], "safe_image": cells}, features=features)
        (tmp_path / folder).mkdir()
        rows.to_parquet(tmp_path / folder / "rows.parquet")
    assert set(load_splits(f"{tmp_path}/*/rows.parquet", streaming=False)) == {"train"}
    kind = find_place(f"{tmp_path}/*/rows.parquet")
    assert set(load_files(kind.name, kind.files, kind.folders, streaming=streaming)) == {"train"}


def test_metadata_beside_images_stay_what_they_are(tmp_path):
    (tmp_path / "0.png").write_bytes(png())
    (tmp_path / "metadata.csv").write_text("safe_image_file_name,safe_caption\n0.png,a dog\n")
    (row,) = loaded(tmp_path)
    assert row["safe_image"].size == (16, 16) and row["safe_caption"] == "a dog"


CUT = {
    "cut.tar": (shard()[:9000], "cut off, since a tar ends in zeros, and rows may be missing"),
    "between.tar": (shard(3)[: 2 * 7 * 512], "cut off, since a tar ends in zeros"),
    "cut.tar.gz": (gzip.compress(shard())[:-30], "is cut off or damaged"),
    "of-a-cut.tgz": (gzip.compress(shard()[:9000]), "cut off, since a tar ends in zeros"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode())[:-12], "is cut off or damaged"),
    "cut.csv.xz": (lzma.compress(CSV.encode())[:-12], "is cut off or damaged"),
    "cut.csv.zip": (zipped("rows.csv", CSV)[:-12], "is cut off or damaged"),
    "cut.jsonl": (LINES[:-20].encode(), "JSON parse error"),
    "open.csv": (f'{CSV}"a dog,a gun\n'.encode(), "line 14: a quotation mark is opened and never closed"),
}


@pytest.mark.parametrize("name", CUT)
def test_what_was_cut_off_is_named(name, tmp_path):
    content, said = CUT[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_splits(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=said):
        load_splits(str(tmp_path / name), streaming=True)


def test_the_file_of_several_that_is_broken_is_named(tmp_path):
    (tmp_path / "0.jsonl").write_text(LINES)
    (tmp_path / "1.jsonl").write_text(LINES[:-20])
    stream = load_quadruplets(f"{tmp_path}/*.jsonl", hold_out=False, streaming=True)["train"]
    with pytest.raises(UserError, match="the stream cannot be read on: a file of it is broken .*JSON parse error"):
        list(QuadrupletStream(stream, shuffle_buffer=0))
    with pytest.raises(UserError, match=r"\*\.jsonl, file 1\.jsonl, could not be loaded"):
        load_splits(f"{tmp_path}/*.jsonl")
    for number in range(2):
        Dataset.from_list(TABLE).to_parquet(tmp_path / f"{number}.parquet")
    (tmp_path / "1.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-50])
    with pytest.raises(UserError, match=r"1\.parquet could not be loaded: it is cut off"):
        load_splits(f"{tmp_path}/*.parquet")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_whole_of_a_shard_is_taken_where_a_person_says_so(packed, streaming, tmp_path, caplog):
    whole, cut = shard(), shard()[: 13 * 1024 + 700]
    (tmp_path / "0.tar").write_bytes(whole)
    (tmp_path / ("1.tar.gz" if packed else "1.tar")).write_bytes(gzip.compress(cut)[:-12] if packed else cut)
    arguments = DataArguments(f"{tmp_path}/*", on_bad_row="skip", streaming=streaming)
    arguments.column_mapping = {f"{side}_caption.txt": f"{side}_caption" for side in ("safe", "unsafe")}
    arguments.column_mapping["safe_image.png"] = "safe_image"
    rows = list(arguments.load(hold_out=False)["train"])
    assert COUNT < len(rows) < 2 * COUNT
    assert "is cut off" in caplog.text and "files that are whole are read" in caplog.text
    with pytest.raises(UserError, match="or take what there is with --on_bad_row skip"):
        load_splits(f"{tmp_path}/*", streaming=streaming)


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.tar.gz", "bomb.csv.zip"])
def test_what_unpacks_to_too_much_is_refused(name, tmp_path, monkeypatch):
    content = zipped("rows.csv", CSV + "a" * 3_000_000) if "zip" in name else gzip.compress(bytes(3_000_000))
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(damage, "ALWAYS_FINE", 1_000_000)
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(UserError, match="unpack"):
        load_splits(str(tmp_path / name))


def test_nothing_is_written_into_a_saved_folder(tmp_path, monkeypatch):
    place = tmp_path / "saved"
    DatasetDict(train=Dataset.from_list(TABLE), test=Dataset.from_list(TABLE)).save_to_disk(place)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in place.rglob("*"))
    opened = os.open
    for path in [*place.rglob("*"), place]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    monkeypatch.setattr(os, "open", opened)
    rows = load_splits(str(place))["train"]
    changed = (
        rows.map(lambda row: {"more": row["safe_caption"] + "!"}).filter(lambda row: "1" in row["more"]).shuffle(0)
    )
    assert len(changed) == 3
    assert sorted((str(path), path.stat().st_mtime_ns) for path in place.rglob("*")) == before
    kept = Path(datasets.config.HF_DATASETS_CACHE)
    assert all(Path(file["filename"]).is_relative_to(kept) for file in [*rows.cache_files, *changed.cache_files])


# ---- From elsewhere ----


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """What was downloaded of you/rows, as the Hub's cache has it, and a file of somebody's own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--you--rows"
    folder = repository / "snapshots" / "abc"
    (folder / "pics").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_bytes(png())
    (folder / "pics" / "0.png").symlink_to("../../../blobs/1")
    (tmp_path / "own.png").write_bytes(png("blue"))
    (folder / "pics" / "out.png").symlink_to(tmp_path / "own.png")
    return folder


def refused_paths(tmp_path: Path) -> list[str]:
    own = tmp_path / "own.png"
    return [
        *(str(own), own.as_uri(), f"../../../../{own.name}", "pics/out.png", f"zip://a.png::{tmp_path}/a.zip"),
        *("zip://x::http://127.0.0.1/a.zip", f"simplecache::{own.as_uri()}", "/dev/zero", "pics", "nowhere.png"),
    ]


def stored(cells: list[dict]) -> Dataset:
    """Cells as a file has them, which `datasets` would change in taking them."""
    features = Features({"safe_image": {"bytes": Value("binary"), "path": Value("string")}})
    return Dataset.from_dict({"safe_image": cells}, features=features).cast_column("safe_image", Image())


def elsewhere(rows: Dataset, name: str = "you/rows") -> Dataset:
    return confined(DatasetDict(train=rows), name)["train"]


@pytest.mark.parametrize("stream", [False, True])
def test_cells_with_paths_from_elsewhere_open_what_was_downloaded_alone(stream, snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["pics/0.png", *refused_paths(tmp_path)]
    cells = [{"bytes": png("green"), "path": str(tmp_path / "own.png")}, *({"bytes": None, "path": p} for p in paths)]
    rows = stored(cells)
    rows = rows.to_iterable_dataset() if stream else rows
    opened = list(elsewhere(rows).cast_column("safe_image", Image(decode=False)))
    images = QuadrupletRows(opened)
    assert images[0]["safe_image"].getpixel((0, 0)) == (0, 128, 0)
    assert images[1]["safe_image"].getpixel((0, 0)) == (255, 0, 0)
    for row in range(2, len(cells)):
        with pytest.raises(UserError, match="which is not opened; download the data set"):
            images[row]


@pytest.mark.parametrize("stream", [False, True])
def test_texts_that_name_images_likewise(stream, snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snapshot / "rows.parquet").touch()
    cells = ["pics/0.png", *refused_paths(tmp_path)]
    rows = Dataset.from_dict({"safe_image": cells})
    rows = DatasetDict(train=rows.to_iterable_dataset() if stream else rows)
    monkeypatch.setattr("safe_clip.data.quadruplets.load_splits", lambda *_, **__: rows)
    images = QuadrupletRows(list(load_quadruplets("you/rows", hold_out=False, streaming=stream)["train"]))
    assert images[0]["safe_image"].getpixel((0, 0)) == (255, 0, 0)
    for row in range(1, len(cells)):
        with pytest.raises(UserError, match="which is not opened"):
            images[row]


def test_images_that_hold_their_bytes_are_not_touched(snapshot):
    rows = stored([{"bytes": png(), "path": "0.png"}])
    assert elsewhere(rows) is rows
    (cell,) = elsewhere(stored([{"bytes": png(), "path": "/etc/passwd"}])).cast_column(
        "safe_image", Image(decode=False)
    )
    assert cell["safe_image"] == {"bytes": png(), "path": None}


def test_large_texts_and_binaries_of_parquet(tmp_path):
    schema = pa.schema([("safe_caption", pa.large_string()), ("safe_image", pa.large_binary())])
    pq.write_table(pa.table({"safe_caption": ["a dog"], "safe_image": [png()]}, schema=schema), tmp_path / "r.parquet")
    rows = QuadrupletRows(load_quadruplets(str(tmp_path / "r.parquet"), hold_out=False)["train"])
    assert rows[0]["safe_caption"] == "a dog" and rows[0]["safe_image"].size == (16, 16)


def test_names_that_are_not_utf8_in_a_folder_of_images(tmp_path):
    (tmp_path / "pics").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "pics") + b"/\xff_1.png")).write_bytes(png())
    (tmp_path / "pics" / "2.png").write_bytes(png())
    (tmp_path / "rows.csv").write_text("coco_id,safe_caption\n1,a dog\n2,a cat\n")
    found = load_quadruplets(str(tmp_path / "rows.csv"), hold_out=False, safe_images=str(tmp_path / "pics"))["train"]
    assert found.features["safe_image"] == Value("string")
    rows = QuadrupletRows(found)
    assert all(rows[row]["safe_image"].size == (16, 16) for row in range(2))
