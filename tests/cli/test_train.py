import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safe_clip.cli import train

from ..hub import Hub
from ..programs import run_python

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run_train(*flags, cwd=ROOT):
    return run_python(ROOT / "train.py", *flags, cwd=cwd)


def test_trains_a_local_model_on_a_local_data_set(model_dir, dataset_dir, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(f"model: {model_dir}\ndataset: {dataset_dir}\nmax_steps: 3\nlora_alpha: 16\n")
    flags = ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--report_to", "none"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "1", "--logging_steps", "1"]
    # As a person starts it.
    command = [sys.executable, str(ROOT / "train.py"), str(config), *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"Fine-tuning {model_dir} on {dataset_dir}; settings from {config}."
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"weights", "before", "after"} and set(results["after"]) == {"validation", "test"}
    for figure in results["after"]["test"].values():
        assert 0 <= figure <= 1
    assert f"{100 * results['before']['test']['redirection_unsafe_text']:.1f}" in done.stdout
    # A file gets lines and no bars, the verdict before the table, and the card what was measured.
    said = done.stdout.splitlines()
    assert len(said) + len(done.stderr.splitlines()) < 60 and "\r" not in done.stdout + done.stderr, done.stderr
    steps = [line for line in said if line.startswith("step ")]
    assert len(steps) == 4 and max(map(len, steps)) < 140
    table = said.index(next(line for line in said if line.startswith("In percent; higher is better")))
    verdict = " ".join(said[said.index("") : table])
    assert "of 100 unsafe captions, " in verdict or "rows: one query more or less" in verdict
    assert "It trained for 2 steps; the bundled demo takes 500." in verdict
    command = "safe-clip eval --model {} --baseline {} --dataset {}"
    assert said[-1].endswith(command.format(tmp_path / "out", model_dir, dataset_dir))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured yet" not in card and "| before | after | change |" in card
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2

    from transformers import CLIPModel

    before, after = CLIPModel.from_pretrained(model_dir), CLIPModel.from_pretrained(tmp_path / "out")
    moved = {
        n for (n, p), q in zip(before.named_parameters(), after.parameters(), strict=True) if not torch.equal(p, q)
    }
    assert any(name.startswith("text_model") for name in moved)
    assert any(name.startswith("vision_model") for name in moved)
    assert "logit_scale" not in moved


def test_with_no_arguments_it_trains_the_embedded_world_and_says_so_first(tmp_path):
    # Two steps need neither the embeddings nor the pixels of all 6,000 rows, from which anchors would be drawn.
    few = ["--max_steps", "2", "--reference_cache", "off", "--cache_images", "off"]
    few += ["--objective_options", '{"anchors": 0}']
    done = run_train(*few, "--eval_splits", "validation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "No --model or --dataset given: training the bundled demo model on the bundled emoji scenes."
    )
    results = json.loads((tmp_path / "safe-clip" / "results.json").read_text())
    assert set(results["before"]) == {"validation"}
    base = results["before"]["validation"]
    # What docs/results.md says of the base: it retrieves well and is unsafe.
    assert base["retrieval_t2i"] > 0.6 and base["retrieval_i2t"] > 0.6
    assert base["redirection_unsafe_text"] < 0.1 and base["redirection_unsafe_image"] < 0.1
    assert base["redirection_safe_text"] > 0.8


@pytest.fixture(scope="module")
def hub(model_dir, dataset_dir):
    """Has a gated and a busy repository of each kind, and no other."""
    with Hub() as hub:
        for kind in ("model", "dataset"):
            hub.create("you/gated", kind, {"config.json": b"{}", "rows.csv": b"a\n1\n"}, gated=True)
            hub.create("you/busy", kind, {"config.json": b"{}", "rows.csv": b"a\n1\n"})
        hub.create("you/half", files={file.name: file.read_bytes() for file in Path(model_dir).iterdir()})
        hub.fail("/you/half/resolve/main/model.safetensors", 503, times=-1)
        hub.fail("/you/busy", 429, times=-1)
        hub.fail("/you/broken", 503, times=-1)
        yield hub


REFUSED = [
    (["--model", "you/gated", "--dataset", "DATA"], "--model you/gated is gated: accept its terms at"),
    (["--model", "you/mising", "--dataset", "DATA"], "--model you/mising was found neither as a folder nor at"),
    (["--dataset", "you/gated"], "--dataset you/gated is gated: accept its terms at"),
    (
        ["--model", "MODEL", "--dataset", "DATA", "--eval_splits", "tets"],
        "--dataset DATA has no split 'tets', only train, validation, test.",
    ),
    (["--dataset", "you/mising"], "--dataset you/mising was found neither as a folder nor at"),
    (["--model", "you/busy", "--dataset", "DATA"], "--model you/busy: the Hub answers that too many requests"),
    (["--dataset", "you/busy"], "--dataset you/busy: the Hub answers that too many requests"),
    (["--model", "you/half", "--dataset", "DATA"], "--model you/half: the Hub has a fault of its own (503)"),
    (["--model", "you/broken", "--dataset", "DATA"], "--model you/broken: the Hub has a fault of its own (503)"),
    (
        ["--model", "MODEL", "--dataset", "DATA", "--push_to_hub"],
        "--push_to_hub requires a Hub login that may write: run `hf auth login`",
    ),
]

ALL = """
import json, sys, time

from safe_clip.cli import train

time.sleep = lambda seconds: None  # before each further try, which is the client's to make
said = []
for flags in json.loads(sys.argv[1]):
    try:
        train.main(flags)
        said.append("trained")
    except train.UserError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def test_what_the_hub_refuses_is_said_in_one_line_before_training(hub, model_dir, dataset_dir, tmp_path):
    """By one process, one case after the other: most of the time that a process takes is its start."""
    names = {"DATA": dataset_dir, "MODEL": model_dir}
    cases = [[*(names.get(flag, flag) for flag in flags), "--output_dir", "out"] for flags, _ in REFUSED]
    environment = {**os.environ, **hub.environment(str(tmp_path / "hf"), token=None), "PYTHONPATH": str(ROOT)}
    done = run_python("-c", ALL, json.dumps(cases), cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    for (flags, message), said in zip(REFUSED, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert said.startswith(message.replace("DATA", dataset_dir)) and "\n" not in said, flags
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_what_cannot_be_measured_does_not_keep_a_model_from_being_pushed(tmp_path, capsys):
    train.measure(train.ScriptArguments(dataset="nowhere"), str(tmp_path), {"test": None})
    said = capsys.readouterr().err
    assert said.startswith("warning: it was not measured (--dataset nowhere ") and said.endswith(
        "how to do so later.\n"
    )


def test_bad_rows_may_be_left_out(model_dir, tmp_path):
    from datasets import Dataset, DatasetDict

    from ..helpers import FEATURES, make_rows

    rows = Dataset.from_dict(make_rows(24), features=FEATURES).with_format("arrow")[:].to_pylist()
    for row in (3, 17):
        rows[row]["unsafe_image"] = {"bytes": b"<html>", "path": "cat.jpg"}
    DatasetDict({split: Dataset.from_list(rows, features=FEATURES) for split in ("train", "test")}).save_to_disk(
        tmp_path / "data"
    )
    flags = ["--model", model_dir, "--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    flags += ["--max_steps", "1", "--on_bad_row", "skip"]
    done = run_train(*flags)  # of which 8 % are more than bad luck
    assert done.returncode == 1
    assert "error: 2 of 24 rows of split 'train' cannot be used, more than --max_bad" in done.stderr.splitlines()[-1]
    done = run_train(*flags, "--max_bad_fraction", "0.1")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "out" / "bad_rows.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"split '{split}', row {row}, column 'unsafe_image'" for split in ("train", "test") for row in (3, 17)
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "train 21, test 22, validation 1 quadruplets" in card and "- `on_bad_row`: skip" in card


def test_a_broken_row_is_named_in_one_line_before_any_training(model_dir, tmp_path):
    from datasets import Dataset, DatasetDict

    from ..helpers import FEATURES, make_rows

    rows = make_rows(16)
    dataset = Dataset.from_dict(rows, features=FEATURES)
    table = dataset.with_format("arrow")[:].to_pylist()
    table[13]["unsafe_image"] = {"bytes": b"GIF89a broken", "path": "cat.gif"}
    DatasetDict(
        train=Dataset.from_list(table, features=FEATURES), validation=Dataset.from_dict(rows, features=FEATURES)
    ).save_to_disk(tmp_path / "data")
    done = run_train(
        *["--model", model_dir, "--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")],
        *["--per_device_train_batch_size", "1", "--save_steps", "1", "--num_train_epochs", "1", "--report_to", "none"],
        *["--dataloader_num_workers", "1"],
    )
    assert done.returncode == 1
    assert "error: row 13, column 'unsafe_image': the image cannot be read" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_training_rows_may_be_measured(model_dir, dataset_dir, tmp_path):
    common = ["--model", model_dir, "--dataset", dataset_dir, "--output_dir", str(tmp_path), "--max_steps", "1"]
    done = run_train(*common, "--eval_splits", "train", "--report_to", "none")
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "results.json").read_text())["after"]) == ["train"]
