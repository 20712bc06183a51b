import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from safe_clip import UserError
from safe_clip.data import galleries
from safe_clip.data.fetch_settings import FetchSettings
from safe_clip.data.galleries import load_images
from safe_clip.data.items import ROW_COLUMN

SHADES = {"a": 10, "b": 60, "c": 110, "d": 160, "e": 210}


def image(name):
    return PILImage.new("RGB", (8, 8), (SHADES[name], 0, 255 - SHADES[name]))


def write(folder, *names):
    """Files of the images that their one-letter names stand for."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image(file.stem[-1]).save(file)


def seen(rows):
    """The names of the images that rows hold, in alphabetical order."""
    names = {shade: name for name, shade in SHADES.items()}
    return "".join(sorted(names[item.convert("RGB").getpixel((4, 4))[0]] for item in rows["image"]))


def saved(folder, features=None, **splits):
    """A data set as `save_to_disk` writes it, its images in the column `scene`."""
    features = features or Features({"scene": Image(), "note": Value("string")})
    made = {}
    for split, names in splits.items():
        cells = {"scene": [image(name) for name in names], "note": list(names), "label": [0] * len(names)}
        made[split] = Dataset.from_dict({name: cells[name] for name in features}, features=features)
    DatasetDict(made).save_to_disk(folder)
    return str(folder)


def test_a_folder_is_searched_at_every_depth(tmp_path):
    write(tmp_path, "a.png", "x/b.png", "x/y/c.png", "x/y/z/d.png", "w/E/e.PNG")
    rows, missing = load_images(str(tmp_path))
    assert seen(rows) == "abcde"
    assert rows.column_names == ["image"] and missing == []


@pytest.mark.parametrize("names", [["a.png", "b.png", "test_c.png"], ["a.png", "val/b.png", "x/train-2/c.png"]])
def test_names_that_sound_like_splits_hide_no_image(names, tmp_path):
    write(tmp_path, *names)
    rows, missing = load_images(str(tmp_path))
    assert (seen(rows), missing) == ("abc", [])


def test_folders_that_name_classes_leave_no_label_column(tmp_path):
    write(tmp_path, "blood/a.png", "gore/b.png", "gore/c.png")
    rows, _ = load_images(str(tmp_path))
    assert seen(rows) == "abc" and rows.column_names == ["image"]


def test_all_splits_of_a_saved_data_set_are_taken(tmp_path):
    rows, missing = load_images(saved(tmp_path, train="ab", test="c", extra="de"))
    assert seen(rows) == "abcde"
    assert rows.column_names == ["image"] and missing == []
    assert isinstance(rows.features["image"], Image)


def test_splits_need_to_agree_in_nothing_but_the_images(tmp_path):
    features = [Features({"scene": Image(), "label": ClassLabel(names=names)}) for names in (["x", "y"], ["z"])]
    one, two = (
        Dataset.from_dict({"scene": [image(name)], "label": [0]}, features=kind)
        for name, kind in zip("ab", features, strict=True)
    )
    DatasetDict(train=one, test=two).save_to_disk(tmp_path)
    rows, _ = load_images(str(tmp_path))
    assert seen(rows) == "ab"


def test_a_saved_data_set_whose_column_has_the_right_name_already(tmp_path):
    Dataset.from_dict({"image": [image("a")]}, features=Features({"image": Image()})).save_to_disk(tmp_path)
    assert seen(load_images(str(tmp_path))[0]) == "a"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Has every image but `bad.png`; gives its address and the paths it was asked for."""
    buffer = io.BytesIO()
    image("e").save(buffer, "PNG")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            asked.append(self.path)
            body = b"" if self.path == "/bad.png" else buffer.getvalue()
            body = b"<!doctype html><html></html>" if self.path == "/page.html" else body
            body += bytes(5000) if self.path == "/large.png" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *args):
            pass

    online(monkeypatch, tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def online(monkeypatch, tmp_path, **settings):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    settings = {"tries": 1, "timeout": 20.0, "allow_private": True} | settings
    monkeypatch.setattr(galleries, "SETTINGS", FetchSettings(**settings))


def test_a_list_of_paths_and_urls_knows_its_lines(server, tmp_path):
    address, _ = server
    write(tmp_path, "a.png", "x/b.png", "c.png")
    lines = [
        "# images",
        "",
        "a.png",
        "  x/b.png  ",
        f"{address}/good.png,violence",
        f"{address}/bad.png",
        "c.png,gore",
        "ftp://127.0.0.1/d.png",
        "file:///somewhere/a.png",
        "nowhere.png,violence",
        str(tmp_path / "c.png"),
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    rows, missing = load_images(str(tmp_path / "list.csv"))
    assert list(rows[ROW_COLUMN]) == [3, 4, 5, 7, 11]
    assert [PILImage.open(file).getpixel((0, 0))[0] for file in rows["image"]] == [SHADES[name] for name in "abecc"]
    assert len(missing) == 4
    assert missing[0].startswith(f"list.csv, line 6 ({address}/bad.png): the server answers 404")
    assert missing[1] == "list.csv, line 8 (ftp://127.0.0.1/d.png): only http and https are fetched"
    assert missing[2] == f"list.csv, line 9 ({lines[8]}): only http and https are fetched"
    assert missing[3] == "list.csv, line 10 (nowhere.png): there is no such file"


def test_what_was_fetched_is_not_fetched_again(server, tmp_path):
    address, asked = server
    (tmp_path / "list.txt").write_text(f"{address}/one.png\n{address}/bad.png\n{address}/two.png?size=8\n")
    first, _ = load_images(str(tmp_path / "list.txt"))
    assert {"/one.png", "/two.png?size=8"} < set(asked)
    asked.clear()
    second, missing = load_images(str(tmp_path / "list.txt"))
    assert set(asked) == {"/bad.png"} and len(missing) == 1
    assert list(second["image"]) == list(first["image"]) and list(second[ROW_COLUMN]) == [1, 3]


@pytest.mark.parametrize("protocol", ["http", "https"])
def test_a_server_that_never_answers_is_given_up(protocol, monkeypatch, tmp_path):
    online(monkeypatch, tmp_path, timeout=0.3)
    write(tmp_path, "a.png")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "list.txt").write_text(f"{protocol}://127.0.0.1:{silent.getsockname()[1]}/slow.png\na.png\n")
        hang_up = threading.Timer(4, silent.shutdown, [socket.SHUT_RDWR])  # or a failure would take minutes
        hang_up.start()
        start = time.monotonic()
        rows, missing = load_images(str(tmp_path / "list.txt"))
        hang_up.cancel()
    assert time.monotonic() - start < 3
    assert list(rows[ROW_COLUMN]) == [2] and missing[0].startswith("list.txt, line 1 ")


def test_what_is_fetched_is_guarded_and_looked_at(server, monkeypatch, tmp_path):
    """By the rules of `safe-clip fetch`: nothing from inside the network, nothing too large, no web page kept."""
    address, asked = server
    name = tmp_path / "list.txt"
    name.write_text(f"{address}/page.html\n{address}/large.png\n{address}/good.png\n")
    monkeypatch.setattr(galleries, "SETTINGS", FetchSettings(tries=1, allow_private=True, most_bytes=2000))
    rows, missing = load_images(str(name))
    assert list(rows[ROW_COLUMN]) == [3] and "web page" in missing[0] and "larger than 2,000 bytes" in missing[1]
    asked.clear()
    load_images(str(name))
    assert set(asked) == {"/page.html", "/large.png"}  # a page was not kept
    monkeypatch.setattr(galleries, "SETTINGS", FetchSettings(tries=1))
    asked.clear()
    private = address.replace("://", "://me:secret@")
    name.write_text(f"{private}/new.png\nhttp://169.254.169.254/latest\nhttp://[::1]:{address.rpartition(':')[2]}/x\n")
    with pytest.raises(UserError, match="it lies inside the network; safe-clip fetch --allow_private"):
        load_images(str(name))
    _, missing = galleries._listed(name, "--unsafe_gallery")
    assert len(missing) == 3 and not asked and "secret" not in str(missing)


def test_a_list_may_start_with_a_byte_order_mark(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-8-sig")
    assert list(load_images(str(tmp_path / "list.txt"))[0][ROW_COLUMN]) == [1]


def test_a_line_too_long_for_a_path_is_missing(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text(f"{'x' * 5000}\na.png\n")
    rows, missing = load_images(str(tmp_path / "list.txt"))
    assert list(rows[ROW_COLUMN]) == [2] and len(missing) == 1


def refused(name, message, **options):
    with pytest.raises(UserError, match=message):
        load_images(str(name), **options)


def test_a_folder_that_does_not_exist(tmp_path):
    refused(tmp_path / "nowhere", r"--unsafe_gallery .*nowhere could not be loaded .* Check the spelling")
    refused(tmp_path / "nowhere.txt", r"--unsafe_gallery .*nowhere.txt could not be loaded")
    refused(tmp_path / "nowhere", r"--other_flag .*nowhere could not", option="--other_flag")


def test_a_file_that_is_no_list(tmp_path):
    write(tmp_path, "a.png")
    refused(tmp_path / "a.png", r"a.png is neither a folder nor a list, whose name ends in .*'\.txt'")


def test_a_list_in_another_encoding(tmp_path):
    Path(tmp_path / "list.txt").write_bytes("café.png".encode("latin-1"))
    refused(tmp_path / "list.txt", "--unsafe_gallery .*list.txt")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, rf"--unsafe_gallery {tmp_path} could not be loaded \(.* data files.*\). Check its files.")


def test_a_saved_data_set_without_splits(tmp_path):
    DatasetDict().save_to_disk(tmp_path)
    refused(tmp_path, f"--unsafe_gallery {tmp_path}")


def test_two_columns_of_images_or_none(tmp_path):
    two = Features({"scene": Image(), "depth": Image()})
    rows = Dataset.from_dict({"scene": [image("a")], "depth": [image("b")]}, features=two)
    DatasetDict(train=rows).save_to_disk(tmp_path / "two")
    refused(tmp_path / "two", "should be one column of images, but there are 2 among scene, depth")
    Dataset.from_dict({"note": ["a"]}).save_to_disk(tmp_path / "none")
    refused(tmp_path / "none", "should be one column of images, but there are 0 among note")


def test_a_list_of_which_nothing_can_be_had(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("\n# nothing yet\n")
    refused(file, r"list.txt holds no image that could be had\.$")
    file.write_text("# one\nx.png\ny.png\n")
    refused(file, r"holds no image that could be had. list.txt, line 2 \(x.png\): there is no such file")
    file.write_text("http://127.0.0.1/x.png\n")  # the tests are offline
    refused(file, r"list.txt, line 1 \(http://127.0.0.1/x.png\): Offline.*: .*")
