import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import CLIPModel, TrainerCallback

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, UserError, evaluate_quadruplets, lora_config
from safe_clip.evaluation.summary import compute_metrics
from safe_clip.objectives import OBJECTIVES
from safe_clip.objectives.safe_clip import SafeCLIPLoss

from ..helpers import NO_DROPOUT, build_model, largest_difference, make_trainer, weights

PAPER_WEIGHTS = SafeCLIPLoss.WEIGHTS
COSINE_ONLY = {name: 0.0 for name in PAPER_WEIGHTS if name.endswith("contrastive")}


@pytest.mark.parametrize("peft_config", [NO_DROPOUT, None], ids=["lora", "full"])
def test_training_lowers_the_loss_and_moves_only_what_is_trained(processor, rows, tmp_path, peft_config):
    rate = 1e-2 if peft_config else 1e-3
    trainer = make_trainer(processor, rows, tmp_path, peft_config, max_steps=15, learning_rate=rate)
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trained = weights(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3])
    after = weights(trainer)
    assert all(not torch.equal(after[name], trained[name]) for name in trained if "position" not in name)
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, frozen[name]), name
    assert any(name.endswith("logit_scale") for name in frozen)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_from_the_table_as_from_the_batch(objective, processor, rows, tmp_path):
    """Anchors are all rows here, so that both ways see the same."""
    options = {"objective_options": {"anchors": 24}} if objective == "safe_ranking" else {}
    trainer = make_trainer(
        processor, rows, tmp_path, None, objective=objective, max_steps=30, learning_rate=3e-4, **options
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in (20, 2, 9)])
    trainer.targets.prepare(trainer.train_dataset, trainer.data_collator)
    with torch.no_grad():
        untrained = trainer.compute_loss(trainer.model, batch).item()
    trainer.train()
    trainer.model.train()  # without dropout
    with torch.no_grad():
        from_table = trainer.compute_loss(trainer.model, batch).item()
        del batch["row"]
        trainer.model.eval()
        from_batch = trainer.compute_loss(trainer.model, batch).item()
    assert from_table == pytest.approx(from_batch, rel=1e-4, abs=1e-6)
    assert from_table < 0.98 * untrained


def test_evaluation_does_not_depend_on_how_far_training_is(processor, rows, tmp_path):
    """Though the curriculum of safer_clip does."""
    trainer = make_trainer(processor, rows, tmp_path, eval_rows=rows.select(range(16)), objective="safer_clip")
    losses = set()
    for step in (0, 1, 4):
        trainer.state.global_step, trainer.state.max_steps = step, 4
        losses.add(trainer.evaluate()["eval_loss"])
    assert len(losses) == 1


