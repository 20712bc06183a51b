"""Trainings that would train nothing, and rows that evaluation is given."""

import contextlib
import logging
import re

import pytest
import torch
from datasets import DatasetDict
from transformers import TrainingArguments

from safe_clip import QuadrupletRows, SafeCLIPTrainer, SafeCLIPTrainingArguments, UserError
from safe_clip.training.pace import planned_steps
from safe_clip.training.plan import check_plan

from ..helpers import make_trainer


@pytest.fixture(scope="module")
def text_trainer(processor, tmp_path_factory):
    from datasets import Dataset

    from ..helpers import FEATURES, make_rows

    rows = Dataset.from_dict(make_rows(), features=FEATURES)
    folder = tmp_path_factory.mktemp("evaluated")
    return make_trainer(processor, rows, folder, eval_rows=rows.select(range(12))), rows


def test_evaluation_takes_rows_as_construction_does(text_trainer):
    trainer, rows = text_trainer
    known = trainer.evaluate()
    few, other = rows.select(range(12)), rows.select(range(5, 16))
    times = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")

    def figures(metrics):
        return {name: value for name, value in metrics.items() if name not in times}

    for given in (few, QuadrupletRows(few), list(few)):
        assert figures(trainer.evaluate(given)) == figures(known)
    assert trainer.evaluate(other)["eval_loss"] != known["eval_loss"]
    both = trainer.evaluate({"a": few, "b": other})
    assert both["eval_a_loss"] == known["eval_loss"] != both["eval_b_loss"]
    assert trainer.evaluate(DatasetDict(a=few))["eval_a_loss"] == known["eval_loss"]
    predicted = trainer.predict(few)
    assert predicted.metrics["test_loss"] == known["eval_loss"]
    assert [column.shape for column in predicted.predictions] == [(12, 24)] * 4
    assert trainer.predict(QuadrupletRows(few)).metrics["test_loss"] == known["eval_loss"]


def test_an_evaluation_of_other_rows_is_not_that_of_a_loader_that_was_kept(text_trainer):
    """As it is with workers that stay."""
    trainer, rows = text_trainer
    few, other = rows.select(range(12)), rows.select(range(5, 16))
    trainer.args.dataloader_num_workers, trainer.args.dataloader_persistent_workers = 1, True
    try:
        first = trainer.evaluate()["eval_loss"]
        assert trainer.evaluate(other)["eval_loss"] != first == trainer.evaluate(few)["eval_loss"]
    finally:
        trainer.args.dataloader_num_workers, trainer.args.dataloader_persistent_workers = 0, False


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda trainer, rows: trainer.predict(DatasetDict(a=rows)), "one data set is required here, not DatasetDict"),
        (lambda trainer, rows: trainer.predict({"a": rows}), "one data set is required.* name one such as 'a'"),
        (lambda trainer, rows: trainer.predict(None), "one data set is required here, not NoneType"),
        (lambda trainer, rows: trainer.predict(rows.to_iterable_dataset()), "a stream has no end"),
        (lambda trainer, rows: trainer.evaluate(rows.to_iterable_dataset()), "a stream has no end"),
        (lambda trainer, rows: trainer.evaluate("test"), "eval_dataset has no 'test'"),
        (lambda trainer, rows: trainer.evaluate(rows.select_columns([])), "lacks the columns"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(text_trainer, call, said):
    with pytest.raises(UserError, match=said):
        call(*text_trainer)


def test_a_trainer_without_rows_says_so(processor, rows, tmp_path):
    trainer = make_trainer(processor, None, tmp_path)
    with pytest.raises(UserError, match="evaluate.. requires rows"):
        trainer.evaluate()
    with pytest.raises(UserError, match="train.. requires a train_dataset"):
        trainer.train()
    with pytest.raises(UserError, match="--eval_strategy steps requires rows to evaluate on"):
        make_trainer(processor, rows, tmp_path, eval_strategy="steps")


@pytest.mark.parametrize("args", [TrainingArguments(report_to="none"), {"max_steps": 1}, "out"], ids=str)
def test_other_settings_are_told_before_the_model_is_loaded(args, rows):
    with pytest.raises(UserError, match="args must be SafeCLIPTrainingArguments, not "):
        SafeCLIPTrainer("no/such-model", args, train_dataset=rows)


@pytest.mark.parametrize(
    ("settings", "rows", "steps"),
    [
        ({}, 40, 150),  # 5 batches of 8, 30 times
        ({"num_train_epochs": 3}, 40, 15),
        ({"num_train_epochs": 0.2}, 40, 1),
        ({"num_train_epochs": 0.001}, 1, 1),
        ({"gradient_accumulation_steps": 3, "num_train_epochs": 3}, 40, 6),
        ({"dataloader_drop_last": True, "num_train_epochs": 3}, 15, 3),
        ({"max_steps": 7}, 3, 7),
    ],
)
def test_planned_steps_are_those_of_the_trainer(settings, rows, steps, tmp_path):
    args = SafeCLIPTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, **settings)
    assert planned_steps(args, rows) == steps


