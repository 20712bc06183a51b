"""Fetching images from a server that is slow, forgetful, lying or not there."""

import asyncio
import contextlib
import csv
import gzip
import io
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset
from PIL import Image

from safe_clip import UserError, load_quadruplets
from safe_clip.cli.fetch import main
from safe_clip.data.fetch_settings import FetchSettings
from safe_clip.data.fetching import fetch_all, fetched, without_secrets

LISTS = {"failed.csv", "safe_clip.json"}  # beside the images
QUICK = FetchSettings(tries=3, timeout=30.0, most_bytes=5000, allow_private=True, wait=0.01)


def encoded(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def server():
    """Answers by the path; `server.asked` counts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            kind = self.path.split("/")[1]
            if kind == "slow":
                time.sleep(2)
            if kind == "cut":
                self.connection.close()
                return
            status, body, headers = 200, encoded("red"), {}
            if kind == "busy":  # twice, then not any more
                status, headers = (503, {"Retry-After": "0"}) if asked[self.path] < 3 else (200, {})
            elif kind.isdigit():
                status = int(kind)
            elif kind == "page":
                body = b"<!doctype html><html></html>"
            elif kind == "jpeg":
                body = encoded("blue", "JPEG")
            elif kind == "ppm":
                body = encoded("green", "PPM")
            elif kind == "large":
                body = body + bytes(6000)
            elif kind == "packed":
                body, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
            elif kind == "bomb":
                body, headers = gzip.compress(bytes(3_000_000)), {"Content-Encoding": "gzip"}
            elif kind == "brotli":
                headers = {"Content-Encoding": "br"}
            elif kind == "drip":
                self.send_response(200)
                self.send_header("Content-Length", "4000")
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(60):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                return
            elif kind == "file":
                status, headers = 302, {"Location": "file:///etc/passwd"}
            elif kind == "moved":
                status, headers = 302, {"Location": "/png/1"}
            elif kind == "round":
                status, headers = 302, {"Location": self.path}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    asked = Counter()
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.url = asked, f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    found.shutdown()


def test_what_can_be_had_is_had_and_the_rest_has_a_reason(server, tmp_path):
    kinds = ["png", "jpeg", "ppm", "busy", "moved", "404", "500", "cut", "page", "large", "round"]
    jobs = {kind: f"{server.url}/{kind}/7" for kind in kinds} | {
        "ftp": "ftp://x/y.png",
        "nowhere": "http://127.0.0.1:9/x",
    }
    jobs |= {"dots": "http://a..b/x", "label": f"http://{'a' * 70}.com/x"}
    failed = asyncio.run(fetch_all(jobs, tmp_path, QUICK))
    assert {path.name for path in tmp_path.iterdir()} == {"png.png", "jpeg.jpg", "ppm.png", "busy.png", "moved.png"}
    assert Image.open(tmp_path / "ppm.png").convert("RGB").getpixel((0, 0)) == (0, 128, 0)
    assert failed["404"] == "the server answers 404" and server.asked["/404/7"] == 1
    assert failed["500"] == "the server answers 500, 3 times" and server.asked["/500/7"] == 3
    assert server.asked["/busy/7"] == 3
    assert "it is a web page, not an image" in failed["page"]
    assert failed["large"] == "it is larger than 5,000 bytes"
    assert failed["round"].startswith("TooManyRedirects")
    assert failed["ftp"] == "only http and https are fetched"
    assert failed["cut"].endswith(", 3 times") and failed["nowhere"].endswith(", 3 times")
    assert len(failed) == 10

    # Again: what is there is not asked for.
    server.asked.clear()
    asyncio.run(fetch_all({name: jobs[name] for name in ("png", "jpeg", "404")}, tmp_path, QUICK))
    assert set(server.asked) == {"/404/7"}


def test_a_server_that_does_not_answer_is_given_up(server, tmp_path):
    settings = replace(QUICK, tries=2, timeout=0.3)
    failed = asyncio.run(fetch_all({"x": f"{server.url}/slow/7"}, tmp_path, settings))
    assert failed == {"x": "no answer within 0.3 seconds, 2 times"}


def test_a_server_that_answers_for_ever_is_given_up(server, tmp_path):
    start = time.monotonic()
    failed = asyncio.run(fetch_all({"x": f"{server.url}/drip/7"}, tmp_path, replace(QUICK, tries=1, timeout=0.4)))
    assert failed == {"x": "no answer within 0.4 seconds, 1 times"} and time.monotonic() - start < 2


def test_what_is_sent_packed_is_bounded_as_it_unpacks(server, tmp_path):
    jobs = {kind: f"{server.url}/{kind}/7" for kind in ("packed", "bomb", "brotli", "file")}
    failed = asyncio.run(fetch_all(jobs, tmp_path, QUICK))
    assert [path.name for path in tmp_path.iterdir()] == ["packed.png"]
    assert failed["bomb"] == "it unpacks to more than 5,000 bytes"
    assert "packed in a way that was not asked for (br)" in failed["brotli"]
    assert "file" in failed and not any("passwd" in str(path) for path in tmp_path.iterdir())


def test_passwords_in_addresses_are_not_told(tmp_path):
    failed = asyncio.run(fetch_all({"x": "http://me:secret@a..b/x"}, tmp_path, QUICK))
    assert "secret" not in failed["x"]
    assert without_secrets("no http://me:secret@x.org/a?b=c@d") == "no http://x.org/a?b=c@d"


def test_long_names_are_cut_by_bytes_and_stay_apart(server, tmp_path):
    ids = ["日" * 100 + end for end in "ab"] + ["x" * 300]
    urls = [f"{server.url}/png/{n}" for n in range(3)]
    Dataset.from_dict({"image_id": ids, "url": urls}).to_json(tmp_path / "rows.jsonl")
    out = ["--output_dir", str(tmp_path / "out"), "--column", "url", "--allow_private"]
    main([str(tmp_path / "rows.jsonl"), *out])
    names = [path.name for path in (tmp_path / "out").glob("*.png")]
    assert len(names) == 3 and all(len(name.encode()) <= 255 for name in names)


def test_fetching_works_where_an_event_loop_runs(server, tmp_path):
    async def notebook() -> dict:
        return fetched([f"{server.url}/png/1"], tmp_path / "kept", QUICK)

    (found,) = asyncio.run(notebook()).values()
    assert Image.open(found).size == (8, 6)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "[fec0::1]"),
        *("[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]"),
    ],
)
def test_addresses_inside_the_network_are_left_alone(host, server, tmp_path):
    settings = FetchSettings(tries=2, timeout=30.0, wait=0.01)
    address = f"http://{host}:{server.server_port}/png/1"
    failed = asyncio.run(fetch_all({"x": address}, tmp_path, settings))
    assert "it lies inside the network; --allow_private fetches from there" in failed["x"]
    assert not server.asked and not list(tmp_path.iterdir())


def test_the_command_names_images_after_their_numbers_and_lists_what_is_missing(server, tmp_path, capsys):
    kinds = ["png", "jpeg", "png", "404", "png"]
    table = {
        "image_id": ["000139", "285", "../../evil", "9", None],
        "image_coco_url": [f"{server.url}/{kind}/{number}" for number, kind in enumerate(kinds)],
    }
    Dataset.from_dict(table).to_json(tmp_path / "rows.jsonl")
    out = tmp_path / "a" / "b" / "coco"
    command = [str(tmp_path / "rows.jsonl"), "--column", "image_coco_url", "--output_dir", str(out), "--allow_private"]
    main(command)
    assert {path.name for path in out.glob("[!.]*")} == {"139.png", "285.jpg", "evil.png", *LISTS}
    assert "3 of 5 images are in" in capsys.readouterr().out
    with open(out / "failed.csv", newline="") as file:
        assert sorted(list(csv.reader(file))[1:]) == [
            ["9", f"{server.url}/404/3", "the server answers 404"],
            ["train, row 4", "", "the row has no number"],
        ]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*Name a folder that can"):
        main([*command[:4], str(tmp_path / "file"), "--allow_private"])
    for wrong, message in (
        (["--column", "url"], "--column url: split 'train' of .* has no such column; it has image_id"),
        (["--id", "number"], "--id requires the column number, of which split 'train' of .* has none; it has image_id"),
    ):
        with pytest.raises(UserError, match=message):
            main([*command, *wrong])


def test_names_that_two_images_would_share_are_refused(tmp_path):
    out = ["--output_dir", str(tmp_path / "out"), "--column", "url"]
    table = {"url": ["http://x/1.png", "http://x/2.png"]}
    Dataset.from_dict(table | {"image_id": ["7", "007"]}).to_json(tmp_path / "same.jsonl")
    with pytest.raises(UserError, match="row 1: another address than this one goes by the number 7 too"):
        main([str(tmp_path / "same.jsonl"), *out])
    Dataset.from_dict(table | {"coco_id": [1, 2], "prompt_id": [2, 1]}).to_json(tmp_path / "two.jsonl")
    with pytest.raises(
        UserError, match="--id: name the column that images shall be named after, one of coco_id, prompt_id"
    ):
        main([str(tmp_path / "two.jsonl"), *out])


def test_addresses_name_images_where_nothing_else_does(server, tmp_path):
    Dataset.from_dict({"image_coco_url": [f"{server.url}/png/0013ea2087020901.jpg?x"]}).to_json(tmp_path / "rows.jsonl")
    out = ["--output_dir", str(tmp_path / "out"), "--column", "image_coco_url", "--allow_private"]
    main([str(tmp_path / "rows.jsonl"), *out])
    assert (tmp_path / "out" / "0013ea2087020901.png").exists()


def test_numbers_become_addresses_and_rows_that_are_refused_are_not_fetched(server, tmp_path, caplog):
    """As for ViSU-Text, which has the numbers of COCO's images alone."""
    table = {
        "safe": ["a dog", "a cat", "a child"],
        "nsfw": ["a knife", "a gun", "a child, nude"],
        "coco_id": [139, 285, 632],
        "prompt_id": [1, 2, 3],
    }
    Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    command = [str(tmp_path / "train.parquet"), "--column", "coco_id", "--output_dir", str(tmp_path / "coco")]
    main([*command, "--allow_private", "--address", server.url + "/png/{:012}.jpg"])
    assert {path.name for path in (tmp_path / "coco").glob("[!.]*")} == {"139.png", "285.png", *LISTS}
    assert sorted(server.asked) == ["/png/000000000139.jpg", "/png/000000000285.jpg"]
    assert "1 of 3 rows were refused" in caplog.text
    with pytest.raises(UserError, match=r"--address .*\{:x\[\} cannot hold '139'"):
        main([*command, "--address", "http://x/{:x[}"])


def test_another_address_is_another_image(server, tmp_path):
    table = {"coco_id": [1, 2], "safe_url": [f"{server.url}/png/{n}" for n in range(2)]}
    table["unsafe_url"] = [f" {server.url}/jpeg/{n}\n" for n in range(2)]
    Dataset.from_dict(table).to_csv(tmp_path / "rows.csv")
    out = tmp_path / "out"
    command = [str(tmp_path / "rows.csv"), "--output_dir", str(out), "--allow_private", "--column"]
    main([*command, "safe_url"])
    asked = server.asked.total()
    main([*command, "safe_url"])
    assert server.asked.total() == asked  # what is there is kept
    with pytest.raises(UserError, match=r"holds 2 images under the same names that are of other addresses, such as 1"):
        main([*command, "unsafe_url"])
    assert Image.open(out / "1.png").getpixel((0, 0)) == (255, 0, 0)
    main([*command, "unsafe_url", "--overwrite_output_dir"])
    assert (out / "1.jpg").exists() and not (out / "1.png").exists() and (out / "replaced" / "1.png").exists()
    Dataset.from_dict({"coco_id": [1, 2], "safe_caption": ["a dog"] * 2}).to_csv(tmp_path / "rows.csv")
    rows = load_quadruplets(str(tmp_path / "rows.csv"), hold_out=False, safe_images=str(out))["train"]
    assert rows["safe_image"][:] == [str(out / f"{n}.jpg") for n in (1, 2)]


def test_what_others_put_there_is_moved_away_or_left(server, tmp_path):
    Dataset.from_dict({"coco_id": [1, 2], "url": [f"{server.url}/png/{n}" for n in range(2)]}).to_csv(
        tmp_path / "r.csv"
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "2.png").write_bytes(encoded("blue"))
    command = [str(tmp_path / "r.csv"), "--output_dir", str(out), "--allow_private", "--column", "url"]
    with pytest.raises(UserError, match=r"holds 1 images under the same names that were not fetched by this program"):
        main(command)
    (out / "failed.csv").write_text("mine")
    with pytest.raises(UserError, match=r"holds what this package did not write: failed\.csv"):
        main(command)
    assert not server.asked
    main([*command, "--overwrite_output_dir"])
    assert (out / "replaced" / "failed.csv").read_text() == "mine"
    assert (out / "replaced" / "2.png").read_bytes() == encoded("blue") and (out / "2.png").read_bytes() == encoded(
        "red"
    )


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        *((("--at_once", value), "1 or more") for value in ("0", "-3")),
        *((("--tries", value), "1 or more") for value in ("0", "-1")),
        *((("--timeout", value), "above 0") for value in ("-1", "0", "nan")),
        (("--most_bytes", "-1"), "1 or more"),
    ],
)
def test_numbers_that_mean_nothing(flag, said, tmp_path):
    with pytest.raises(UserError, match=rf"^{flag[0]} is {flag[1]}\S*; it must be {said}"):
        main(["rows.csv", "--column", "url", "--output_dir", str(tmp_path), *flag])


def test_images_are_found_by_the_names_of_their_rows(server, tmp_path):
    ids = ["coco.1", "coco_1", "a b", "a+b", "dog.v2"]
    table = {"image_id": ids, "url": [f"{server.url}/png/{n}" for n in range(5)], "safe_caption": ["a dog"] * 5}
    (tmp_path / "data").mkdir()
    Dataset.from_dict(table).to_csv(tmp_path / "data" / "rows.csv", index=False)
    main([str(tmp_path / "data"), "--column", "url", "--output_dir", str(tmp_path / "data"), "--allow_private"])
    for streaming in (False, True):
        options = {"hold_out": False, "safe_images": str(tmp_path / "data"), "streaming": streaming}
        rows = list(load_quadruplets(str(tmp_path / "data"), **options)["train"])  # in which no list of ours is a table
        assert len({row["safe_image"] for row in rows}) == 5 and all(row["safe_image"] for row in rows)
