"""Whether training can go on from a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from safe_clip import UserError
from safe_clip.training.checkpoints import fault_of
from safe_clip.training.run_identity import RUN_FILE

from ..helpers import FEATURES, largest_difference, make_rows, weights
from .test_run_identity import run


@pytest.fixture(scope="module")
def saved(processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run(processor, Dataset.from_dict(make_rows(), features=FEATURES), folder, max_steps=4)
    return folder


def edit(path: Path, change) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def spot(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


DAMAGE = [
    *((name, lambda path: path.unlink()) for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json")),
    *((name, lambda path: path.write_bytes(b"")) for name in ("optimizer.pt", "rng_state.pth", "trainer_state.json")),
    *((name, cut) for name in ("optimizer.pt", "rng_state.pth", "adapter_model.safetensors")),
    *((name, zero) for name in ("optimizer.pt", "scheduler.pt", "adapter_model.safetensors")),
    *((name, spot) for name in ("optimizer.pt", "adapter_model.safetensors")),
    *(("trainer_state.json", lambda path, text=text: path.write_text(text)) for text in ("{}", "[]", '{"x": 1}')),
    (RUN_FILE, lambda path: edit(path, lambda facts: facts.update(data=3))),
    (RUN_FILE, lambda path: edit(path, lambda facts: facts.update(files=None))),
    (RUN_FILE, lambda path: path.write_text("[1]")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_what_cannot_be_gone_on_from_is_known(name, damage, saved, tmp_path):
    shutil.copytree(saved / "checkpoint-4", tmp_path / "checkpoint-4")
    assert fault_of(tmp_path / "checkpoint-4") is None
    damage(tmp_path / "checkpoint-4" / name)
    assert fault_of(tmp_path / "checkpoint-4")
    # One of an earlier version has no list of its files.
    old = tmp_path / "old"
    shutil.copytree(saved / "checkpoint-4", old)
    edit(old / RUN_FILE, lambda facts: facts.pop("files", None))
    assert fault_of(old) is None
    if damage is not spot or name == "optimizer.pt":
        damage(old / name)
        assert fault_of(old)


def test_a_damaged_checkpoint_is_passed_over_or_refused(processor, rows, saved, tmp_path, caplog):
    shutil.copytree(saved, tmp_path / "out")
    whole = run(processor, rows, tmp_path / "whole")
    (tmp_path / "out" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"checkpoint-4 is not a folder with a whole checkpoint: it has another optimizer.pt than was saved",
    ):
        run(processor, rows, tmp_path / "out", str(tmp_path / "out" / "checkpoint-4"))
    resumed = run(processor, rows, tmp_path / "out", "last")
    assert "checkpoint-4 has another optimizer.pt than was saved: it is passed over" in caplog.text
    assert resumed.resumed_from == 2 and largest_difference(weights(whole), weights(resumed)) == 0
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        (folder / "scheduler.pt").unlink()
    with pytest.raises(UserError, match="no whole checkpoint in .*; the newest, checkpoint-4, has no scheduler.pt any"):
        run(processor, rows, tmp_path / "out", "last")


def test_models_alone_are_no_checkpoints(processor, rows, tmp_path):
    run(processor, rows, tmp_path, max_steps=2, save_only_model=True)
    for resume in ("last", str(tmp_path / "checkpoint-2")):
        with pytest.raises(UserError, match=r"has no optimizer.\* \(as under --save_only_model\)"):
            run(processor, rows, tmp_path, resume)


def test_a_checkpoint_names_the_best_one_and_not_where_it_is(processor, rows, tmp_path):
    scores = iter([0.9, 0.5, 0.4, 0.3])
    options = {
        "eval_rows": rows,
        "compute_metrics": lambda prediction: {"score": next(scores)},
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_score",
        "greater_is_better": True,
        "save_total_limit": 2,
    }
    first = run(processor, rows, tmp_path / "a", max_steps=2, **options)
    (tmp_path / "a").rename(tmp_path / "b")
    state = (tmp_path / "b" / "checkpoint-2" / "trainer_state.json").read_text()
    assert json.loads(state)["best_model_checkpoint"] == "checkpoint-1" and str(tmp_path) not in state
    again = run(processor, rows, tmp_path / "b", "last", max_steps=3, **options)
    assert again.resumed_from == 2 and largest_difference(weights(first), weights(again)) == 0
    assert {path.name for path in (tmp_path / "b").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