def test_every_term_is_logged_beside_the_total_in_training_and_evaluation(processor, rows, tmp_path):
    trainer = make_trainer(
        processor, rows, tmp_path, eval_rows=rows.select(range(12)), eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    train_log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    eval_log = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    for prefix, log in (("", train_log), ("eval_", eval_log)):
        assert {name for name in log if name.removeprefix(prefix) in PAPER_WEIGHTS} == {
            prefix + n for n in PAPER_WEIGHTS
        }
    total = sum(PAPER_WEIGHTS[name] * train_log[name] for name in PAPER_WEIGHTS) / sum(PAPER_WEIGHTS.values()) / 8
    assert train_log["loss"] == pytest.approx(total, rel=1e-4)


def test_evaluation_terms_are_means_over_rows_not_over_batches(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, eval_rows=rows.select(range(11)), loss_weights=COSINE_ONLY)
    small = trainer.evaluate()["eval_redirection_image_cosine"]  # batches of 8 and 3
    trainer.args.per_device_eval_batch_size = 11
    assert trainer.evaluate()["eval_redirection_image_cosine"] == pytest.approx(small, abs=1e-6)


def test_the_loss_uses_the_base_s_own_logit_scale_unless_told(processor, rows, tmp_path):
    assert make_trainer(processor, rows, tmp_path).objective.logit_scale == pytest.approx(14.2857, abs=1e-3)
    assert make_trainer(processor, rows, tmp_path, logit_scale=100.0).objective.logit_scale == 100.0


def test_compute_loss_is_the_objective_of_separately_computed_embeddings(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path)
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(5)])
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
        names = ("input_ids", "attention_mask", "pixel_values")
        safe = trainer.model(**{name: batch[name][:5] for name in names})
        unsafe = trainer.model(**{name: batch[name][5:] for name in names})
        original = build_model(processor)(**{name: batch[name][:5] for name in names})
    expected, _ = trainer.objective(
        *(safe.text_embeds, unsafe.text_embeds, safe.image_embeds, unsafe.image_embeds),
        reference=(original.text_embeds, original.image_embeds),
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_accumulated_gradients_equal_large_batch_gradients(processor, rows, tmp_path):
    """Of the cosine terms: the contrastive ones differ by nature, their negatives being the micro-batch's."""
    common = {
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "loss_weights": COSINE_ONLY,
    }
    # From unequal adapters, else every gradient of the down-projections is 0.
    config = LoraConfig(r=4, target_modules=["fc1", "out_proj"], init_lora_weights=False)
    whole = make_trainer(processor, rows, tmp_path, config, per_device_train_batch_size=8, **common)
    start = weights(whole)
    whole.train()
    parts = make_trainer(
        processor, rows, tmp_path, config, per_device_train_batch_size=2, gradient_accumulation_steps=4, **common
    )
    assert largest_difference(start, weights(parts)) == 0
    parts.train()
    moved = largest_difference(start, weights(whole))
    assert moved > 1e-4
    assert largest_difference(weights(whole), weights(parts)) < 1e-3 * moved


DRAWN_ANCHORS = {"objective": "safe_ranking", "objective_options": {"anchors": 5}}


@pytest.mark.parametrize(
    ("saved", "accumulation", "method"), [(3, 1, {}), (2, 1, {}), (4, 1, {}), (1, 2, {}), (2, 1, DRAWN_ANCHORS)]
)
def test_resuming_gives_the_same_weights_as_never_stopping(processor, rows, tmp_path, saved, accumulation, method):
    """At the end of an epoch and in the middle of one; with dropout and with anchors that are drawn, so that the random
    state has to come back too."""
    config = lora_config(lora_alpha=16, lora_dropout=0.1)
    common = {
        **method,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": saved,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    straight = make_trainer(processor, rows, tmp_path / "a", config, **common)
    straight.train()
    torch.rand(7)  # what is drawn between two runs must not matter
    resumed = make_trainer(processor, rows, tmp_path / "b", config, **common)
    resumed.train(str(tmp_path / "a" / f"checkpoint-{saved}"))
    assert resumed.state.global_step == 6
    assert largest_difference(weights(straight), weights(resumed)) == 0
    halfway = make_trainer(processor, rows, tmp_path / "c", config, **common)
    halfway._load_from_checkpoint(str(tmp_path / "a" / f"checkpoint-{saved}"))
    assert largest_difference(weights(straight), weights(halfway)) > 1e-4


def test_a_seed_trains_the_same_weights_whatever_was_drawn_before(processor, rows, tmp_path):
    config = lora_config(lora_alpha=16, lora_dropout=0.1)
    first = make_trainer(processor, rows, tmp_path, config, seed=3)
    first.train()
    second = make_trainer(processor, rows, tmp_path, config, seed=3)
    torch.rand(5)
    second.train()
    other = make_trainer(processor, rows, tmp_path, config, seed=4)
    other.train()
    assert largest_difference(weights(first), weights(second)) == 0
    assert largest_difference(weights(first), weights(other)) > 1e-4


def test_the_last_checkpoint_is_found_or_missed_with_a_cure(processor, rows, tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint in .*leave out --resume_from_checkpoint"):
        make_trainer(processor, rows, tmp_path / "a").train("last")
    with pytest.raises(UserError, match="nowhere is not a folder with a whole checkpoint"):
        make_trainer(processor, rows, tmp_path / "a").train("nowhere")
    make_trainer(processor, rows, tmp_path / "a", max_steps=2, save_strategy="steps", save_steps=2).train()
    resumed = make_trainer(processor, rows, tmp_path / "a", max_steps=3)
    resumed.train("last")
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry][-1] == 3


def test_a_data_set_that_changed_is_not_gone_on_with(processor, rows, tmp_path):
    make_trainer(processor, rows, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "kept")  # of any name
    shuffled = rows.select([1, 0, *range(2, len(rows))])
    other = rows.map(lambda row: {"unsafe_caption": row["unsafe_caption"].replace("green", "blue")})
    for changed, said in (
        (rows.select(range(20)), "there were 24 rows and are 20; safe_caption, unsafe_caption, .* differ"),
        (rows.remove_columns("unsafe_image"), "which items there are, or their labels, differ"),
        (rows.add_column("unsafe_caption_is_safe", [False] * 23 + [True]), "which items .* differ"),
        (shuffled, "safe_caption, unsafe_caption differ; safe_image, unsafe_image differ"),
        (other, "unsafe_caption differ"),
    ):
        resumed = make_trainer(processor, changed, tmp_path, max_steps=4)
        with pytest.raises(UserError, match=f"the training data are not those of .*kept: ?{said}. Go on with the data"):
            resumed.train(str(tmp_path / "kept"))
    resumed = make_trainer(processor, rows.select(range(24)), tmp_path, max_steps=4)
    resumed.train(str(tmp_path / "kept"))
    assert resumed.resumed_from == 2 and resumed.state.global_step == 4


def test_gradient_checkpointing_gives_the_same_weights(processor, rows, tmp_path):
    plain = make_trainer(processor, rows, tmp_path, max_steps=2)
    plain.train()
    checkpointed = make_trainer(
        processor, rows, tmp_path, max_steps=2, gradient_checkpointing=True, sides_are_right=True
    )
    calls = []
    layer = checkpointed.model.base_model.model.text_model.encoder.layers[1].mlp
    layer.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    checkpointed.train()
    # What the original says is known from the first training; per step the forward, and again for the backward.
    assert calls == [True, True] * 2
    assert largest_difference(weights(plain), weights(checkpointed)) < 1e-5


def test_bfloat16_training(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, bf16=True, use_cpu=True, max_steps=8)
    dtypes = set()
    layer = trainer.model.base_model.model.text_model.encoder.layers[0].mlp.fc1
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    trainer.train()
    assert dtypes == {torch.bfloat16}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def keep_best_of_every(steps):
    """Settings that evaluate and save so often and load the best at the end."""
    often = {"eval_strategy": "steps", "eval_steps": steps, "save_strategy": "steps", "save_steps": steps}
    return often | {"load_best_model_at_end": True}


def test_early_stopping_and_the_best_model(processor, rows, tmp_path):
    scores = iter([0.3, 0.9, 0.5, 0.8, 0.1])
    trainer = make_trainer(
        processor,
        rows,
        tmp_path,
        eval_rows=rows,
        compute_metrics=lambda prediction: {"score": next(scores)},
        max_steps=40,
        **keep_best_of_every(1),
        metric_for_best_model="eval_score",
        greater_is_better=True,
        early_stopping_patience=2,
    )
    trainer.train()
    assert trainer.state.global_step == 4  # two after the best
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(set(losses)) == 4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[1], abs=1e-5)


def test_safety_figures_can_select_the_best_model(processor, rows, tmp_path):
    trainer = make_trainer(
        processor,
        rows,
        tmp_path,
        eval_rows=rows,
        compute_metrics=compute_metrics,
        **keep_best_of_every(2),
        metric_for_best_model="eval_redirection_safe_rate",
        greater_is_better=True,
    )
    trainer.train()
    seen = [entry["eval_redirection_safe_rate"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == max(seen)
    # What the trainer measures is what the evaluation measures: no caption occurs twice here.
    figures = evaluate_quadruplets(trainer.model, processor, rows)
    assert {name: trainer.evaluate()[f"eval_{name}"] for name in figures} == pytest.approx(figures)


def test_tensorboard_gets_the_terms(processor, rows, tmp_path):
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "logs")
    try:
        make_trainer(processor, rows, tmp_path, report_to="tensorboard").train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event_file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(event_file)).Reload()
    assert {f"train/{name}" for name in PAPER_WEIGHTS} <= set(events.Tags()["scalars"])


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(processor, rows, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.objective.logit_scale = float("nan")

    trainer = make_trainer(processor, rows, tmp_path, max_steps=9, save_strategy="steps", save_steps=2)
    trainer.add_callback(Poison())
    message = (
        r"the loss \(preservation_text_contrastive.*\) is not a finite number after step 2; .*lower --learning_rate"
    )
    with pytest.raises(UserError, match=message + ".*--resume_from_checkpoint .*checkpoint-2"):
        trainer.train()
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    resumed = make_trainer(processor, rows, tmp_path, max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, max_grad_norm=0.0)
    start = weights(trainer)
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(UserError, match="the gradient is not a finite number after step 0; no weight was moved by it"):
        trainer.train()
    assert largest_difference(start, weights(trainer)) == 0


def test_the_best_model_by_a_loss_term_is_the_lowest(tmp_path):
    common = {"output_dir": str(tmp_path), "eval_strategy": "epoch", "save_strategy": "epoch"}
    common |= {"load_best_model_at_end": True}
    by_term = SafeCLIPTrainingArguments(metric_for_best_model="eval_redirection_image_cosine", **common)
    by_rate = SafeCLIPTrainingArguments(metric_for_best_model="eval_redirection_safe_rate", **common)
    assert by_term.greater_is_better is False and by_rate.greater_is_better is True
    SafeCLIPTrainingArguments(metric_for_best_model="eval_redirection_image_ranking", frozen_gallery=True, **common)
    with pytest.raises(UserError, match="is measured in the model's own gallery, .*: use eval_loss"):
        SafeCLIPTrainingArguments(metric_for_best_model="eval_redirection_safe_rate", frozen_gallery=True, **common)


def test_errors_before_training_are_not_hidden(processor, rows, tmp_path):
    trainer = make_trainer(processor, None, tmp_path)
    with pytest.raises(ValueError, match="requires a train_dataset"):
        trainer.train()


def test_what_cannot_be_trained_is_said_at_once(processor, rows, tmp_path):
    from datasets import DatasetDict
    from peft import PeftModel, get_peft_model

    args = SafeCLIPTrainingArguments(output_dir=str(tmp_path), report_to="none")
    get_peft_model(build_model(processor), NO_DROPOUT).save_pretrained(tmp_path / "adapter")
    frozen = PeftModel.from_pretrained(build_model(processor), tmp_path / "adapter")
    with pytest.raises(UserError, match="load an adapter with is_trainable=True"):
        SafeCLIPTrainer(frozen, args, rows, processing_class=processor)
    with pytest.raises(UserError, match="pass its CLIPProcessor or SiglipProcessor as processing_class"):
        SafeCLIPTrainer(build_model(processor), args, rows)
    with pytest.raises(UserError, match=r"a dictionary of splits \('train'\); name one, such as rows\['train'\]"):
        make_trainer(processor, DatasetDict(train=rows), tmp_path)
    with pytest.raises(UserError, match="init_lora_weights='pissa' takes weights out of the original"):
        make_trainer(processor, rows, tmp_path, LoraConfig(r=4, target_modules=["fc1"], init_lora_weights="pissa"))


FRESH = """
import sys, torch
from transformers import CLIPModel, CLIPProcessor, pipeline
from PIL import Image

image = Image.new("RGB", (40, 24), "red")
texts = ["a red square beside a blue one", "a green square with a mark"]
for folder in sys.argv[1:]:
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=texts, images=[image], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**inputs)
    found = pipeline("zero-shot-image-classification", folder)(image, texts)
    assert sorted(row["label"] for row in found) == sorted(texts)
    torch.save([output.text_embeds, output.image_embeds], f"{folder}.pt")
assert not [name for name in sys.modules if name.startswith(("safe_clip", "peft"))], "needs more than transformers"
"""


@pytest.mark.slow
def test_stock_transformers_loads_the_output(processor, rows, tmp_path):
    from PIL import Image

    trained = {}
    for name, peft_config, rate in (("lora", NO_DROPOUT, 1e-2), ("full", None, 1e-3)):
        folder = tmp_path / name
        trainer = make_trainer(processor, rows, folder, peft_config, learning_rate=rate)
        trainer.train()
        trainer.save_model()
        trained[folder] = trainer.model.eval()
        assert {path.name for path in folder.iterdir()} == {
            ".safe_clip.lock",
            "config.json",
            "model.safetensors",
            "merges.txt",
            "preprocessor_config.json",
            "processor_config.json",
            "safe_clip.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "training_args.json",
            "vocab.json",
            *(["adapter"] if peft_config else []),
        }
    # A fresh process, in a folder from which safe_clip cannot be imported by chance.
    subprocess.run([sys.executable, "-c", FRESH, *map(str, trained)], check=True, cwd=tmp_path)
    inputs = processor(
        text=["a red square beside a blue one", "a green square with a mark"],
        images=[Image.new("RGB", (40, 24), "red")],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        original = build_model(processor)(**inputs)
        for folder, model in trained.items():
            text_embeds, image_embeds = torch.load(f"{folder}.pt")
            expected = model(**inputs)
            assert (text_embeds - expected.text_embeds).abs().max() < 1e-5
            assert (image_embeds - expected.image_embeds).abs().max() < 1e-5
            assert (text_embeds - original.text_embeds).abs().max() > 1e-3


def test_saving_the_drop_in_does_not_disturb_training(processor, rows, tmp_path):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            saving.save_model()

    plain = make_trainer(processor, rows, tmp_path / "a", lora_config(lora_alpha=16, lora_dropout=0.1))
    plain.train()
    saving = make_trainer(processor, rows, tmp_path / "b", lora_config(lora_alpha=16, lora_dropout=0.1))
    saving.add_callback(Save())
    saving.train()
    assert largest_difference(weights(plain), weights(saving)) == 0


def test_model_by_name_finds_its_processor(model_dir, rows, tmp_path):
    args = SafeCLIPTrainingArguments(output_dir=str(tmp_path), report_to="none")
    trainer = SafeCLIPTrainer(model_dir, args, train_dataset=rows)
    assert len(trainer.processing_class.tokenizer) == trainer.model.config.text_config.vocab_size
    assert trainer.model.peft_config["default"].lora_alpha == 32


def test_pushed_checkpoints_have_the_drop_in_at_the_root(processor, rows, tmp_path, monkeypatch):
    """The adapter's files there would be taken for the model by `from_pretrained`."""
    from concurrent.futures import Future

    pushed = []

    def upload_folder(folder_path, path_in_repo="", run_as_future=False, **kwargs):
        names = {path.name for path in Path(folder_path).iterdir() if path.is_file()}
        pushed.append((path_in_repo, names))
        future = Future()
        future.set_result(None)
        return future

    def init_hf_repo(self, **kwargs):
        self.hub_model_id, self.push_in_progress = "user/safe-clip", None

    monkeypatch.setattr("safe_clip.training.hub.upload_folder", upload_folder)
    monkeypatch.setattr(SafeCLIPTrainer, "init_hf_repo", init_hf_repo)
    trainer = make_trainer(
        processor,
        rows,
        tmp_path,
        save_strategy="steps",
        save_steps=2,
        push_to_hub=True,
        hub_strategy="checkpoint",
        hub_token="secret-token",
    )
    trainer.train()
    root, checkpoint = pushed[0], pushed[1]
    assert root[0] == "" and {"model.safetensors", "config.json", "tokenizer.json"} <= root[1]
    assert not any("adapter" in name for name in root[1])
    assert checkpoint[0] == "last-checkpoint" and "adapter_model.safetensors" in checkpoint[1]
    CLIPModel.from_pretrained(tmp_path)
    assert "secret-token" not in (tmp_path / "training_args.json").read_text()


def test_data_that_redirect_nothing_are_refused_at_once(processor, rows, tmp_path):
    with pytest.raises(UserError, match="has what redirection_text_cosine, .* need, so nothing would be made safe"):
        make_trainer(processor, rows.remove_columns(["unsafe_caption", "unsafe_image"]), tmp_path)
    safe = rows.add_column("unsafe_caption_is_safe", [True] * 24).add_column("unsafe_image_is_safe", [True] * 24)
    with pytest.raises(
        UserError, match="has what redirection_text_ranking, redirection_image_ranking, redirection_text_st"
    ):
        make_trainer(processor, safe, tmp_path, objective="safe_ranking")
    with pytest.raises(UserError, match="the data set lacks the columns 'safe_caption'"):
        make_trainer(processor, rows.rename_columns({name: f"my_{name}" for name in rows.column_names}), tmp_path)


def never(*args, **kwargs):
    raise AssertionError("this tower has nothing to do")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("peft_config", [NO_DROPOUT, None], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("lacking", "idle"), [("image", ("vision_model", "visual_")), ("caption", ("text_model", "text_"))]
)
def test_data_of_one_modality_train_its_tower_and_never_run_the_other(
    objective, peft_config, lacking, idle, processor, rows, tmp_path
):
    rows = rows.remove_columns([f"safe_{lacking}", f"unsafe_{lacking}"])
    rate = 1e-2 if peft_config else 1e-3
    trainer = make_trainer(
        processor, rows, tmp_path, peft_config, rows.select(range(8)), compute_metrics, objective=objective,
        max_steps=15, learning_rate=rate, eval_strategy="steps", eval_steps=15, strength=0.5,
    )  # fmt: skip
    modality = "text" if lacking == "image" else "image"
    base = trainer.model.get_base_model() if peft_config else trainer.model
    getattr(base, idle[0]).forward = never
    if trainer.reference._copy is not None:
        getattr(trainer.reference._copy, idle[0]).forward = never
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3])
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert 0 <= evaluated[f"eval_counterpart_{modality}"] <= 1
    trainer.save_model()
    before, after = build_model(processor), CLIPModel.from_pretrained(tmp_path)
    moved = {name for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True) if (p != q).any()}
    assert moved and not any(name.startswith(idle) for name in moved)


