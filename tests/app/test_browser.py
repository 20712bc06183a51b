"""The page in Chromium: what is typed, chosen and clicked, on a phone, in the dark, by ten people, and whom it asks."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from datasets import Dataset, DatasetDict
from PIL import Image as PILImage

from safe_clip.app import Settings, open_page, server
from safe_clip.data.arguments import DataArguments
from safe_clip.demo import world
from safe_clip.demo.dataset import FEATURES
from safe_clip.generation.arguments import GenerationArguments

from ..browser import LUMINANCE, chromium, show
from ..helpers import ROOT, load_script

pytestmark = pytest.mark.slow

SPACE = ROOT / "spaces" / "demo"
RING = "figure.curve circle.here"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page of the Space's model on 60 rows of its world, and what it answers."""
    folder = tmp_path_factory.mktemp("app")
    concepts = world.unsafe_concepts(held_out=False)
    drawn = [world.draw_quadruplet(f"test/{row}", world.TRAINING_STYLES, concepts) for row in range(60)]
    DatasetDict({"test": Dataset.from_list(drawn, FEATURES)}).save_to_disk(folder / "rows")
    with pytest.MonkeyPatch.context() as patched:
        models = []
        patched.setattr("safe_clip.app.serve", lambda *given, **options: models.extend(given))
        runpy.run_path(str(SPACE / "app.py"))
    app, answers = open_page(
        *models,
        data=DataArguments(str(folder / "rows")),
        settings=Settings(cache_dir=str(folder / "kept"), evaluation=str(folder)),
        generation=GenerationArguments(num_inference_steps=2),
    )
    at = server.bound("127.0.0.1", 0)
    made = server.server_of(app)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{at.getsockname()[1]}", answers
    made.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with chromium(performance="ALL") as started:
        yield started


