import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from safe_clip import UserError, evaluate_quadruplets, load_clip, load_processor, load_quadruplets
from safe_clip.cli import eval as script
from safe_clip.cli.compared import for_frozen_galleries
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.robustness import embed_variants, robustness
from safe_clip.evaluation.summary import embed_rows, summary_figures
from safe_clip.evaluation.transforms import load_synonyms
from safe_clip.evaluation.verdict import result_figures

from ..helpers import FEATURES, build_model, make_rows
from ..programs import run_python

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


# Several chunks of few rows.
IN_SMALL_CHUNKS = """
import sys
from safe_clip.cli import eval
from safe_clip.errors import run
from safe_clip.embedding import embedder

embedder.CHUNK = 16
run(eval.main, sys.argv[1:])
"""


def run_eval(*flags, cwd, processes=1, script=(ROOT / "eval.py",)):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return run_python(*script, *flags, cwd=cwd, env=env, processes=processes)


def start_eval(*flags, cwd, script):
    """As a person starts it: with another hash seed, and all that Python and torch read at their start."""
    command = [sys.executable, *script, *map(str, flags)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def other_model_dir(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moved-clip")
    build_model(processor, seed=1).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_one_process_and_two_give_the_same_results_to_the_last_digit(
    model_dir, other_model_dir, tmp_path_factory, tmp_path
):
    # Several chunks, so that both processes have work; broken images, so that both know of them.
    table = Dataset.from_dict(make_rows(40), features=FEATURES).with_format("arrow")[:].to_pylist()
    table[36]["unsafe_image"] = {"bytes": b"GIF89a broken", "path": "cat.gif"}
    DatasetDict(test=Dataset.from_list(table, features=FEATURES)).save_to_disk(tmp_path / "data")
    flags = [
        "--model",
        other_model_dir,
        "--baseline",
        model_dir,
        "--dataset",
        tmp_path / "data",
        "--on_bad_row",
        "skip",
    ]
    flags += ["--tasks", "retrieval", "redirection", "geometry", "robustness"]
    script = "-c", IN_SMALL_CHUNKS
    one = start_eval(*flags, "--output_dir", "one", "--cache_dir", "cache1", cwd=tmp_path, script=script)
    assert one.returncode == 0, one.stderr
    two = run_eval(*flags, "--output_dir", "two", "--cache_dir", "cache2", cwd=tmp_path, processes=2, script=script)
    assert two.returncode == 0, two.stderr
    assert "Shared among 2 processes." in two.stdout and "Shared" not in one.stdout
    assert (tmp_path / "two" / "results.json").read_bytes() == (tmp_path / "one" / "results.json").read_bytes()
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["samples"]["splits"]["test"] == {"used": 39, "of": 40}
    assert results["unreadable"] == {"test": ["row 36, column 'unsafe_image'"]}
    assert "row 36, column 'unsafe_image': the image cannot be read (Unidentified" in one.stdout
    assert two.stdout.count("Retrieval: finds the right item first") == 1
    made = [
        {file.relative_to(tmp_path / cache) for file in (tmp_path / cache).rglob("*.*")}
        for cache in ("cache1", "cache2")
    ]
    assert made[0] == made[1] != set()


def test_with_no_arguments_it_measures_the_embedded_base_and_then_the_trained_model(tmp_path):
    few = ["--max_samples", 40, "--tasks", "redirection", "zero_shot", "unsafe_gallery"]
    done = run_eval(*few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "Measuring demo on demo."
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert results["names"] == {"model": "demo"}
    assert results["samples"]["splits"]["test"] == {"used": 40, "of": 1000}
    assert results["samples"]["zero_shot"]["objects (noto)"] == {"used": 40, "of": 1088, "classes": 544}
    assert set(results["models"]["model"]["splits"]) == {"test", "held_out_concepts", "held_out_style"}
    assert "test (40 of 1,000 quadruplets)" in done.stdout
    rates = results["models"]["model"]["splits"]["test"]["redirection"]
    assert rates["safe_text_safe_rate_at_1"]["value"] > 0.8 > 0.3 > rates["unsafe_text_safe_rate_at_1"]["value"]
    # What train.py leaves is found beside it.
    shutil.copytree(ROOT / "safe_clip" / "demo" / "base", tmp_path / "safe-clip")
    done = run_eval(*few, cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "Measuring safe-clip against demo on demo."
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    again = results["models"]["model"]["splits"]["test"]["redirection"]
    assert {tuple(figure.pop("change").values()) for figure in again.values()} == {(0, 0, 0)} and again == rates
    assert (tmp_path / "evaluation" / "report.html").stat().st_size > 50_000


def test_galleries_labelled_images_and_an_approximate_index_from_the_command_line(model_dir, dataset_dir, tmp_path):
    pytest.importorskip("faiss")
    rows = make_rows(8)
    for name, image in zip("abcdefgh", rows["unsafe_image"], strict=True):
        for folder in (tmp_path / "pile", tmp_path / "kinds" / ("red" if name < "e" else "blue")):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{name}.png")
    (tmp_path / "list.txt").write_text("pile/a.png\npile/nowhere.png\n")
    (tmp_path / "config.yaml").write_text(f"model: {model_dir}\ndataset: {dataset_dir}\nindex: faiss\n")
    flags = ["config.yaml", "--unsafe_gallery", "pile", "list.txt", "--zero_shot", "kinds", "--faiss_factory", "Flat"]
    done = run_eval(*flags, "--cache_dir", "cache", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert results["samples"]["unsafe_gallery"] == {"pile": {"used": 8, "of": 8}, "list.txt": {"used": 1, "of": 1}}
    # The terminal says what is missing; what may be passed on says only where.
    assert results["unavailable"] == {"list.txt": ["list.txt, line 2"]}
    assert "list.txt, line 2 (pile/nowhere.png): there is no such file" in done.stdout
    split = results["models"]["model"]["splits"]["test"]
    assert split["index"]["recall_at_10_of_exact"]["value"] == 1  # a flat index is exact
    assert set(results["models"]["model"]["zero_shot"]["kinds"]) == {"top_1"}
    exact = run_eval(*flags, "--index", "exact", "--output_dir", "exact", "--cache_dir", "cache", cwd=tmp_path)
    assert exact.returncode == 0, exact.stderr
    exact = json.loads((tmp_path / "exact" / "results.json").read_text())["models"]["model"]["splits"]["test"]
    assert {task: exact[task] for task in split if task != "index"} == {
        task: figures for task, figures in split.items() if task != "index"
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "OTHER", "--dataset", "DATA"], "is a 'vit' model, not a CLIP"),
        (
            ["--model", "LARGER", "--dataset", "DATA"],
            "the image processor makes images of 32x32 pixels, but the model",
        ),
        (["--model", "MODEL", "--dataset", "DATA", "--splits", "tset"], "has no split 'tset', only train, validation,"),
        (["--model", "MODEL", "--dataset", "BROKEN"], "test: 1 of 8 images cannot be read. Mend them, or leave"),
        (["--model", "MODEL", "--dataset", "PROMPTS"], "test: there is nothing to measure, since it has no safe items"),
        (
            ["--model", "MODEL", "--dataset", "DATA", "--tasks", "retreival"],
            "--tasks retreival: it must be among retri",
        ),
        (["--model", "MODEL", "--dataset", "DATA", "--max_samples", "0"], "--max_samples is 0; it must be 1 or more."),
        (["--baseline", "MODEL"], "--baseline requires a --model to compare it with."),
        (["--model", "MODEL", "--dataset", "DATA", "--zero_shot", "cifar=x"], "'cifar' is none of the presets"),
        (["--model", "MODEL", "--dataset", "DATA", "--unsafe_gallery", "nowhere"], "--unsafe_gallery nowhere"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    flags, message, model_dir, dataset_dir, tmp_path, processor, monkeypatch
):
    from transformers import CLIPImageProcessor, CLIPProcessor, ViTConfig

    ViTConfig().save_pretrained(tmp_path / "vit")
    shutil.copytree(model_dir, tmp_path / "larger")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, processor.tokenizer).save_pretrained(tmp_path / "larger")
    table = Dataset.from_dict(make_rows(4), features=FEATURES)
    broken = table.with_format("arrow")[:].to_pylist()
    broken[2]["safe_image"] = {"bytes": b"GIF89a broken", "path": "cat.gif"}
    DatasetDict(test=Dataset.from_list(broken, features=FEATURES)).save_to_disk(tmp_path / "broken")
    prompts = {"prompt": ["a", "b"], "categories": ["violence", "shocking"]}
    DatasetDict(test=Dataset.from_dict(prompts)).save_to_disk(tmp_path / "prompts")
    names = {"MODEL": model_dir, "DATA": dataset_dir, "OTHER": "vit", "LARGER": "larger"}
    names |= {"BROKEN": "broken", "PROMPTS": "prompts"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        script.main([*(names.get(flag, flag) for flag in flags), "--cache_dir", "cache"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "evaluation").exists()


def test_an_error_is_the_last_line_and_the_exit_status(tmp_path):
    done = run_eval("--model", "demo", "--tsks", "retrieval", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr  # as is custom where flags are wrong
    assert done.stderr.splitlines()[-1] == "error: --tsks is no setting. Did you mean 'tasks'? --help lists them all."


def test_a_model_for_a_frozen_gallery_is_judged_by_it_and_says_what_it_is_for(model_dir, dataset_dir, tmp_path):
    flags = ["--model", model_dir, "--dataset", dataset_dir, "--max_steps", "3", "--learning_rate", "5e-3"]
    flags += ["--eval_splits", "train", "--frozen_gallery", "--output_dir", "out", "--report_to", "none"]
    done = run_python(ROOT / "train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "of its queries in an index that the original embedded. Do not index anything with this model" in said
    assert "for **queries alone**" in (tmp_path / "out" / "README.md").read_text()
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    after = written["after"]["train"]
    assert written["frozen_gallery"] is True
    rows, processor = load_quadruplets(dataset_dir)["train"], load_processor(model_dir)
    original, trained = load_clip(model_dir), load_clip(str(tmp_path / "out"))
    ours, theirs = (embed_rows(each, processor, rows) for each in (trained, original))
    expected = summary_figures(ours, theirs)
    assert after == pytest.approx(expected) and after != pytest.approx(evaluate_quadruplets(trained, processor, rows))
    usual = ["--model", "out", "--baseline", model_dir]
    done = run_eval(*usual, "--dataset", dataset_dir, "--splits", "train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out was trained with --frozen_gallery, and is measured so." in done.stdout
    assert "embedded by the original (--frozen_gallery)" in done.stdout and "--sweep" not in done.stdout
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    (found,) = result_figures(results)
    assert results["frozen_gallery"] and found.frozen_gallery and not found.index
    tasks = results["models"]["model"]["splits"]["train"]
    assert "redirection_original_gallery" not in tasks
    variants = embed_variants(Embedder(trained, processor), rows, "train", ours.made_from, load_synonyms())
    changed = robustness(ours, variants, gallery=theirs)["unsafe_text_mean"].nanmean().item()
    assert tasks["robustness"]["unsafe_text_mean"]["value"] == pytest.approx(changed, abs=1e-5)
    assert {name: value for name, value in found.after.items() if name in expected} == pytest.approx(
        {name: value for name, value in expected.items() if name in found.after}, abs=1e-5
    )
    for model, told in (("out", True), (model_dir, False)):
        export = ["export", "--model", model, "--format", "transformers", "--output_dir", f"copy-{told}"]
        done = run_python("-m", "safe_clip", *export, cwd=tmp_path)
        assert done.returncode == 0 and ("it is for queries alone" in done.stdout) == told, done.stderr
        assert for_frozen_galleries(str(tmp_path / f"copy-{told}"), None) == told
    done = run_eval("--model", "out", "--dataset", dataset_dir, cwd=tmp_path)
    assert done.returncode == 1 and "name that model with --baseline" in done.stderr
    other = DatasetDict(test=load_quadruplets(dataset_dir)["test"].select_columns(["safe_caption", "unsafe_caption"]))
    other.save_to_disk(tmp_path / "captions")
    done = run_eval(
        "--model", "out", "--baseline", model_dir, "--dataset", "captions", "--tasks", "redirection", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    flags = ["--objective", "safe_clip", "--frozen_gallery", "--model", model_dir, "--dataset", dataset_dir]
    done = run_python(ROOT / "train.py", *flags, cwd=tmp_path)
    assert done.returncode == 1 and "--frozen_gallery requires --objective safe_ranking" in done.stderr


@pytest.mark.parametrize("settings", ["{}", '{"model_type": "vit", "hidden_size": 32}', '{"model_type": "siglip"}'])
def test_a_folder_of_another_model_is_not_taken_for_the_demos(settings, tmp_path):
    (tmp_path / "safe-clip").mkdir()
    (tmp_path / "safe-clip" / "config.json").write_text(settings)
    done = run_eval(cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: safe-clip/ was not trained from the bundled demo")