def test_a_mixed_data_set_trains_as_its_parts_say(processor, rows, tmp_path):
    """A step over rows of which some lack images: the gradient is that of each term over the rows that have it."""
    table = rows.with_format("arrow")[:].to_pylist()
    for row in table[1::2]:
        row["safe_image"] = row["unsafe_image"] = None
    mixed = Dataset.from_list(table, features=rows.features)
    trainer = make_trainer(processor, mixed, tmp_path, None, objective="safe_clip")
    assert trainer.term_rows["preservation_text_cosine"] == 24 and trainer.term_rows["redirection_image_cosine"] == 12
    parts = {"text": rows.select(range(8)), "image": rows.select(range(0, 8, 2))}
    whole = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
    loss, _ = trainer.compute_loss(trainer.model.eval(), whole, return_outputs=True)
    expected = 0.0
    for modality, chosen in parts.items():
        needs_text_alone = {
            name: 0.0 for name in PAPER_WEIGHTS if name.endswith("_text_cosine") != (modality == "text")
        }
        part = make_trainer(processor, chosen, tmp_path, None, objective="safe_clip")
        part.objective.weights = PAPER_WEIGHTS | needs_text_alone
        batch = part.data_collator([part.train_dataset[index] for index in range(len(chosen))])
        scale = sum(part.objective.weights.values()) / sum(PAPER_WEIGHTS.values())
        expected += scale * part.compute_loss(part.model.eval(), batch).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert set(PAPER_WEIGHTS) <= logged.keys()


