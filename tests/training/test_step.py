"""A step in chunks, whose gradient is that of the whole step at once."""

import shutil
from collections import defaultdict

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from safe_clip import SafeCLIPTrainingArguments, UserError, lora_config
from safe_clip.items import ItemBatch, Layout, Quadruplets
from safe_clip.objectives import OBJECTIVES
from safe_clip.objectives.base import BatchTargets

from ..helpers import largest_difference, make_trainer, weights

MOVED = LoraConfig(r=4, target_modules=["fc1", "out_proj"], init_lora_weights=False)  # else half of gradients are 0
ONE_STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients_of_a_step(processor, rows, folder, watch=None, **settings):
    torch.manual_seed(1)
    trainer = make_trainer(processor, rows, folder, settings.pop("adapter", MOVED), **ONE_STEP, **settings)
    gradients = Gradients()
    if watch is not None:
        trainer.model.register_forward_pre_hook(watch)
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.seen, next(entry for entry in trainer.state.log_history if "loss" in entry)


def with_gaps(rows):
    table = rows.with_format("arrow")[:].to_pylist()
    for index, row in enumerate(table):
        if index % 3:
            row["unsafe_image" if index % 3 == 1 else "safe_caption"] = None
    return Dataset.from_list(table, features=rows.features)


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_chunks_give_the_gradient_and_the_terms_of_the_whole_step(objective, gaps, processor, rows, tmp_path):
    rows = with_gaps(rows) if gaps else rows
    common = {"objective": objective}
    plain, log = gradients_of_a_step(processor, rows, tmp_path, per_device_train_batch_size=12, **common)
    chunks = {"per_device_train_batch_size": 3, "contrastive_batch_size": 12, **common}
    chunked, chunked_log = gradients_of_a_step(processor, rows, tmp_path, **chunks)
    largest = max(gradient.abs().max().item() for gradient in plain.values())
    assert largest > 1e-2 and largest_difference(plain, chunked) < 1e-5 * max(1, largest)
    terms = [name for name in log if "_" in name and name not in ("learning_rate", "grad_norm")] + ["loss"]
    assert {name: chunked_log[name] for name in terms} == pytest.approx({name: log[name] for name in terms}, rel=1e-4)
    # Batches of 3 alone are something else: their negatives are fewer.
    alone, _ = gradients_of_a_step(
        processor, rows, tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=4, **common
    )
    assert largest_difference(plain, alone) > 1e-3 * largest


