"""A checkpoint knows its run."""

import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from safe_clip import UserError
from safe_clip.training.run_identity import OLD_FILE, RUN_FILE

from ..helpers import FEATURES, NO_DROPOUT, ROOT, build_model, largest_difference, make_rows, make_trainer, weights
from ..programs import run_python


class Kill(TrainerCallback):
    """Ends training as a kill would, after the checkpoint of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(processor, rows, folder, resume=None, kill=None, config=NO_DROPOUT, **options):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **options}
    trainer = make_trainer(processor, rows, folder, config, **options)
    if kill:
        trainer.add_callback(Kill(kill))
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resume)
    else:
        trainer.train(resume)
    return trainer


OTHERS = {
    "seed": ({"seed": 3}, r"--seed 0 then, 3 now|--seed 42 then, 3 now"),
    "objective": ({"objective": "shield_clip", "loss_weights": None}, "--objective .* then, shield_clip now"),
    "weights": ({"loss_weights": {"redirection_text_cosine": 5.0}}, "--loss_weights, .* then, .* now"),
    "scale": ({"logit_scale": 7.0}, "--logit_scale .* then, 7.0 now"),
    "batch": ({"per_device_train_batch_size": 4}, "quadruplets a step 8 then, 4 now"),
    "full": ({"config": None}, "--full_finetuning false then, true now"),
    "rank": ({"config": "rank"}, "--lora_r 16 then, 2 now"),
    "alpha": ({"config": "alpha"}, "--lora_alpha .* then, 3 now"),
}


def changed(case: str) -> dict:
    import copy

    options = dict(OTHERS[case][0])
    if options.get("config") in ("rank", "alpha"):
        config = copy.deepcopy(NO_DROPOUT)
        setattr(config, *({"rank": ("r", 2), "alpha": ("lora_alpha", 3)}[options["config"]]))
        options["config"] = config
    return options


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_by_what_changed(case, processor, rows, tmp_path):
    run(processor, rows, tmp_path, max_steps=2)
    for resume in ("last", str(tmp_path / "checkpoint-2")):
        with pytest.raises(UserError, match=OTHERS[case][1]):
            run(processor, rows, tmp_path, resume, **changed(case))


def test_a_checkpoint_of_another_original_or_other_images_is_refused(processor, rows, tmp_path):
    run(processor, rows, tmp_path, max_steps=2)
    turned = make_rows()
    turned["safe_image"] = [image.rotate(90) for image in turned["safe_image"]]
    with pytest.raises(UserError, match="the training data are not those of .*: safe_image differ. Go on"):
        run(processor, Dataset.from_dict(turned, features=FEATURES), tmp_path, str(tmp_path / "checkpoint-2"))
    trainer = make_trainer(processor, rows, tmp_path, max_steps=4)
    facts = json.loads((tmp_path / "checkpoint-2" / RUN_FILE).read_text())
    facts["is"]["the original model"] = "another"
    (tmp_path / "checkpoint-2" / RUN_FILE).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="no checkpoint of this run in .*checkpoint-2: the original model has"):
        trainer.train("last")


def test_last_is_the_newest_of_the_run_that_began_last(processor, rows, tmp_path):
    straight = run(processor, rows, tmp_path / "straight", seed=5)
    run(processor, rows, tmp_path / "out")
    run(processor, rows, tmp_path / "out", kill=2, seed=5)
    assert (tmp_path / "out" / "checkpoint-4").is_dir()
    resumed = run(processor, rows, tmp_path / "out", "last", seed=5)
    assert resumed.resumed_from == 2 and largest_difference(weights(straight), weights(resumed)) == 0
    # Of the same kind, but begun again with another rate: told apart by the run's id, and without it by the rate.
    run(processor, rows, tmp_path / "out", kill=2, seed=5, learning_rate=1e-3)
    assert run(processor, rows, tmp_path / "out", "last", seed=5, learning_rate=1e-3).resumed_from == 2
    (tmp_path / "out" / "safe_clip.json").unlink()
    with pytest.raises(UserError, match="no checkpoint of this run in .*--learning_rate 0.001 then, 0.0003 now"):
        run(processor, rows, tmp_path / "out", "last", seed=5, learning_rate=3e-4)


def test_what_may_change_on_going_on(processor, rows, tmp_path):
    run(processor, rows, tmp_path, max_steps=2)
    more = {"max_steps": 6, "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-3, "strength": 0.5}
    more |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert run(processor, rows, tmp_path, "last", **more).state.global_step == 6


def test_a_checkpoint_of_an_earlier_version_is_known_by_its_rows(processor, rows, tmp_path):
    run(processor, rows, tmp_path, max_steps=2)
    facts = json.loads((tmp_path / "checkpoint-2" / RUN_FILE).read_text())
    data = {name: each for name, each in facts["data"].items() if not name.endswith("_image")}
    (tmp_path / "checkpoint-2" / RUN_FILE).unlink()
    (tmp_path / "checkpoint-2" / OLD_FILE).write_text(json.dumps(data))
    assert run(processor, rows, tmp_path, "last").resumed_from == 2
    shutil.rmtree(tmp_path / "checkpoint-4")
    with pytest.raises(UserError, match="the training data are not those of then: there were 24 rows and are 20"):
        run(processor, rows.select(range(20)), tmp_path, "last")


@pytest.mark.parametrize(
    "bound",
    [
        {"max_steps": 3, "save_steps": 3, "lr_scheduler_type": "constant"},
        {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "epoch"},
        {"max_steps": 3, "config": None},
        {"max_steps": 3, "strength": 0.5},
    ],
    ids=["steps", "epochs", "full", "strength"],
)
def test_a_run_at_its_end_is_left_as_it_is(bound, processor, rows, tmp_path, capsys):
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}

    first = run(processor, rows, tmp_path / "out", **bound)
    first.save_model(str(tmp_path / "model"))
    before = files()
    again = run(processor, rows, tmp_path / "out", "last", **bound)
    again.save_model(str(tmp_path / "model"))
    assert again.state.global_step == 3 and again.nothing_left
    assert "Nothing is left to train: " in capsys.readouterr().out
    assert files()["model.safetensors"] == before["model.safetensors"]
    assert not (tmp_path / "out" / "checkpoint-4").exists()
    assert [entry for entry in again.state.log_history if "train_runtime" in entry]


def test_what_was_stopped_goes_on_and_what_stopped_early_does_not(processor, rows, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_save = state.global_step == 2

    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    trainer = make_trainer(processor, rows, tmp_path / "stopped", **options)
    trainer.add_callback(Stop())
    trainer.train()
    assert run(processor, rows, tmp_path / "stopped", "last", save_steps=1).state.global_step == 4
    scores = iter([0.9, 0.5, 0.4, 0.3, 0.2])
    early = dict(
        eval_rows=rows,
        compute_metrics=lambda prediction: {"score": next(scores)},
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        early_stopping_patience=1,
        **options,
    )
    first = make_trainer(processor, rows, tmp_path / "early", NO_DROPOUT, **early)
    first.train()
    assert first.state.global_step == 2
    again = make_trainer(processor, rows, tmp_path / "early", NO_DROPOUT, **early)
    again.train("last")
    assert again.nothing_left and largest_difference(weights(first), weights(again)) == 0


def test_a_checkpoint_has_nothing_of_one_that_was_there_before(processor, rows, tmp_path):
    run(processor, rows, tmp_path, config=None, max_steps=2)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    run(processor, rows, tmp_path, max_steps=2)
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    assert load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")


def test_a_checkpoint_says_what_it_is_of_and_not_where(processor, rows, tmp_path):
    trainer = run(processor, rows, tmp_path, max_steps=2)
    facts = json.loads((tmp_path / "checkpoint-2" / RUN_FILE).read_text())
    assert facts["run"] == trainer.run.id and facts["is"]["the original model"] == trainer.reference.weights
    assert facts["data"] == trainer.train_dataset.digest and str(Path(tmp_path).parent) not in json.dumps(facts)
    assert build_model(processor).config._name_or_path == ""


KILLED = """
import os, runpy, signal, sys
from safe_clip import SafeCLIPTrainer
save = SafeCLIPTrainer._save_checkpoint
def saved(self, *args):
    save(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
SafeCLIPTrainer._save_checkpoint = saved
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path(str(sys.argv.pop(1)), run_name="__main__")
"""


@pytest.mark.slow
def test_what_was_killed_goes_on_by_the_same_command(model_dir, dataset_dir, tmp_path):
    flags = ["--model", model_dir, "--dataset", dataset_dir, "--output_dir", "out", "--max_steps", "2"]
    flags += ["--save_steps", "1", "--per_device_train_batch_size", "8", "--report_to", "none"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_python("-c", KILLED, str(ROOT / "train.py"), *flags, cwd=tmp_path, env=env)
    assert done.returncode == -9 and not (tmp_path / "out" / "model.safetensors").exists()
    done = run_python(str(ROOT / "train.py"), *flags, "--resume_from_checkpoint", "last", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "out" / "safe_clip.json").read_text())
    assert manifest["ended"]["at"] == 2 and manifest["ended"]["from"] == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text())["weights"] == manifest["weights"]
    assert not list((tmp_path / "out").glob(".safe_clip-*"))