def test_labels_turn_redirection_into_preservation(processor, rows, tmp_path):
    """An item of the unsafe side that is labelled harmless is pulled to where the original put it, not to its pair."""
    labelled = rows.add_column("unsafe_caption_is_safe", [True] + [None] * 23)
    trainer = make_trainer(processor, labelled, tmp_path, None, loss_weights=COSINE_ONLY)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    with torch.no_grad():
        original = build_model(processor)
        trainer.model.text_projection.weight.add_(0.3 * torch.randn_like(trainer.model.text_projection.weight))
        texts = processor.tokenizer(
            [rows[0]["safe_caption"], rows[0]["unsafe_caption"]], return_tensors="pt", padding=True
        )
        made, before = (
            torch.nn.functional.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
            for model in (trainer.model, original)
        )
        embeds = trainer.step.embed(trainer.model.eval(), batch)
        terms = trainer.objective(embeds, trainer.targets(batch, training=False))[1]
    assert "redirection_text_cosine" not in terms and "redirection_image_cosine" in terms
    kept = (1 - (made * before).sum(dim=1)).mean()
    assert terms["preservation_text_cosine"].item() == pytest.approx(kept.item(), abs=1e-5)


def test_images_are_cached_where_there_is_room_or_where_asked_for(processor, rows, tmp_path, monkeypatch):
    from safe_clip.training import caching as module

    def cached(**settings):
        trainer = make_trainer(processor, rows, tmp_path, max_steps=1, **settings)
        trainer.train()
        return trainer.train_dataset.shape

    assert cached() == cached(cache_images="on") == (3, 16, 16) and cached(cache_images="off") is None
    monkeypatch.setattr(module, "has_room", lambda size: size < 24 * 2 * 3 * 16 * 16)
    assert cached() is None and cached(cache_images="on") == (3, 16, 16)
    with pytest.raises(UserError, match="--cache_images on requires rows of a data set, no stream"):
        make_trainer(processor, rows.to_iterable_dataset(), tmp_path, max_steps=1, cache_images="on").train()