def test_chunks_are_kept_where_they_cannot_be_read_again(processor, rows, tmp_path):
    chunks = {"per_device_train_batch_size": 3, "contrastive_batch_size": 12, "objective": "safe_clip"}
    again, _ = gradients_of_a_step(processor, rows, tmp_path, cache_images="on", **chunks)
    kept, _ = gradients_of_a_step(processor, rows, tmp_path, cache_images="off", **chunks)
    assert largest_difference(again, kept) < 1e-7
    # Of a stream, and cropped at random: both passes have to see the same.
    stream = make_trainer(
        processor, rows.to_iterable_dataset(4), tmp_path, MOVED, random_crop=0.5, **ONE_STEP, **chunks
    )
    passes = []

    def watch(module, inputs, named):
        if module.training:  # as the original never is, which is run in between
            passes.append(named["pixel_values"].clone())

    stream.model.base_model.model.vision_model.register_forward_pre_hook(watch, with_kwargs=True)
    stream.train()
    assert len(passes) == 8
    first, second = passes[:4], passes[4:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_both_passes_drop_the_same(processor, rows, tmp_path):
    """With dropout, the gradient is that of the chunks embedded one after the other, with activations kept."""
    adapter = LoraConfig(r=4, lora_dropout=0.5, target_modules=["fc1", "out_proj"], init_lora_weights=False)
    settings = {"per_device_train_batch_size": 4, "contrastive_batch_size": 12, "adapter": adapter}
    settings |= {"objective": "safe_clip", "train_sampling_strategy": "sequential"}
    states = []

    def watch(model, inputs):
        if model.training:
            states.append(torch.get_rng_state())

    chunked, log = gradients_of_a_step(processor, rows, tmp_path, watch, **settings)
    assert len(states) == 6 and all(map(torch.equal, states[:3], states[3:]))

    torch.manual_seed(1)
    trainer = make_trainer(processor, rows, tmp_path, adapter, objective="safe_clip", **ONE_STEP)
    batches = [
        trainer.data_collator([trainer.train_dataset[row] for row in range(first, first + 4)]) for first in (0, 4, 8)
    ]
    targets = [trainer.targets.of(batch, training=False) for batch in batches]
    torch.set_rng_state(states[0])
    trainer.model.train()
    whole = Quadruplets.join([trainer.step.embed(trainer.model, batch) for batch in batches])
    reference = trainer.targets.complete(Quadruplets.join(targets), training=False)
    loss, _ = trainer.objective(whole, reference)
    loss.backward()
    expected = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert largest_difference(expected, chunked) < 1e-5
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    other, _ = gradients_of_a_step(processor, rows, tmp_path, **settings, seed=7)
    assert largest_difference(other, chunked) > 1e-4  # so that dropout matters here


def test_resuming_in_chunks_gives_the_same_weights_as_never_stopping(processor, rows, tmp_path):
    """With dropout and anchors that are drawn; the second of two steps of an epoch is the first after resuming."""
    config = lora_config(lora_alpha=16, lora_dropout=0.1)
    common = {"objective": "safe_ranking", "objective_options": {"anchors": 5}, "max_steps": 4, "save_steps": 1}
    common |= {"save_strategy": "steps", "per_device_train_batch_size": 4, "contrastive_batch_size": 12}
    straight = make_trainer(processor, rows, tmp_path / "a", config, **common)
    straight.train()
    resumed = make_trainer(processor, rows, tmp_path / "b", config, **common)
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    torch.rand(7)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.resumed_from == 3 and resumed.state.global_step == 4
    assert largest_difference(weights(straight), weights(resumed)) == 0


def test_the_last_step_of_an_epoch_may_be_shorter(processor, rows, tmp_path):
    """Of 24 rows, a contrastive batch of 18 leaves 6, in two chunks of three."""
    trainer = make_trainer(
        processor, rows, tmp_path, per_device_train_batch_size=3, contrastive_batch_size=18, max_steps=4
    )
    trainer.train()
    assert trainer.state.epoch == 2 and trainer.state.global_step == 4


def test_a_contrastive_batch_is_made_of_whole_chunks(tmp_path, monkeypatch):
    def made(**settings):
        return SafeCLIPTrainingArguments(str(tmp_path), report_to="none", **settings)

    args = made(per_device_train_batch_size=8, contrastive_batch_size=32)
    assert args.gradient_accumulation_steps == 4 and args.changed["contrastive_batch_size"] == 32
    with pytest.raises(UserError, match=r"--contrastive_batch_size 30 must be a multiple of .* 8 x 1 devices = 8\."):
        made(per_device_train_batch_size=8, contrastive_batch_size=30)
    with pytest.raises(UserError, match=r"--contrastive_batch_size 4 must be a multiple"):
        made(per_device_train_batch_size=8, contrastive_batch_size=4)
    with pytest.raises(UserError, match="--auto_find_batch_size would change --contrastive_batch_size"):
        made(per_device_train_batch_size=8, contrastive_batch_size=32, auto_find_batch_size=True)
    with pytest.raises(UserError, match="here of 4 chunks; leave it out"):
        made(per_device_train_batch_size=8, contrastive_batch_size=32, gradient_accumulation_steps=2)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_over_few_rows_at_a_time_and_in_shares_is_the_loss(objective):
    generator = torch.Generator().manual_seed(0)

    def drawn(count):
        return torch.nn.functional.normalize(torch.randn(count, 6, generator=generator), dim=1)

    present = torch.rand(11, 4, generator=generator) > 0.2
    labels = (torch.rand(11, generator=generator) > share for share in (0.7, 0.6))
    layout = Layout(present.numpy(), *(label.numpy() for label in labels))
    original = Quadruplets.packed([drawn(11) for _ in range(4)], layout)
    anchors = {name: ItemBatch(drawn(5), torch.arange(5)) for name in ("text", "image")}
    reference = BatchTargets(original, anchors, progress=0.5)
    items = [drawn(11) for _ in range(4)]

    def computed(processes=None, places=None):
        leaves = [each.clone().requires_grad_() for each in items]
        embeds = Quadruplets.packed(leaves, layout)
        chosen = OBJECTIVES[objective](7.0)
        if processes is None:
            loss, terms = chosen(embeds, reference)
        else:
            terms = defaultdict(float)
            for process in range(processes):
                means = chosen.means(embeds, reference)
                for name, value in chosen.chunks(means, embeds.device, process, processes, places):
                    assert value.dtype == torch.float32
                    terms[name] += value
            loss = chosen.total(terms)
        loss.backward()
        terms = {name: value.item() for name, value in terms.items()}
        return (
            loss.item(),
            terms,
            [leaf.grad for leaf in leaves],
        )

    loss, terms, gradients = computed()
    for places, processes in ((3, 1), (512, 2), (2, 3), (512, 20)):
        other, other_terms, other_gradients = computed(processes, places)
        assert other == pytest.approx(loss, rel=1e-5) and other_terms == pytest.approx(terms, rel=1e-5)
        for gradient, other_gradient in zip(gradients, other_gradients, strict=True):
            assert torch.allclose(gradient, other_gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
