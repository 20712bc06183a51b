"""What a training prints, by a callback that is told of steps that nobody took."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from safe_clip.objectives import build_objective
from safe_clip.training import progress as module
from safe_clip.training.progress import TrainingProgress, loss_parts, number, span

from ..test_terminal import Screen


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def run(clock, steps=500, logging_steps=50, seconds=1.25, first=0, main=True, rows=6000, **settings):
    """Training from a step on; what was evaluated is logged at half of it."""
    objective = build_objective("safe_ranking", 14.0, {}, None)
    callback = TrainingProgress(objective, SimpleNamespace(mixed_precision="no"))
    args = SimpleNamespace(
        **{"disable_tqdm": False, "train_batch_size": 32, "gradient_accumulation_steps": 1, "world_size": 1, "n_gpu": 0}
        | {"max_steps": steps, "device": torch.device("cpu")}
        | settings
    )
    state = TrainerState(max_steps=steps, global_step=first, is_world_process_zero=main, is_local_process_zero=main)
    told = {"args": args, "state": state, "control": TrainerControl()}
    loader = SimpleNamespace(dataset=range(rows)) if rows else SimpleNamespace()
    callback.on_train_begin(**told, model=torch.nn.Linear(4, 2), train_dataloader=loader)
    terms = dict.fromkeys(objective.weights, 0.01)
    for step in range(first + 1, steps + 1):
        clock.seconds += seconds
        state.global_step = step
        told["control"].should_log = step % logging_steps == 0
        callback.on_step_end(**told)
        if step % logging_steps == 0:
            callback.on_log(**told, logs={"loss": 12.0, "learning_rate": 3e-3, "epoch": 0.1, **terms})
        if step == steps // 2:
            for _ in range(3):
                callback.on_prediction_step(**told, eval_dataloader=range(3))
            callback.on_log(**told, logs={"eval_loss": 10.0, "eval_runtime": 3.0, "eval_retrieval_t2i": 0.7})
            callback.on_evaluate(**told)
    callback.on_log(**told, logs={"train_runtime": 625.0, "train_loss": 12.0})
    callback.on_train_end(**told)


def test_a_file_gets_a_line_now_and_then(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run(clock)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Training all 10 parameters on 1 x ") and lines[0].endswith(", in float32.")
    assert lines[1] == "500 steps of 32 rows."
    assert lines[2] == "step  24/500  1.25 s/step, 9 min left"
    steps = [line.split("/")[0] for line in lines if line.startswith("step ") and "evaluated" not in line]
    assert len(steps) == len(set(steps)), "a step is told of twice"
    assert 15 <= len(lines) <= 40 and max(map(len, lines)) < 130
    (line,) = [line for line in lines if line.startswith("step  50/500")]
    assert line.startswith("step  50/500  loss  12.0  redirect text ") and "  lr 0.003  " in line
    assert "step 250/500  evaluated:  loss  10.0" in "\n".join(lines) and "  retrieval_t2i 0.700" in lines
    assert lines[-1] == "Trained 500 steps in 10 min, 1.25 s/step." and sys.stderr.getvalue() == ""


@pytest.mark.parametrize(("rows", "said"), [(28, "28 rows"), (0, "32 rows")])
def test_fewer_rows_than_a_batch_and_a_stream(rows, said, clock, capsys):
    run(clock, steps=2, logging_steps=1, rows=rows)
    assert f"2 steps of {said}." in capsys.readouterr().out


def test_a_terminal_gets_one_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    run(clock, steps=40, logging_steps=10)
    drawn = [state for state in sys.stderr.getvalue().replace("\n", "\r").split("\r") if state.strip()]
    assert drawn and all(state.startswith(("Training: ", "Evaluating: ")) for state in drawn)
    assert "40/40" in drawn[-1] and sys.stderr.getvalue().count("\n") == 1  # the bar that stays
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 5 and not any("left" in line for line in lines)  # which the bar tells


def test_without_bars_there_are_log_lines_alone_and_other_processes_say_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    run(clock, disable_tqdm=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 11 and sys.stderr.getvalue() == ""
    run(clock, main=False)
    assert capsys.readouterr().out == "" == sys.stderr.getvalue()


def test_a_resumed_run_counts_its_own_steps(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run(clock, first=400)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "500 steps of 32 rows, from step 400 on." and lines[2].startswith("step 424/500  1.25 s/step")
    assert lines[-1].startswith("Trained 100 steps in ")


def test_the_parts_of_a_loss_sum_to_it():
    for name in ("safe_ranking", "safe_clip", "shield_clip"):
        objective = build_objective(name, 14.0, {}, None)
        terms = {term: 0.02 + 0.03 * index for index, term in enumerate(objective.weights)}
        loss = sum(objective.weights[term] * value for term, value in terms.items()) / objective.divisor
        words = loss_parts({"loss": loss, **terms}, objective).split()
        found = [float(word) for word in words if word.replace(".", "").isdigit()]
        assert found[0] == pytest.approx(sum(found[1:]), rel=0.02)
    assert loss_parts({"my_own": 1.0}, objective) == ""


def test_numbers_are_short_and_times_are_words():
    assert [number(value) for value in (0, 0.0123, 1.234, 99.94, 1234.5, 1.2e-5, -2.0)] == [
        *("0.000", "0.012", " 1.23", " 99.9", " 1234", "1e-05", "-2.00")
    ]
    assert [span(seconds) for seconds in (5, 65, 700, 7300)] == ["5 s", "1 min 5 s", "11 min", "2 h 1 min"]


def test_the_trainer_s_own_callbacks_give_way(processor, rows, tmp_path):
    from ..helpers import make_trainer

    for disable in (True, False):
        trainer = make_trainer(processor, rows, tmp_path, disable_tqdm=disable)
        kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
        assert kinds.count(TrainingProgress) == 1 and not {PrinterCallback, ProgressCallback} & set(kinds)
