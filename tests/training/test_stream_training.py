"""Training on rows that come in a stream."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict

from safe_clip import UserError, lora_config
from safe_clip.cli import train
from safe_clip.objectives import OBJECTIVES

from ..helpers import FEATURES, NO_DROPOUT, largest_difference, make_rows, make_trainer, weights
from ..programs import run_python

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_on_a_stream(objective, processor, rows, tmp_path):
    trainer = make_trainer(
        processor, rows.to_iterable_dataset(4), tmp_path, None, objective=objective, max_steps=30, learning_rate=3e-4
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 30 and sum(losses[-5:]) < sum(losses[:5])
    assert trainer.term_rows is None
    anchors = trainer.objective.anchors
    assert trainer.targets.table is None and bool(trainer.targets.pairs) == (anchors != 0)  # the first of the stream


@pytest.mark.parametrize(("accumulation", "workers"), [(1, 0), (2, 2)])
def test_resuming_in_the_middle_gives_the_same_weights_as_never_stopping(
    accumulation, workers, processor, rows, tmp_path
):
    """Three batches an epoch: stopped in the second, with dropout and anchors that are drawn."""
    common = {
        "objective": "safe_ranking",
        "objective_options": {"anchors": 5},
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 5,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
    }
    config = lora_config(lora_alpha=16, lora_dropout=0.1)
    straight = make_trainer(processor, rows.to_iterable_dataset(4), tmp_path / "a", config, **common)
    straight.train()
    resumed = make_trainer(processor, rows.to_iterable_dataset(4), tmp_path / "b", config, **common)
    shutil.copytree(tmp_path / "a" / "checkpoint-5", tmp_path / "b" / "checkpoint-5")
    torch.rand(7)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 8
    assert largest_difference(weights(straight), weights(resumed)) == 0


def test_a_stream_that_changed_is_not_gone_on_with(processor, rows, tmp_path):
    stream = rows.to_iterable_dataset(4)
    make_trainer(processor, stream, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    other = rows.map(lambda row: {"unsafe_caption": row["unsafe_caption"].upper()}).to_iterable_dataset(4)
    with pytest.raises(UserError, match="the training data are not those of .*: unsafe_caption differ"):
        make_trainer(processor, other, tmp_path, max_steps=4).train(resume_from_checkpoint="last")


def test_a_stream_of_captions_trains_the_text_tower_alone(processor, rows, tmp_path):
    texts = rows.remove_columns(["safe_image", "unsafe_image"])
    trainer = make_trainer(processor, texts.to_iterable_dataset(2), tmp_path, objective="safe_ranking", max_steps=3)
    start = weights(trainer)
    assert all("text_" in name for name in start)
    trainer.train()
    assert largest_difference(start, weights(trainer)) > 0


def test_a_stream_require_to_know_how_long(processor, rows, tmp_path):
    with pytest.raises(UserError, match="--max_steps has to say how long to train"):
        make_trainer(processor, rows.to_iterable_dataset(4), tmp_path, NO_DROPOUT, max_steps=-1)


def test_a_stream_without_anything_unsafe_is_refused(processor, rows, tmp_path):
    safe = rows.select_columns(["safe_caption", "safe_image"]).to_iterable_dataset(2)
    with pytest.raises(UserError, match="so nothing would be made safe"):
        make_trainer(processor, safe, tmp_path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rows = Dataset.from_dict(make_rows(24), features=FEATURES)
    for number in range(3):
        rows.select(range(8 * number, 8 * number + 8)).to_parquet(folder / f"train-{number:05}-of-00003.parquet")
    rows.select(range(8)).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(("streaming", "full"), [(False, True), (True, False)])
def test_processes_may_be_dealt_rows_of_one_modality_each(streaming, full, model_dir, tmp_path):
    """Batches of two rows, of which half have captions alone and half images alone: towers idle on a process at
    times."""
    table = Dataset.from_dict(make_rows(24), features=FEATURES).with_format("arrow")[:].to_pylist()
    for number, row in enumerate(table):
        kind = "image" if number < 12 else "caption"
        row[f"safe_{kind}"] = row[f"unsafe_{kind}"] = None
    DatasetDict(train=Dataset.from_list(table, features=FEATURES)).save_to_disk(tmp_path / "data")
    flags = ["--model", model_dir, "--dataset", str(tmp_path / "data"), "--max_steps", "6", "--objective", "safe_clip"]
    flags += ["--per_device_train_batch_size", "2", "--logging_steps", "6", "--eval_splits", "train"]
    flags += ["--output_dir", str(tmp_path / "out"), *(["--streaming"] if streaming else [])]
    flags += ["--full_finetuning", "true", "--gradient_checkpointing", "true"] if full else []
    flags += ["--report_to", "none", "--use_cpu"]
    done = run_python(ROOT / "train.py", *flags, cwd=tmp_path, env=ENVIRONMENT, processes=2)
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    logged = set().union(*state["log_history"])
    assert {"redirection_text_cosine", "redirection_image_cosine"} <= logged
    assert not [name for name in logged if name.endswith("_contrastive")]
    assert done.stdout.count("redirect text ") == 1  # by the main process alone
    summary = "no row has what these terms need: preservation_text_contrastive"
    assert (summary in done.stdout.lower()) == (not streaming)


@pytest.mark.slow
def test_two_processes_with_workers_train_on_a_stream_of_files(model_dir, shards, tmp_path):
    flags = [
        "--model",
        model_dir,
        "--dataset",
        shards,
        "--streaming",
        "--max_steps",
        "3",
        "--dataloader_num_workers",
        "2",
    ]
    flags += ["--per_device_train_batch_size", "4", "--logging_steps", "1", "--output_dir", str(tmp_path / "two")]
    flags += ["--report_to", "none", "--use_cpu"]
    done = run_python(ROOT / "train.py", *flags, cwd=tmp_path, env=ENVIRONMENT, processes=2)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert set(results["after"]) == {"test"}
    assert "train (a stream), test 8 quadruplets" in (tmp_path / "two" / "README.md").read_text()


def test_bad_rows_of_a_stream_that_is_all_there_is_are_left_out(model_dir, tmp_path):
    lines = [{"safe_caption": f"a {n}", "unsafe_caption": " " if n == 17 else "a mark"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--model", model_dir, "--dataset", str(tmp_path / "rows.jsonl"), "--streaming", "--max_steps", "2"]
    flags += ["--report_to", "none", "--disable_tqdm", "true", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="row 17.*column 'unsafe_caption': the caption is empty"):
        train.main(flags)
    train.main([*flags, "--on_bad_row", "skip"])
    lines = (tmp_path / "out" / "bad_rows.txt").read_text().splitlines()
    assert len(lines) == 1 and "row 17, column 'unsafe_caption'" in lines[0]  # not again as the stream numbers it


def test_a_stream_is_loaded_like_rows(shards, tmp_path):
    from safe_clip import load_quadruplets

    splits = load_quadruplets(shards, streaming=True, column_mapping={"safe_image": None})
    assert splits["train"].column_names == ["safe_caption", "unsafe_caption", "unsafe_image"]
    assert len(splits["test"]) == 8 and splits["test"][0]["unsafe_image"].size == (16, 16)
    rows = Dataset.from_dict(make_rows(6), features=FEATURES)
    DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    saved = load_quadruplets(str(tmp_path / "saved"), streaming=True)["train"]
    assert [row["safe_caption"] for row in saved] == list(rows["safe_caption"])


def test_images_elsewhere_are_joined_to_a_stream(tmp_path):
    from safe_clip import load_quadruplets
    from safe_clip.data.streams import QuadrupletStream

    world = make_rows(6)
    (tmp_path / "coco").mkdir()
    for number in (0, 1, 2, 4, 5):
        world["safe_image"][number].save(tmp_path / "coco" / f"{number:012}.png")
    texts = Dataset.from_dict(
        {"safe": world["safe_caption"], "nsfw": world["unsafe_caption"], "coco_id": list(range(6))}
    )
    texts.to_parquet(tmp_path / "train.parquet")

    def stream(missing):
        places = {"safe_images": str(tmp_path / "coco"), "missing_images": missing, "streaming": True}
        rows = load_quadruplets(str(tmp_path / "train.parquet"), **places)["train"]
        return list(QuadrupletStream(rows, shuffle_buffer=0))

    assert [item["safe_image"] is None for item in stream("keep")] == [False, False, False, True, False, False]
    skipped = stream("skip")
    assert [item["safe_caption"] for item in skipped] == world["safe_caption"][:3] + world["safe_caption"][4:]
    assert skipped[3]["safe_image"].tobytes() == world["safe_image"][4].tobytes()
    with pytest.raises(UserError, match=r"a row has no image in --safe_images .*: 3\. Add them, or leave"):
        stream("error")
