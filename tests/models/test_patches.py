"""Ways of computing that change what it costs, and nothing else."""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel

from safe_clip import (
    QuadrupletCollator,
    QuadrupletRows,
    SafeCLIPTrainer,
    SafeCLIPTrainingArguments,
    UserError,
    lora_config,
)
from safe_clip.config import parse_arguments
from safe_clip.data.collator import model_inputs
from safe_clip.data.sampling import SimilarLengths
from safe_clip.models.patches import QuickGELU, cached_casts, training_patches
from safe_clip.training import arguments as module
from safe_clip.training.construction import prepare_sharding

from ..helpers import FEATURES, NO_DROPOUT, build_model, largest_difference, make_rows, make_trainer, weights

CPU = torch.device("cpu")
MOVED = LoraConfig(r=4, target_modules=["k_proj", "fc1", "patch_embedding"], init_lora_weights=False)
DORA = LoraConfig(r=4, target_modules=["fc1"], init_lora_weights=False, use_dora=True)


@pytest.fixture
def inputs(processor, rows):
    return model_inputs(QuadrupletCollator(processor, 77)([QuadrupletRows(rows)[index] for index in range(6)]))


def made(model, inputs):
    """Embeddings, and gradients with respect to what is trained."""
    model.zero_grad()
    output = model(**inputs)
    targets = torch.linspace(-1, 1, output.text_embeds.numel()).view_as(output.text_embeds)
    ((output.text_embeds * targets).sum() + (output.image_embeds * targets.flip(0)).sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.text_embeds.detach(), output.image_embeds.detach(), gradients


@pytest.mark.parametrize("adapter", [MOVED, DORA, None], ids=["lora", "dora", "full"])
def test_embeddings_and_gradients_stay_what_they_were(adapter, processor, inputs):
    torch.manual_seed(0)
    model = build_model(processor)
    model = model if adapter is None else get_peft_model(model, adapter)
    fast = copy.deepcopy(model)
    with training_patches(fast, CPU):
        fast = copy.deepcopy(fast)  # which keeps them
    base = fast if adapter is None else fast.get_base_model()
    assert isinstance(base.text_model.encoder.layers[0].mlp.activation_fn, QuickGELU)
    assert base.config.vision_config._attn_implementation == "eager"
    text, image, gradients = made(model, inputs)
    fast_text, fast_image, fast_gradients = made(fast, inputs)
    assert (text - fast_text).abs().max() < 1e-5 and (image - fast_image).abs().max() < 1e-5
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert largest > 0.1 and largest_difference(gradients, fast_gradients) < 1e-5 * max(1, largest)


def test_the_adapter_that_is_off_leaves_the_original(processor, inputs):
    original = build_model(processor)
    model = get_peft_model(build_model(processor), MOVED)
    with training_patches(model, CPU), torch.no_grad():
        expected, moved = original(**inputs), model(**inputs)
        with model.disable_adapter():
            back = model(**inputs)
    assert (back.text_embeds - expected.text_embeds).abs().max() < 1e-5
    assert (moved.text_embeds - expected.text_embeds).abs().max() > 1e-3


def test_casts_that_are_kept_are_the_casts(processor, inputs):
    model = get_peft_model(build_model(processor), MOVED)
    projection = model.get_base_model().text_projection
    with training_patches(model, CPU), torch.autocast("cpu", torch.bfloat16):
        text, image, gradients = made(model, inputs)
        with cached_casts(model):
            kept_text, kept_image, kept_gradients = made(model, inputs)
            assert projection._cast[0].dtype == torch.bfloat16
            saved = copy.deepcopy(model)
            with torch.no_grad():
                projection.weight.mul_(2)  # what must not be done meanwhile: nobody looks at the weight
                assert torch.equal(model(**inputs).text_embeds, kept_text)
                projection.weight.div_(2)
        assert not hasattr(projection, "_cast") and "forward" not in vars(projection)
    assert torch.equal(text, kept_text) and torch.equal(image, kept_image)
    assert largest_difference(gradients, kept_gradients) == 0
    # In float32 the weights themselves are used, and a copy's are its own.
    with cached_casts(model), torch.no_grad():
        assert (model(**inputs).text_embeds - saved(**inputs).text_embeds).abs().max() < 1e-6
    merged = saved.merge_and_unload()
    assert isinstance(merged, CLIPModel) and merged.text_projection.weight.dtype == torch.float32


def test_casts_are_for_training_whoever_comes_first(processor, inputs):
    model = get_peft_model(build_model(processor), MOVED)
    mine = model.get_base_model().text_projection
    mine.forward = lambda x: torch.nn.functional.linear(x, 2 * mine.weight)  # what others made of a layer stays
    with training_patches(model, CPU), cached_casts(model), torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            first = model(**inputs)
        text, _, gradients = made(model, inputs)
    assert torch.equal(text, first.text_embeds) and gradients
    assert "forward" in vars(mine)


def test_a_base_in_half_precision_trains_as_it_did(processor, rows, tmp_path):
    base = build_model(processor).to(torch.bfloat16)
    args = SafeCLIPTrainingArguments(
        str(tmp_path), report_to="none", disable_tqdm=True, bf16=False, max_steps=2, logging_steps=1,
        per_device_train_batch_size=8, save_strategy="no",
    )  # fmt: skip
    trainer = SafeCLIPTrainer(base, args, rows, processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)


def test_bfloat16_trains_about_what_float32_trains(processor, rows, tmp_path):
    losses = {}
    for bf16 in (False, True):
        trainer = make_trainer(processor, rows, tmp_path, max_steps=12, bf16=bf16, use_cpu=True, learning_rate=2e-3)
        trainer.train()
        losses[bf16] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], rel=0.05) and losses[True] != losses[False]
    assert losses[True][-1] < losses[True][0]


