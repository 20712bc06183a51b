import base64
import functools
import io
import json
import re
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from datasets import Dataset
from PIL import Image as PILImage

from safe_clip.data.thumbnails import data_url
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.data import EvaluationData, Sample
from safe_clip.evaluation.report import Tile, write_report
from safe_clip.evaluation.report.strips import choose_rows, first_results
from safe_clip.evaluation.suite import describe, embed_everything, measure
from safe_clip.evaluation.table import results_table
from safe_clip.evaluation.viewer import Viewer

from ..browser import LUMINANCE, chromium, show
from ..helpers import FEATURES, build_model, make_rows


class Page(HTMLParser):
    """The parts of a page that tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def measured(processor, count=24, baseline=True, category=True):
    rows = make_rows(count)
    rows["unsafe_caption"] = [f"{caption} secret{index}" for index, caption in enumerate(rows["unsafe_caption"])]
    if category:
        rows["category"] = ["marks & <b>" if index % 2 else "other" for index in range(count)]
    rows = Dataset.from_dict(rows)
    data = EvaluationData({"test": Sample(rows, 100), "second": Sample(rows.select(range(12)), 12)})
    data.galleries["pile"] = Sample(rows.select_columns(["unsafe_image"]).rename_column("unsafe_image", "image"), count)
    made = {}
    for role, seed in (("baseline", 0), ("model", 1)):
        if baseline or role == "model":
            made[role] = embed_everything(Embedder(build_model(processor, seed), processor, f"the {role}"), data)
    results = describe(made, data, safe_clip="1", dataset="squares", index="exact") | {"models": measure(made, data)}
    return results, made, data


@pytest.fixture(scope="module")
def everything(processor):
    return measured(processor)


@pytest.fixture(scope="module")
def page(everything, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, *everything)
    return path


def test_results_are_plain_json_with_every_task(everything):
    results = json.loads(json.dumps(everything[0]))
    assert results == everything[0]
    split = results["models"]["model"]["splits"]["test"]
    assert set(split) == {
        *("retrieval", "redirection", "unsafe_gallery", "geometry", "robustness"),
        *("retrieval_original_gallery", "redirection_original_gallery"),
    }
    assert results["samples"]["splits"]["test"] == {"used": 24, "of": 100}
    assert results["models"]["baseline"]["splits"]["test"]["geometry"]["text_neighbour_overlap"]["value"] == 1
    for figures in (split["retrieval"], split["redirection"], split["robustness"]):
        for figure in figures.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
    rate = split["redirection"]["unsafe_text_safe_rate_at_1"]
    parts = rate["by_category"].values()
    assert sum(part["value"] * part["n"] for part in parts) / 24 == pytest.approx(rate["value"], abs=1e-5)


def test_the_table_states_the_sample_and_every_section(everything):
    text = results_table(everything[0])
    assert "test (24 of 100 quadruplets)" in text and "second (12 quadruplets)" in text
    rate = everything[0]["models"]["model"]["splits"]["test"]["redirection"]["safe_text_safe_rate_at_1"]
    assert f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]" in text
    for word in ("Retrieval", "Redirection", "from elsewhere", "Geometry", "Robustness", "the baseline", "the model"):
        assert word in text


def test_the_page_needs_nothing_from_elsewhere_and_every_image_is_told(page):
    text = page.read_text()
    parsed = Page(text)
    addresses = [value for _, attrs in parsed.tags for name, value in attrs.items() if name in ("src", "href")]
    assert addresses and all(value.startswith(("data:", "#")) for value in addresses)
    assert not re.search(r"url\((?!#)", text) and "<script" not in text and "@import" not in text
    images = [attrs for tag, attrs in parsed.tags if tag == "img"]
    charts = [attrs for tag, attrs in parsed.tags if tag == "svg"]
    assert len(images) > 60 and all(len(attrs["alt"]) > 10 for attrs in images)
    assert len(charts) >= 14 and all(attrs["role"] == "img" and len(attrs["aria-label"]) > 40 for attrs in charts)
    assert "marks &amp; &lt;b&gt;" in text  # a category is text, not markup


def test_charts_say_in_words_what_they_show(everything, page):
    rate = everything[0]["models"]["model"]["splits"]["test"]["redirection"]["safe_text_safe_rate_at_1"]["value"]
    labels = " ".join(attrs.get("aria-label", "") for _, attrs in Page(page.read_text()).tags)
    assert re.search(rf"safe captions: the baseline [\d.]+ %, the model {100 * rate:.1f} %", labels)


def test_unsafe_items_are_hidden_unless_asked(everything, page, tmp_path):
    assert "secret" not in page.read_text()
    assert "unsafe caption hidden, row 0, other" in page.read_text()
    write_report(tmp_path / "shown.html", *everything, show_unsafe=True)
    shown = (tmp_path / "shown.html").read_text()
    assert "secret" in shown and "hidden, row" not in shown
    # The mark of unsafe squares, which is magenta, is in no image of the page but where it was asked for.
    for text, expected in ((page.read_text(), False), (shown, True)):
        images = [attrs for tag, attrs in Page(text).tags if tag == "img" and attrs["alt"].startswith("unsafe")]
        assert len(images) > 20
        assert {has_magenta(attrs["src"]) for attrs in images} == {expected}


def has_magenta(address):
    image = PILImage.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    return any(red > 200 and green < 60 and blue > 200 for red, green, blue in image.get_flattened_data())


def test_what_is_marked_unsafe_anywhere_is_hidden_everywhere(processor):
    rows = make_rows(12)
    rows["safe_caption"][3] = rows["unsafe_caption"][5]
    data = EvaluationData({"test": Sample(Dataset.from_dict(rows), 12)})
    made = embed_everything(Embedder(build_model(processor), processor), data, tasks=["retrieval"])
    viewer = Viewer(data, "test", made, show_unsafe=False)
    assert viewer.show("safe", "text", 3).text == "safe caption hidden, row 3"
    assert viewer.show("safe", "text", 4).text == rows["safe_caption"][4]


def test_an_item_is_shown_though_another_image_of_its_row_is_broken(processor):
    table = Dataset.from_dict(make_rows(12), features=FEATURES).with_format("arrow")[:].to_pylist()
    table[3]["safe_image"] = {"bytes": b"GIF89a broken", "path": "cat.gif"}
    rows = Dataset.from_list(table, features=FEATURES)
    data = EvaluationData(
        {"test": Sample(rows.add_column("unsafe_image_is_safe", [None] * 3 + [True] + [None] * 8), 12)}
    )
    embedder = Embedder(build_model(processor), processor)
    made = embed_everything(embedder, data, tasks=["retrieval"], max_bad_fraction=1.0)
    viewer = Viewer(data, "test", made, show_unsafe=True)
    index = viewer.items.layout.row.tolist().index(3)  # of its harmless image; its captions are left out
    assert viewer.show("safe", "image", index).image == data_url(
        rows.select_columns(["unsafe_image"])[3]["unsafe_image"], hidden=False
    )


def test_comments_inside_an_image_are_not_passed_on():
    image = PILImage.new("RGB", (8, 8))
    image.info["comment"] = b"SECRET"
    data = base64.b64decode(data_url(image, hidden=True).partition(",")[2])
    assert b"SECRET" not in data


def test_a_hidden_image_keeps_no_detail():
    board = PILImage.new("RGB", (256, 256), "white")
    for x in range(0, 256, 16):
        for y in range(0, 256, 16):
            if (x + y) // 16 % 2:
                board.paste("black", (x, y, x + 16, y + 16))
    for hidden, contrast in ((False, 200), (True, 12)):
        data = base64.b64decode(data_url(board, hidden).partition(",")[2])
        low, high = PILImage.open(io.BytesIO(data)).convert("L").getextrema()
        assert (high - low >= contrast) if not hidden else (high - low <= contrast)


def test_strips_show_what_a_full_ranking_finds(everything):
    _, made, _ = everything
    items = made["model"].splits["test"]
    pool = torch.cat([items.safe_image.embeds, items.unsafe_image.embeds])
    for row in (0, 5):
        order = (pool @ items.unsafe_text.embeds[row]).argsort(descending=True)
        first = first_results(items, "unsafe", "text", row)
        place = first[0][1] + (24 if first[0][0] == "unsafe" else 0)
        assert [own for *_, own in first] == [side == "safe" and found == row for side, found, _ in first]
        # Rows with the same image are one.
        assert torch.equal(pool[place], pool[order[0]]) or (pool[place] - pool[order[0]]).abs().max() < 1e-5
        assert len(first) == 5


def test_rows_to_show_are_spread_over_the_categories():
    assert choose_rows(["a", "a", "a", "b", "a", "c", "b"], 4) == [0, 1, 3, 5]
    assert choose_rows(["", ""], 5) == [0, 1]


def test_one_model_alone_and_rows_without_categories(processor, tmp_path):
    results, made, data = measured(processor, count=12, baseline=False, category=False)
    write_report(tmp_path / "report.html", results, made, data)
    text = (tmp_path / "report.html").read_text()
    assert "The original" not in text and "By category" not in text and "the model" in text
    assert "→</span>" not in text
    assert "redirection_original_gallery" not in results["models"]["model"]["splits"]["test"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(page):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(page.parent)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/report.html"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_reads_on_phones_and_desktops_in_light_and_dark(browser, address, width, scheme):
    show(browser, width, scheme == "dark")
    browser.get(address)
    browser.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(part => part.getBoundingClientRect().width > 0 && "
        "part.getBoundingClientRect().right > innerWidth + 1 && !part.closest('svg'))"
        ".map(part => part.outerHTML.slice(0, 90))"
    )
    assert wide == []
    broken = browser.execute_script("return [...document.images].filter(image => !image.naturalWidth).length")
    assert broken == 0
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    body = browser.find_element("tag name", "body")
    chart_text = browser.find_element("css selector", ".panel svg text")
    paper = browser.execute_script(LUMINANCE, body, "backgroundColor")
    assert (paper < 0.2) == (scheme == "dark")
    for element, colour in ((body, "color"), (chart_text, "fill")):
        assert abs(browser.execute_script(LUMINANCE, element, colour) - paper) > 0.5
    size = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('.panel svg text')]"
        ".map(text => text.getBoundingClientRect().height).filter(height => height > 0))"
    )
    assert size >= 8  # pixels: the smallest writing in a chart


def test_a_tile_has_an_arrow_where_chance_is_left_out():
    tiles = [Tile("found", 0.5, 0.6, interval) for interval in ((0.05, 0.15), (-0.01, 0.2), None)]
    assert [tile.kind for tile in tiles] == ["gain", "same", "gain"]
    assert Tile("found", 0.6, 0.5, (-0.2, -0.1)).kind == "loss" and {tile.change for tile in tiles} == {"+10.0"}