@pytest.mark.parametrize("steps", [{}, {"max_steps": 4}])
def test_no_batch_is_no_training(steps, processor, rows, tmp_path):
    for given, settings, said in (
        (rows.select(range(7)), {"dataloader_drop_last": True}, "--dataloader_drop_last leaves no batch: there are 7"),
        (rows.select([]), {}, "there is no training row"),
    ):
        with pytest.raises(UserError, match=said):
            make_trainer(processor, given, tmp_path, **({"max_steps": -1} | steps | settings))
    make_trainer(processor, rows.select(range(8)), tmp_path, dataloader_drop_last=True)


def test_a_training_that_moves_nothing_is_no_success(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, optim="sgd", learning_rate=1e-60)
    with pytest.raises(UserError, match="training moved no weight in 4 steps, so this is the original model"):
        trainer.train()


def test_steps_that_are_all_warmup_are_told(processor, rows, tmp_path, caplog):
    make_trainer(processor, rows, tmp_path, lr_scheduler_type="linear", warmup_steps=4)
    assert "All 4 steps are warmup, so that the learning rate never reaches" in caplog.text
    caplog.clear()
    make_trainer(processor, rows, tmp_path, lr_scheduler_type="linear", warmup_steps=3)
    make_trainer(processor, rows, tmp_path, lr_scheduler_type="constant", warmup_steps=4)
    assert "warmup" not in caplog.text


