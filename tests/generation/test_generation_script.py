"""`safe-clip generate text_to_image` and `image_to_text`, as a person starts them."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from ..programs import run_python

ROOT = Path(__file__).parents[2]
# Which a program that draws imports, for longer than it draws.
DIFFUSERS = ["diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "torchmetrics.image"]

pytestmark = pytest.mark.slow


def generate(task, *flags, cwd, processes=1):
    # Without Java, whose METEOR takes many seconds.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "PATH": ""}
    command = ("-m", "safe_clip", "generate", task, *flags)
    return run_python(*command, cwd=cwd, processes=processes, env=environment, modules=DIFFUSERS)


@pytest.fixture
def models(safe_dir, model_dir, dataset_dir) -> list:
    return ["--model", safe_dir, "--baseline", model_dir, "--dataset", dataset_dir, "--max_samples", 3]


def test_images_of_both_encoders_are_drawn_judged_and_shown(models, pipeline_dir, red_judge, tmp_path):
    flags = ["--generator", pipeline_dir, "--image_classifier", red_judge]
    flags += ["--num_inference_steps", 2, "--images_per_prompt", 2]
    done = generate("text_to_image", *models, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "evaluation" / "text_to_image.json").read_text())
    assert results["samples"] == {"test": {side: {"items": 3, "copies": 2} for side in ("unsafe", "safe")}}
    assert set(results["names"]) == {"baseline", "model"}
    for role in ("baseline", "model"):
        sides = results["models"][role]["splits"]["test"]
        assert set(sides["unsafe"]) == {"unsafe_out", "clip_score", "diversity"}
        moved = {"drift"} if role == "model" else set()
        assert set(sides["safe"]) == {"unsafe_out", "clip_score", "diversity", "fid", "kid"} | moved
        assert 0 <= sides["unsafe"]["unsafe_out"]["low"] <= sides["unsafe"]["unsafe_out"]["high"] <= 1
    assert results["models"]["baseline"] != results["models"]["model"]
    assert "test: images of 3 unsafe prompts, 2 of each" in done.stdout
    with Image.open(tmp_path / "evaluation" / "text_to_image.png") as grid:
        assert grid.width > 6 * 192 and grid.height > 2 * 192
    first = (tmp_path / "evaluation" / "text_to_image.json").read_bytes()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "evaluation" / "generated").rglob("*.*")}
    assert len(times) == 2 * (12 + 2)  # of each role, the images, their embeddings and their scores
    done = generate("text_to_image", *models, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "evaluation" / "text_to_image.json").read_bytes() == first
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "evaluation" / "generated").rglob("*.*")}


def test_captions_of_both_towers_are_written_judged_and_shown(models, llava_dir, word_judge, tmp_path, dataset_dir):
    flags = ["--generator", llava_dir, "--text_classifier", word_judge]
    done = generate("image_to_text", *models, *flags, "--max_new_tokens", 6, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "evaluation" / "image_to_text.json").read_text())
    for role in ("baseline", "model"):
        assert "unsafe_out" in results["models"][role]["splits"]["test"]["unsafe"]
    assert "test: captions of 3 unsafe images" in done.stdout
    with Image.open(tmp_path / "evaluation" / "image_to_text.png") as grid:
        assert grid.width > 6 * 192


def test_with_no_arguments_the_embedded_generators_are_measured_by_their_own_judges(tmp_path):
    few = ["--max_samples", 2, "--num_inference_steps", 1]
    for task, judge in (("text_to_image", "recogniser"), ("image_to_text", "mentions")):
        done = generate(task, *few, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "evaluation" / f"{task}.json").read_text())
        assert results["generator"] == results["dataset"] == "demo" and list(results["judges"]) == [judge]
        sides = results["models"]["model"]["splits"]["test"]
        assert all({"unsafe_out", "objects"} <= set(figures) for figures in sides.values())
        assert "by_category" in sides["unsafe"]["unsafe_out"] and "has what the safe caption names" in done.stdout


def test_a_list_of_prompts_and_a_model_alone(model_dir, dataset_dir, pipeline_dir, red_judge, tmp_path):
    (tmp_path / "list.txt").write_text("a red mark\na blue mark\na black mark\n")
    flags = ["--model", model_dir, "--dataset", dataset_dir, "--prompts", "list.txt", "--image_classifier", red_judge]
    flags += ["--generator", pipeline_dir, "--num_inference_steps", 1]
    done = generate("text_to_image", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "evaluation" / "text_to_image.json").read_text())
    assert results["samples"] == {"list": {"unsafe": {"items": 3, "copies": 1}}}
    assert results["dataset"] == "list.txt" and set(results["models"]) == {"model"}
    # There is no safe caption or image to compare with, and one image of each prompt.
    assert set(results["models"]["model"]["splits"]["list"]["unsafe"]) == {"unsafe_out"}
    assert "a red mark" not in done.stdout


def test_processes_share_the_images(models, pipeline_dir, red_judge, tmp_path):
    flags = ["--generator", pipeline_dir, "--image_classifier", red_judge]
    flags += [*models[:-1], 6, "--num_inference_steps", 1, "--images_per_prompt", 3]  # two chunks
    for processes, folder in ((1, "one"), (2, "two")):
        done = generate("text_to_image", *flags, "--output_dir", folder, cwd=tmp_path, processes=processes)
        assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / folder / "text_to_image.json").read_text()) for folder in ("one", "two")]
    for each in results:
        assert each["samples"]["test"]["safe"] == {"items": 6, "copies": 3}
    assert results[0]["models"] == results[1]["models"]
    made = [{file.name for file in (tmp_path / folder).rglob("*.*")} for folder in ("one", "two")]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("task", "flags", "code", "message"),
    [
        ("text", [], 2, "safe-clip generate text: there is no such task. text_to_image or image_to_text comes first"),
        ("text_to_images", [], 2, "there is no such task. Did you mean 'text_to_image'?"),
        ("text_to_image", ["--zero_shot", "x"], 2, "--zero_shot is no setting."),
        ("text_to_image", ["--unsafe_gallery", "x"], 1, "--unsafe_gallery holds images"),
        ("image_to_text", [], 1, "generation requires a --generator beside data or prompts of your own"),
        ("image_to_text", ["--generator", "nowhere"], 1, "image_to_text requires a judge of captions"),
        ("text_to_image", ["--generator", "nowhere"], 1, "the pipeline nowhere: it cannot be opened"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(task, flags, code, message, models, red_judge, tmp_path):
    judged = ["--image_classifier", red_judge] if "nowhere" in flags and task == "text_to_image" else []
    done = generate(task, *models, *flags, *judged, cwd=tmp_path)
    assert done.returncode == code and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_evaluation_names_the_command_that_generates_now(models, tmp_path):
    (tmp_path / "settings.yaml").write_text("tasks: [text_to_image]\n")
    for flags, message in (
        (["--tasks", "text_to_image"], "--tasks text_to_image is a command of its own now: safe-clip generate text_to"),
        (["settings.yaml"], "--tasks text_to_image is a command of its own now: safe-clip generate text_to_image"),
        (
            ["--images_per_prompt", 2],
            "--images_per_prompt is no setting of eval, but of safe-clip generate text_to_ima",
        ),
    ):
        words = [*flags, *models] if flags[0].endswith("yaml") else [*models, *flags]
        done = run_python("-m", "safe_clip", "eval", *words, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {message}"), done.stderr
    assert not (tmp_path / "evaluation").exists()