@pytest.mark.parametrize(
    ("able", "given", "launched", "expected"),
    [
        ({"amx_bf16": True}, None, None, True),
        ({"avx512_bf16": True}, None, "no", True),
        ({"avx2": True}, None, None, False),
        ({"amx_bf16": True}, False, None, False),
        ({}, True, None, True),
        ({"amx_bf16": True}, None, "fp16", False),
        ({"amx_bf16": True}, False, "bf16", False),
    ],
)
def test_bfloat16_where_the_device_is_faster_in_it(able, given, launched, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    args = SafeCLIPTrainingArguments(str(tmp_path), report_to="none", bf16=given)
    assert args.bf16 is expected
    asked = launched if given is None else None  # a flag counts for more than what was launched with
    assert args.mixed_precision == ("bf16" if expected else asked or "no")
    assert "bf16" not in args.changed or given is not None
    assert args.dataloader_num_workers == 0 and args.dataloader_persistent_workers is False


def test_flags_of_precision(tmp_path):
    def parsed(*flags):
        words = ["--output_dir", str(tmp_path), "--report_to", "none", *flags]
        return parse_arguments([SafeCLIPTrainingArguments], words)[0]

    assert parsed("--bf16").bf16 is True and parsed("--bf16", "true").bf16 is True
    assert parsed("--bf16", "false").bf16 is False
    assert parsed("--bf16").changed["bf16"] is True and "bf16" not in parsed().changed


def test_workers_beside_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(24)), raising=False)
    seen = {}

    def stop(self):
        seen.update(vars(self))
        raise SystemExit

    monkeypatch.setattr(module.TrainingArguments, "__post_init__", stop)
    for processes, workers in (("1", 8), ("6", 4)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        with pytest.raises(SystemExit):
            SafeCLIPTrainingArguments(str(tmp_path))
        assert seen["dataloader_num_workers"] == workers and seen["dataloader_persistent_workers"] is True
        assert seen["accelerator_config"] == {"non_blocking": True} and seen["bf16"] is False


def test_lengths_are_few_where_each_is_compiled(processor):
    captions = ["a red square", "a red square beside a blue one with a mark " * 4]
    lengths = [len(ids) for ids in processor.tokenizer(captions)["input_ids"]]
    for multiple, expected in ((1, max(lengths)), (8, -(-max(lengths) // 8) * 8), (64, 64), (70, 70), (90, 77)):
        collate = QuadrupletCollator(processor, 77, multiple)
        batch = collate([{"safe_caption": caption, "unsafe_caption": caption} for caption in captions])
        assert batch["attention_mask"].shape == batch["input_ids"].shape == (4, expected)
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths * 2
        assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) <= {processor.tokenizer.pad_token_id}


def test_compiled_steps_are_the_steps_and_are_compiled_few_times(processor, rows, tmp_path):
    longer = [f"{caption}{' with a mark' * (index % 7)}" for index, caption in enumerate(rows["safe_caption"])]
    rows = rows.remove_columns("safe_caption").add_column("safe_caption", longer)
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "objective": "safe_clip"}
    # Of one layer: to compile is most of the time, and grows with each.
    plain = make_trainer(processor, rows, tmp_path, model=build_model(processor, layers=1), **settings)
    plain.train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings["torch_compile_backend"] = "aot_eager"
    compiled = make_trainer(processor, rows, tmp_path, model=build_model(processor, layers=1), **settings)
    lengths = set()
    collate = compiled.data_collator

    def watched(batch):
        made = collate(batch)
        lengths.add(made["input_ids"].shape[1])
        return made

    compiled.data_collator = watched
    compiled.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 < len(lengths) + 1
    assert len(lengths) > 1 and all(length % 8 == 0 for length in lengths)
    assert largest_difference(weights(plain), weights(compiled)) < 1e-3
    losses = [[e["loss"] for e in each.state.log_history if "loss" in e] for each in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    compiled.save_model()
    CLIPModel.from_pretrained(tmp_path)


def test_batches_of_similar_lengths(processor, tmp_path):
    rows = Dataset.from_dict(make_rows(96), features=FEATURES)
    longer = [f"{caption}{' with a mark' * (index % 8)}" for index, caption in enumerate(rows["safe_caption"])]
    rows = rows.remove_columns("safe_caption").add_column("safe_caption", longer)
    data = QuadrupletRows(rows)
    sampler = SimilarLengths(4, data, processor.tokenizer, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(96)) and list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first

    def padded(order):
        return sum(
            max(map(len, processor.tokenizer([longer[row] for row in order[start : start + 4]])["input_ids"]))
            for start in range(0, 96, 4)
        )

    assert padded(first) < 0.9 * padded(list(range(96)))
    trainer = make_trainer(processor, rows, tmp_path, train_sampling_strategy="group_by_length", max_steps=13)
    assert isinstance(trainer._get_train_sampler(), SimilarLengths)
    trainer.train()
    assert trainer.state.global_step == 13 and trainer.state.epoch > 1


def test_resuming_with_similar_lengths(processor, rows, tmp_path):
    common = {"train_sampling_strategy": "group_by_length", "max_steps": 5, "save_strategy": "steps", "save_steps": 4}
    straight = make_trainer(processor, rows, tmp_path / "a", lora_config(lora_dropout=0.1), **common)
    straight.train()
    resumed = make_trainer(processor, rows, tmp_path / "b", lora_config(lora_dropout=0.1), **common)
    resumed.train(str(tmp_path / "a" / "checkpoint-4"))
    assert largest_difference(weights(straight), weights(resumed)) == 0


@pytest.mark.parametrize(
    ("version", "kind", "mixed", "said"),
    [
        (1, "FULL_STATE_DICT", False, "FSDP requires fsdp_version 2 and FULL_STATE_DICT checkpoints"),
        (2, "SHARDED_STATE_DICT", False, "FSDP requires fsdp_version 2 and FULL_STATE_DICT checkpoints"),
        (2, "FULL_STATE_DICT", True, "FSDP requires rows that have all items, or a single modality"),
    ],
)
def test_what_shards_cannot_do_is_said_at_once(version, kind, mixed, said, processor, rows, tmp_path):
    from torch.distributed.fsdp import StateDictType

    trainer = make_trainer(processor, rows, tmp_path, NO_DROPOUT)
    plugin = SimpleNamespace(fsdp_version=version, state_dict_type=StateDictType[kind])
    with pytest.raises(UserError, match=said):
        prepare_sharding(trainer.model, SimpleNamespace(fsdp_plugin=plugin), mixed, False)


def test_shards_of_weights_alone_are_refused(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path)
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    with pytest.raises(UserError, match="ZeRO-3 leaves no weights to save"):
        prepare_sharding(trainer.model, state, False, False)


def test_strength_of_all_weights_require_them_whole(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, None, strength=0.5)
    with pytest.raises(UserError, match="--strength with --full_finetuning requires DDP; under DeepSpeed, use LoRA"):
        prepare_sharding(trainer.model, SimpleNamespace(), False, trainer.args.strength != 1)


def ways(model):
    """What a model and its parts compute with: their own forwards, activations, casts and attention."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = {}
    for name, part in model.named_modules():
        own = {key for key in vars(part) if key in ("forward", "_original_forward", "cast_input_dtype_enabled")}
        found[name] = type(part), type(getattr(part, "activation_fn", None)), own
    configs = (base.config, base.config.text_config, base.config.vision_config)
    return found, [config._attn_implementation for config in configs]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_model_that_was_trained_computes_in_its_own_ways(full, bf16, processor, rows, tmp_path):
    """Nothing of training but weights and adapters is left in the caller's model, and the trainer can still be used."""
    model = build_model(processor)
    model = model if full else get_peft_model(model, NO_DROPOUT)
    before = ways(model)
    assert before[1] == ["sdpa"] * 3
    args = SafeCLIPTrainingArguments(
        str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True, bf16=bf16, max_steps=2, save_strategy="no",
        per_device_train_batch_size=8,
    )  # fmt: skip
    trainer = SafeCLIPTrainer(model, args, rows, rows, processor, None)
    assert ways(model) == before
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(ways(model)))
    trainer.train()
    assert ways(model) == before != seen[0]
    first = trainer.evaluate()
    assert trainer.evaluate()["eval_loss"] == first["eval_loss"]
    assert ways(model) == before and before not in seen and seen[-1][1] == ["eager"] * 3
    trainer.save_model()
    assert ways(model) == before
    base = model if full else model.get_base_model()
    assert type(base).forward is CLIPModel.forward and base.forward.__func__ is CLIPModel.forward


def test_the_callers_ways_come_back_when_training_fails(model, processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path)
    before = ways(trainer.model)

    def fail(*args, **kwargs):
        raise RuntimeError("of a callback")

    trainer.compute_loss = fail
    with pytest.raises(RuntimeError, match="of a callback"):
        trainer.train()
    assert ways(trainer.model) == before