def test_cached_images_train_the_same_weights(processor, rows, tmp_path):
    trained = []
    for cache in ("on", "off"):
        trainer = make_trainer(processor, rows, tmp_path / cache, max_steps=4, cache_images=cache)
        trainer.train()
        trained.append(weights(trainer))
    assert largest_difference(*trained) < 1e-6


def test_a_checkpoint_that_was_cut_off_is_none(processor, rows, tmp_path):
    make_trainer(processor, rows, tmp_path, max_steps=3, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("")  # as a full disk leaves it
    resumed = make_trainer(processor, rows, tmp_path, max_steps=3)
    with pytest.raises(UserError, match="checkpoint-3 is not a folder with a whole checkpoint"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    resumed.train(resume_from_checkpoint="last")
    assert resumed.resumed_from == 2


def test_a_metric_that_the_data_do_not_have_is_said_in_one_line(processor, rows, tmp_path):
    texts = rows.remove_columns(["safe_image", "unsafe_image"])
    trainer = make_trainer(
        processor, texts, tmp_path, eval_rows=texts.select(range(8)), compute_metrics=compute_metrics,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_redirection_safe_rate",
    )  # fmt: skip
    with pytest.raises(UserError, match="--metric_for_best_model: .*eval_redirection_safe_rate.*eval_counterpart_text"):
        trainer.train()


def test_a_frozen_gallery_requires_something_to_search_across(processor, rows, tmp_path):
    captions = rows.select_columns(["safe_caption", "unsafe_caption"])
    with pytest.raises(UserError, match="--frozen_gallery is for searches of images by captions"):
        make_trainer(processor, captions, tmp_path, objective="safe_ranking", frozen_gallery=True)
    with pytest.raises(UserError, match="names frozen_gallery, a setting of its own"):
        SafeCLIPTrainingArguments(output_dir=str(tmp_path), objective_options={"frozen_gallery": True})
    trainer = make_trainer(processor, rows, tmp_path, objective="safe_ranking", frozen_gallery=True)
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    assert trainer.objective.frozen_gallery and len(trainer.targets(batch, training=True).items.unsafe_image) == 4