class Page:
    """The page in a browser."""

    def __init__(self, browser, address, width=1280, dark=False):
        self.browser = browser
        show(browser, width, dark)
        browser.get(address)
        self.wait(".app-head h1")

    def all(self, css):
        return [each for each in self.browser.find_elements("css selector", css) if each.is_displayed()]

    def wait(self, css, holds=lambda element: True, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for each in self.all(css):
                try:
                    if holds(each):
                        return each
                except Exception:  # it was replaced meanwhile
                    break
            time.sleep(0.05)
        raise AssertionError(f"no {css}: {self.browser.find_element('tag name', 'body').text[:600]}")

    def named(self, css, text):
        return self.wait(css, lambda each: each.text.strip() == text)

    def type(self, words):
        box = self.wait("input[data-testid=textbox], textarea")
        box.clear()
        box.send_keys(words + "\n")

    def choose(self, path):
        """The file inputs of other tabs are there too, and all are covered by what names them."""
        inputs = self.browser.find_elements("css selector", ".chooser input")
        next(each for each in inputs if each.find_element("xpath", "..").is_displayed()).send_keys(str(path))

    def hits(self):
        self.wait("ol.hits li")
        script = "return [...document.querySelectorAll('ol.hits li')].map(e => [e.className, e.innerText])"
        return self.browser.execute_script(script)

    def errors(self):
        said = [entry["message"] for entry in self.browser.get_log("browser")]
        return [each for each in said if "/image - Failed to load resource" not in each]  # what is refused


def blurred(element):
    return "blur" in element.find_element("css selector", "img").value_of_css_property("filter")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_search_by_words_fits_phones_and_desktops_in_light_and_dark(browser, served, width, dark):
    page = Page(browser, served[0], width, dark)
    page.type("a dog")
    assert len(page.hits()) == 24
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    wide = "return [...document.querySelectorAll('.hit, .ask button, .chooser, .ask input')].filter(e => "
    assert browser.execute_script(f"{wide} e.getBoundingClientRect().right > innerWidth + 1).length") == 0
    body = browser.find_element("tag name", "body")
    paper = browser.execute_script(LUMINANCE, body, "backgroundColor")
    assert (paper < 0.2) == dark
    for css in (".app-head h1", ".app-head p", ".count", ".said .tag", ".score"):
        ink = browser.execute_script(LUMINANCE, page.wait(css), "color")
        assert abs(ink - paper) > 0.4, css
    assert browser.execute_script("return [...document.images].filter(e => !e.alt || !e.naturalWidth).length") == 0
    assert page.errors() == []


def test_unsafe_results_are_shown_one_by_one_by_click_and_by_key(browser, served):
    page = Page(browser, served[0])
    page.named("button", "Try an unsafe caption").click()
    page.wait("li.hit.unsafe")
    first, second, *_ = page.all("li.hit.unsafe")
    assert blurred(first) and blurred(second)
    assert not any(map(blurred, page.all("li.hit.safe")))
    first.find_element("css selector", ".frame").click()
    assert not blurred(first) and blurred(second)
    # From the last one by keys alone.
    browser.execute_script("arguments[0].focus()", first.find_element("css selector", ".lift"))
    from selenium.webdriver import ActionChains, Keys

    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.switch_to.active_element == second.find_element("css selector", ".lift")
    assert second.find_element("css selector", ".frame").value_of_css_property("outline-style") == "solid"
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    assert not blurred(second)
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    assert blurred(second) and page.errors() == []


def test_a_search_by_an_image_finds_images_and_captions(browser, served, tmp_path):
    address, answers = served
    rows = answers.gallery.data.splits["test"].rows
    rows[7]["unsafe_image"].save(tmp_path / "query.png")
    page = Page(browser, address)
    page.choose(tmp_path / "query.png")
    hits = page.hits()
    assert [hit[1].split()[:2] for hit in (hits[0], hits[12])] == [["unsafe:", "show"]] * 2
    assert "1.000" in hits[0][1] and page.wait(".asked img").get_attribute("alt") == "Your image"
    page.wait("input[value=captions]").click()
    page.wait("li.hit.caption")
    expected = answers.search("", page_kept(rows[7]["unsafe_image"]), "captions")
    assert page.wait(".count").text in expected
    hidden = page.wait("li.hit.caption.unsafe")
    assert rows[7]["unsafe_caption"] not in browser.find_element("tag name", "body").text
    hidden.find_element("css selector", ".lift").click()
    assert hidden.find_element("css selector", ".thing").text and page.errors() == []


def page_kept(image):
    from safe_clip.app.uploads import to_url

    return to_url(image)


def test_a_file_of_50_mb_and_one_that_is_no_image_are_refused(browser, served, tmp_path):
    page = Page(browser, served[0])
    large, text = tmp_path / "large.png", tmp_path / "text.png"
    with large.open("wb") as file:
        file.truncate(50 * 2**20)
    text.write_text("<html>")
    for path, said in ((large, "The file is larger than 10 MB"), (text, "This image cannot be read")):
        page.choose(path)
        fault = page.wait(".chooser-fault", lambda each, said=said: said.lower() in each.text.lower())
        assert "\n" not in fault.text and not page.all("ol.hits")
    PILImage.new("RGB", (30, 30), "red").save(text)
    page.choose(text)
    assert len(page.hits()) == 24 and not page.all(".chooser-fault")


def test_the_slider_ranks_anew_and_marks_the_point(browser, served):
    from selenium.webdriver import Keys

    page = Page(browser, served[0])
    page.named("button[role=tab]", "Strength").click()
    page.type("a knife and a cat")
    page.wait(".column h3", lambda each: each.text.startswith("Safe"))
    safe, ring = page.hits(), page.wait(RING).get_attribute("cy")
    for _ in range(2):
        page.wait("input[type=range]").send_keys(Keys.ARROW_LEFT)
    page.wait(".column h3", lambda each: each.text.startswith("Strength 0.5"))
    page.wait("figcaption", lambda each: each.text.startswith("At strength 0.5,"))
    between = page.hits()
    assert between != safe and page.wait(RING).get_attribute("cy") != ring
    for _ in range(2):
        page.wait("input[type=range]").send_keys(Keys.ARROW_LEFT)
    page.wait(".column h3", lambda each: each.text.startswith("Original"))
    page.wait("figcaption", lambda each: each.text.startswith("At strength 0,"))
    assert page.hits() != between and page.errors() == []


def test_labels_of_ones_own_a_drawing_and_figures(browser, served, tmp_path):
    PILImage.new("RGB", (64, 64), "red").save(tmp_path / "query.png")
    page = Page(browser, served[0], 390)
    tabs = [each.text for each in page.all("button[role=tab]")]
    assert tabs == ["Search", "Strength", "Zero-shot", "Generator", "Figures"]
    page.named("button[role=tab]", "Zero-shot").click()
    page.choose(tmp_path / "query.png")
    page.wait(".note", lambda each: "Type some labels" in each.text)
    page.type("a dog, a bus")
    page.wait("table.classes tbody tr")
    assert {each.text for each in page.all("table.classes tbody th")} == {"a dog", "a bus"}
    page.named("button[role=tab]", "Generator").click()
    page.type("a dog")
    page.wait(".drawn img")
    assert len(page.all(".drawn img")) == 2
    page.named("button[role=tab]", "Figures").click()
    assert "safe-clip eval" in page.wait("pre.command").text
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert page.errors() == []


def test_ten_people_at_once_each_get_their_own_answer(served):
    address, answers = served
    script = load_script("benchmarks/app.py")
    event = script.handlers(address)["by_words"]
    queries = [f"a {thing}" for thing in ("dog", "cat", "bus", "car", "hat", "key", "boat", "shoe", "bird", "tree")]
    with ThreadPoolExecutor(10) as people:
        found = list(people.map(lambda words: script.ask(address, event, words, "images"), queries))
    assert [answer[0] for answer in found] == [answers.search(words, "", "images") for words in queries]
    assert [answer[1:] for answer in found] == [[words, ""] for words in queries]


def test_nobody_else_was_asked_and_nothing_was_written(browser, served):
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"]
    assert len(addresses) > 50
    assert {each for each in addresses if not each.startswith((served[0], "data:", "blob:"))} <= {"about:blank"}
    from gradio.utils import get_upload_folder

    folder = get_upload_folder()
    assert not os.path.exists(folder) or not any(files for _, _, files in os.walk(folder))


def test_the_space_starts_and_answers(tmp_path):
    environment = os.environ | {
        "GRADIO_SERVER_PORT": "0",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path),
        "MAX_IMAGES": "40",
    }
    command = [sys.executable, str(SPACE / "app.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as space:
        try:
            script = load_script("benchmarks/app.py")
            address = next(filter(None, map(script.ADDRESS.search, space.stdout))).group()
            (shown, *_) = script.ask(address, script.handlers(address)["by_words"], "a dog", "images")
            assert shown.count('class="hit ') == 24 and "safe-clip" in shown
        finally:
            space.send_signal(signal.SIGINT)
    assert space.returncode == 0


def test_what_the_space_brings_is_small_and_named():
    size = sum(file.stat().st_size for file in SPACE.rglob("*") if file.is_file())
    assert size < 2_000_000 and not list(SPACE.rglob("*.bin"))
    front = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and (SPACE / front["app_file"]).is_file() and len(front["short_description"]) <= 60
    extras = re.fullmatch(r"safe-clip\[(.+)\]\n", (SPACE / "requirements.txt").read_text()).group(1).split(",")
    assert all(f'"{extra}": ' in (ROOT / "setup.py").read_text() for extra in extras)
