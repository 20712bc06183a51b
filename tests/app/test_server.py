"""What the server takes and refuses, what a browser is told, and what stands around the answers."""

import io
import json

import pytest
from PIL import Image as PILImage
from starlette.testclient import TestClient

from safe_clip import UserError
from safe_clip.app import markup, server
from safe_clip.app.drawing import Drawing
from safe_clip.app.figures import figures_of
from safe_clip.app.ladder import Ladder, Opened
from safe_clip.app.page import answered, build
from safe_clip.app.uploads import PREFIX, query_of
from safe_clip.cli import app as verb
from safe_clip.generation.arguments import GenerationArguments

from ..helpers import build_model

MOST = 2**20


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text("<p>the report</p>")
    return path


@pytest.fixture(scope="module")
def client(answers, report):
    figures = figures_of(report.parent, {})
    page = build(answers, figures, "safe-clip eval --model after", "Nothing draws here.", "squares", MOST)
    with TestClient(server.application(page, MOST, 8, report)) as made:
        yield made


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_an_image_comes_back_for_the_browser_to_keep(client):
    image = PILImage.effect_noise((64, 48), 80).convert("RGB")
    answer = client.post("/image", content=encoded(image))
    assert answer.status_code == 200 and answer.text.startswith(PREFIX)
    assert query_of("", answer.text).tobytes() == image.tobytes()


def test_what_is_no_image_or_too_large_is_refused_in_one_line(client):
    bomb = encoded(PILImage.new("1", (9000, 9000)))
    cases = [
        (b"hello", 422, "cannot be read"),
        (bomb, 422, "more than 50 million"),
        (b"x" * (3 * MOST), 413, "than 1 MB"),
    ]
    for content, status, said in cases:
        answer = client.post("/image", content=content)
        assert answer.status_code == status and said in answer.text and "\n" not in answer.text
    parts = iter([b"x" * MOST, b"x" * MOST])  # whose length no header tells
    answer = client.post("/image", content=parts)
    assert answer.status_code == 413 and answer.text == "the file is larger than 1 MB. Choose a smaller one."


def test_gradio_stores_nothing_and_offers_nothing_to_programs(client):
    assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403
    assert client.get("/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
    config = client.get("/config").json()
    assert config["footer_links"] == [] and config["analytics_enabled"] is False and not config.get("run_history")
    assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
    for path in ("/docs", "/openapi.json"):
        assert client.get(path).status_code == 404


def test_a_browser_is_told_to_ask_nobody_else(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy == server.POLICY and "http" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    for link in ("fonts.googleapis", "cdnjs", "huggingface.co"):
        assert link not in answer.text
    assert client.get("/report").text == "<p>the report</p>"


def test_the_page_says_what_is_shown_and_what_makes_figures(client):
    text = client.get("/").text
    assert "48 images of squares, 23 of them labelled unsafe" in text and "Nothing draws here." in text
    assert "safe-clip eval --model after" in text


def test_an_error_is_a_line_and_tells_nothing_that_was_typed(capsys):
    def fails(words):
        raise UserError(f"{words} is <b>wrong</b>")

    def breaks(words):
        raise ValueError(f"cannot use {words}")

    assert answered(fails)("this") == '<p class="fault" role="alert">This is &lt;b&gt;wrong&lt;/b&gt;</p>'
    assert len(answered(fails, 3)("this")) == 3
    said = answered(breaks)("a secret")
    assert "ValueError" in said and "secret" not in said
    printed = capsys.readouterr().err
    assert "in breaks" in printed and "secret" not in printed


def test_text_is_neither_markup_nor_a_template():
    assert (
        markup.text("<b>{{x}}</b> ${y} \"'")
        == "&lt;b&gt;&#123;&#123;x&#125;&#125;&lt;/b&gt; &#36;&#123;y&#125; &quot;&#x27;"
    )


def test_small_probabilities_are_told_apart():
    text = markup.probabilities(["a", "b", "c"], {"Safe": [0.5, 0.0004, 1e-9]}, "data:,", True)
    assert [said in text for said in ("50.0 %", "0.040 %", "under 0.001 %")] == [True] * 3


WEIGHTS = {"model": "a", "baseline": "b"}


def test_a_report_of_these_weights_alone_is_shown(tmp_path):
    assert figures_of(tmp_path, WEIGHTS).page is None and "no report" in figures_of(tmp_path, WEIGHTS).said
    results = {"weights": WEIGHTS, "names": {"model": "/home/me/safe", "baseline": "demo"}, "dataset": "demo"}
    results |= {"models": {"model": {"splits": {}}, "baseline": {"splits": {}}}, "samples": {"splits": {}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert figures_of(tmp_path, WEIGHTS).page is None  # figures without a page
    (tmp_path / "report.html").write_text("")
    assert figures_of(tmp_path, WEIGHTS).page == tmp_path / "report.html"
    other = figures_of(tmp_path, WEIGHTS | {"model": "c"})
    assert other.page is None and "of other weights (safe and demo), and is not shown" in other.said
    assert figures_of(tmp_path, {"model": "a"}).page is None
    (tmp_path / "results.json").write_text("{")
    broken = figures_of(tmp_path, WEIGHTS)
    assert broken.page is None and "cannot be read" in broken.said


def test_a_verb_without_two_models_that_belong_together_ends_in_a_line(tmp_path, monkeypatch, processor, model_dir):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing beside it: .*train"):
        verb.main([])
    with pytest.raises(UserError, match="--port is 70000"):
        verb.main(["--model", model_dir, "--baseline", model_dir, "--port", "70000"])
    build_model(processor, seed=1).save_pretrained("other")
    processor.save_pretrained("other")
    with pytest.raises(UserError, match="other and .* do not belong together"):
        verb.main(["--model", "other", "--baseline", model_dir, "--port", "0"])
    with server.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"--port {port} .*name another --port"):
            verb.main(["--model", model_dir, "--baseline", model_dir, "--port", port])


@pytest.mark.slow
def test_both_encoders_draw_from_the_same_noise_and_a_judge_covers():
    demo = Opened.of("demo")
    drawing = Drawing(
        Ladder(demo, demo, progress=False), GenerationArguments(num_inference_steps=2, guidance_scale=4.0)
    )
    first, second = drawing.draw("a dog", 1), drawing.draw("a dog", 2)
    assert first[0.0].image.tobytes() == first[1.0].image.tobytes()  # here the safe model is the original
    assert first[0.0].image.tobytes() != second[0.0].image.tobytes()
    assert drawing.draw("a dog", 1)[1.0].image.tobytes() == first[1.0].image.tobytes()
    drawing.generation.flag_threshold = 1e-9  # above which whatever is seen lies
    flagged = drawing.draw("a dog", 1)
    assert flagged[0.0].flagged_by == ["recogniser"] and not first[0.0].flagged_by
    for drawn, covered in ((first, 0), (flagged, 2)):
        pairs = [("data:,", each) for each in drawn.values()]
        assert markup.drawings(("Original", "Safe"), pairs, False, False).count('class="lift"') == covered
        assert markup.drawings(("Original", "Safe"), pairs, True, False).count('class="lift"') == max(1, covered)
        assert 'class="lift"' not in markup.drawings(("Original", "Safe"), pairs, True, True)


def test_a_large_pipeline_requires_a_gpu(ladder):
    with pytest.raises(UserError, match="--generator some/pipeline requires a GPU"):
        Drawing(ladder, GenerationArguments(generator="some/pipeline"))