@pytest.mark.parametrize(
    ("objective", "dropped", "said"),
    [
        (
            "safe_ranking",
            "safe_caption",
            "preservation_text_cosine, .*redirection_text.*, since there is no safe_cap",
        ),
        ("safe_clip", "safe_caption", "redirection_text_cosine, .*since there is no safe_caption"),
        ("safe_ranking", "unsafe_image", "redirection_image_ranking, .*, since there is no unsafe_image"),
    ],
)
def test_terms_without_rows_are_told_from_python_too(objective, dropped, said, processor, rows, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    make_trainer(processor, rows.rename_column(dropped, "zzz"), tmp_path, objective=objective)
    assert re.search(said, caplog.text), caplog.text
    caplog.clear()
    make_trainer(processor, rows, tmp_path, objective=objective)
    assert "Not trained" not in caplog.text


SAFE = ["safe_caption", "safe_image"]
UNSAFE = ["unsafe_caption", "unsafe_image"]


@pytest.mark.parametrize("objective", ["safe_ranking", "safe_clip", "safer_clip", "shield_clip"])
@pytest.mark.parametrize(
    "columns", [SAFE, UNSAFE, ["safe_caption"], ["unsafe_image"], ["safe_image", "unsafe_caption"]]
)
def test_data_that_redirect_nothing_are_refused(objective, columns, processor, rows, tmp_path):
    if (objective, columns) == ("safe_clip", ["safe_image", "unsafe_caption"]):  # across modalities
        make_trainer(processor, rows.select_columns(columns), tmp_path, objective=objective)
        return
    with pytest.raises(UserError, match="so nothing would be made safe"):
        make_trainer(processor, rows.select_columns(columns), tmp_path, objective=objective)


@pytest.mark.parametrize("columns", [["safe_caption", "unsafe_caption"], ["safe_image", "unsafe_image"]])
def test_one_modality_trains_under_the_default_objective(columns, processor, rows, tmp_path):
    trainer = make_trainer(processor, rows.select_columns(columns), tmp_path, objective="safe_ranking", max_steps=2)
    trainer.train()
    assert trainer.step.trained.intersection(trainer.objective.redirecting)


def test_rows_that_redirect_nothing_are_told_at_the_end_where_only_reading_tells(processor, rows, tmp_path):
    """Of a stream, and of rows that are no data set, only the columns are known."""
    empty = [{**row, "unsafe_caption": None, "unsafe_image": None} for row in rows]
    trainer = make_trainer(processor, empty, tmp_path, max_steps=2)
    with pytest.raises(UserError, match="so nothing would be made safe"):
        trainer.train()
    trainer = make_trainer(processor, list(rows), tmp_path, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_four_tensors_are_a_batch():
    from safe_clip.items import Layout, Quadruplets
    from safe_clip.objectives import OBJECTIVES
    from safe_clip.objectives.base import BatchTargets

    torch.manual_seed(0)
    tensors = [torch.randn(6, 8, requires_grad=True) for _ in range(4)]
    unit = [torch.nn.functional.normalize(each, dim=-1) for each in tensors]
    for name, kind in OBJECTIVES.items():
        objective = kind(10.0)
        loss, terms = objective(*tensors)
        packed = Quadruplets.packed(unit, Layout.whole(6))
        expected, _ = objective(packed, BatchTargets(packed.map(torch.Tensor.detach)))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), name
        assert loss.requires_grad and set(terms) <= set(objective.WEIGHTS)
        by_tuple, _ = objective(tuple(tensors))
        assert by_tuple.item() == loss.item()
        moved, _ = objective(*tensors, reference=[torch.roll(each.detach(), 1, 0) for each in tensors])
        assert moved.item() != loss.item()
        alone, terms = objective(tensors[0], tensors[1], None, None)
        assert torch.isfinite(alone) and not any("image" in term for term in terms), terms
    half = tensors[1].detach().clone()
    half[0] = torch.nan
    assert torch.isfinite(kind(10.0)(tensors[0], half, *tensors[2:])[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((torch.zeros(2, 3),) * 3, "in this order, not 3"),
        ((), "in this order, not 0"),
        ((torch.zeros(2, 3),) * 3 + (torch.zeros(2, 4),), "all alike, not 2 x 3, .*2 x 4"),
        ((torch.zeros(3),) * 4, "B x dimension, all alike"),
        ((torch.zeros(2, 3, dtype=torch.int64),) * 4, "tensors of numbers with a fraction"),
        ((None,) * 4, "one is required"),
    ],
)
def test_what_is_no_batch_is_one_line(given, said):
    from safe_clip import SafeCLIPLoss, SaferCLIPLoss

    with pytest.raises(UserError, match=said):
        SafeCLIPLoss()(*given)
    with pytest.raises(UserError, match="requires the original model's embeddings of unsafe items too"):
        SaferCLIPLoss()(*[torch.ones(2, 3)] * 4, reference=[torch.ones(2, 3)] * 2)


def test_an_unknown_metric_lists_those_that_there_are():
    from safe_clip import load_metric

    for name in ("nothing", "", "../metrics", "direct"):
        with pytest.raises(UserError, match="the metrics are caption_quality, neighbour_overlap, recall_at_k"):
            load_metric(name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim": "sgd", "optim_args": "momentum=high"}, "--optim sgd with --optim_args momentum=high: .*'high'"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "--optim sgd with --optim_args nesterov=true: Nesterov"),
        ({"optim": "rmsprop"}, None),
        ({"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}, None),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_named_before_training(settings, said, rows, tmp_path):
    args = SafeCLIPTrainingArguments(str(tmp_path), report_to="none", max_steps=1, **settings)
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        check_plan(args, QuadrupletRows(rows), None)
    assert torch.equal(torch.get_rng_state(), state)
