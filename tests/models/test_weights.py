"""A checkpoint loads as what is in its file, to the bit, or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from safe_clip import UserError, load_clip, lora_config
from safe_clip.models.load import check_processor

from ..helpers import build_model

LOST, SCALE = "visual_projection.weight", "logit_scale"


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def compiled_inside(state):
    """As saved where the encoders were compiled, or distributed, one by one."""
    places = {"text_model.": "_orig_mod.text_model.", "vision_model.": "vision_model._orig_mod.module."}
    for old, new in places.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    return state


def in_two_parts(state):
    return {("image." if name.startswith("vis") else "text.") + name: value for name, value in state.items()}


def with_positions(state):
    """As OpenAI's and LAION's checkpoints are."""
    positions = {"text_model": torch.arange(77)[None], "vision_model": torch.arange(5)[None]}
    return state | {f"{tower}.embeddings.position_ids": value for tower, value in positions.items()}


def changed(name, change):
    return lambda state: state | {name: change(state[name])}


HARMLESS = {
    "as it is": lambda state: state,
    "compiled": prefixed("_orig_mod."),
    "distributed": prefixed("module."),
    "distributed and compiled": prefixed("module._orig_mod."),
    "inside a model": prefixed("model."),
    "inside lightning": prefixed("net.clip_model."),
    "inside PEFT": prefixed("base_model.model."),
    "towers compiled": compiled_inside,
    "towers apart": in_two_parts,
    "positions": with_positions,
    "positions, compiled": lambda state: prefixed("_orig_mod.")(with_positions(state)),
    "a scale in a list": changed(SCALE, lambda scale: scale[None]),
}


@pytest.fixture
def save(model_dir, tmp_path):
    """Writes the tiny CLIP with its weights changed, and its configuration."""

    def save(change=lambda state: state, **settings) -> str:
        shutil.copytree(model_dir, tmp_path / "changed")
        file = tmp_path / "changed" / "model.safetensors"
        state = {name: value.clone().contiguous() for name, value in change(load_file(file)).items()}
        save_file(state, file, metadata={"format": "pt"})
        configure(tmp_path / "changed", **settings)
        return str(tmp_path / "changed")

    return save


def configure(folder: Path, **settings) -> None:
    """Changes a `config.json`; a dictionary changes a part of it."""
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    for name, value in settings.items():
        config[name] = {**config[name], **value} if isinstance(config.get(name), dict) else value
    file.write_text(json.dumps(config))


def assert_same(model: CLIPModel, model_dir: str, convert=lambda value: value) -> None:
    expected = load_file(Path(model_dir, "model.safetensors"))
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], convert(value)), name


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_stands_around_names_is_understood(change, save, model_dir):
    before = torch.random.get_rng_state()
    model = load_clip(save(change))
    assert_same(model, model_dir)
    assert not model.training and model.dtype == torch.float32
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing was drawn


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, save, model_dir):
    folder = save(lambda state: {name: value.to(dtype) for name, value in state.items()})
    assert_same(load_clip(folder), model_dir, lambda value: value.to(dtype).float())


def test_it_knows_where_it_came_from(save):
    folder = save(prefixed("_orig_mod."))
    assert load_clip(folder).config._name_or_path == folder


def test_shards_are_put_together(processor, model_dir, tmp_path):
    build_model(processor).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same(load_clip(str(tmp_path)), model_dir)


DAMAGED = {
    "one lost": (lambda state: {n: v for n, v in state.items() if n != LOST}, rf"missing \(1 of 78\): {LOST}\."),
    "an encoder lost": (
        lambda state: {n: v for n, v in state.items() if not n.startswith("text_model")},
        r"missing \(36 of 78\): text_model\.[^,]*, text_model\.[^,]*, text_model\.[^,]*, \.\.\.",
    ),
    "compiled, one lost": (
        lambda state: prefixed("_orig_mod.")({n: v for n, v in state.items() if n != SCALE}),
        rf"missing \(1 of 78\): {SCALE}",
    ),
    "one more": (lambda state: state | {"head.weight": torch.ones(2)}, r"left over \(1 of 78\): head\.weight"),
    "turned": (
        changed(LOST, lambda value: value.T),
        rf"of another shape \(1 of 78\): {LOST} \(32x24 in the file, 24x32 by the configuration\)",
    ),
    "twice": (lambda state: state | {f"ema.{LOST}": state[LOST] + 1}, rf"there twice \(1 of 78\): {LOST}"),
    "two models": (
        lambda state: prefixed("student.")(state) | prefixed("teacher.")(state),
        r"there twice \(78 of 78\)",
    ),
    "another model": (
        lambda state: {f"layer.{number}": value for number, value in enumerate(state.values())},
        r"none of its 78 tensors \(layer\.",
    ),
    "whole numbers": (
        changed(LOST, lambda value: (value * 100).to(torch.int8)),
        rf"not stored as floating-point numbers \(1 of 78\): {LOST} \(I8\)",
    ),
    "eight bits": (
        lambda state: {n: v.to(torch.float8_e4m3fn) for n, v in state.items()},
        r"not stored as floating-point numbers \(78 of 78\)",
    ),
    "not a number": (changed(LOST, lambda value: value * torch.nan), rf"not finite numbers \(1\): {LOST}"),
    "one infinity": (
        changed("text_model.final_layer_norm.bias", lambda bias: bias.index_fill(0, torch.tensor([3]), torch.inf)),
        r"not finite numbers \(1\): text_model\.final_layer_norm\.bias",
    ),
    "zeros": (changed(LOST, torch.zeros_like), rf"hold nothing but zeros \(1\): {LOST}"),
    "a factor for its logarithm": (changed(SCALE, torch.exp), r"logit_scale is 14\.\d+, the logarithm of a factor"),
}


@pytest.mark.parametrize(("change", "said"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_not_all_of_the_model_is_refused(change, said, save):
    folder = save(change)
    with pytest.raises(UserError, match=said) as error:
        load_clip(folder)
    assert str(error.value).startswith(f"--model {folder}: ") and "\n" not in str(error.value)


def test_an_adapter_that_was_not_merged_is_refused(processor, save):
    state = get_peft_model(build_model(processor), lora_config()).state_dict()
    folder = save(lambda _: state)
    with pytest.raises(UserError, match=r"adapter layers are still in it, call `merge_and_unload\(\)` before saving"):
        load_clip(folder)


CONFIGURED = {
    "more layers": ({"text_config": {"num_hidden_layers": 3}}, r"missing \(16 of 94\): text_model\.encoder\.layers\.2"),
    "fewer layers": ({"vision_config": {"num_hidden_layers": 1}}, r"left over \(16 of 62\): vision_model"),
    "longer captions": ({"text_config": {"max_position_embeddings": 64}}, r"77x32 in the file, 64x32 by the"),
    "smaller patches": ({"vision_config": {"patch_size": 4}}, "vision_model.embeddings.patch_embedding.weight"),
    "shorter embeddings": ({"projection_dim": 16}, r"of another shape \(2 of 78\)"),
    "one encoder": (
        {"model_type": "clip_text_model"},
        "its weights are not those of the CLIPTextModel that",
    ),
    "the other encoder": ({"model_type": "clip_vision_model"}, "not a CLIP, .*, but one encoder of it"),
    "SigLIP": (
        {"model_type": "siglip"},
        "its weights are not those of the SiglipModel that",
    ),
    "AltCLIP": ({"model_type": "altclip"}, "is a 'altclip' model, not a CLIP"),
    "negative heads": (
        {"text_config": {"num_attention_heads": -1}},
        r"text_config\.num_attention_heads -1, which must",
    ),
    "all is dropped": ({"text_config": {"attention_dropout": 2.0}}, r"text_config\.attention_dropout 2\.0"),
    "no epsilon": ({"vision_config": {"layer_norm_eps": float("nan")}}, r"vision_config\.layer_norm_eps nan"),
    "no activation": ({"text_config": {"hidden_act": "none"}}, r"text_config\.hidden_act 'none'"),
    "a scale beyond": ({"logit_scale_init_value": 1e30}, r"logit_scale_init_value 1e\+30"),
    "quantised": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "is quantised"),
    "one quantised": ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "is quantised"),
}


def test_a_model_that_answers_in_tuples_is_made_to_answer_in_names(save, processor):
    model = load_clip(save(return_dict=False, text_config={"return_dict": False}))
    inputs = processor.tokenizer(["a red square"], return_tensors="pt")
    assert model.get_text_features(**inputs).pooler_output.shape == (1, 24)


@torch.no_grad()
def zero(model, *names):
    for name in names:
        model.get_parameter(name).zero_()


def constant(model):
    """All captions at one point, without a tensor of zeros."""
    zero(model, "text_model.final_layer_norm.weight")
    with torch.no_grad():
        model.text_model.final_layer_norm.bias.fill_(1)


def endless(model):
    with torch.no_grad():
        model.vision_model.post_layernorm.weight.fill_(3e38)
        model.visual_projection.weight.mul_(1e3)


UNUSABLE = {
    "constant": (constant, "it embeds different captions alike"),
    "zeros": (
        lambda model: zero(model, *[f"text_model.final_layer_norm.{kind}" for kind in ("weight", "bias")]),
        "it embeds captions as zeros",
    ),
    "constant images": (
        lambda model: zero(model, "vision_model.post_layernorm.weight"),
        "it embeds images as zeros",
    ),
    "endless": (endless, "its embeddings of images are not finite"),
}


@pytest.mark.parametrize(("damage", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_original_that_tells_nothing_apart_is_refused(damage, said, processor):
    model = build_model(processor).train()
    before = torch.random.get_rng_state()
    check_processor(model, processor)
    damage(model)
    with pytest.raises(UserError, match=f"the original itself gives no usable embeddings: {said}"):
        check_processor(model, processor)
    assert model.training and torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("settings", "said"), CONFIGURED.values(), ids=CONFIGURED)
def test_a_configuration_of_another_model_is_refused(settings, said, save):
    with pytest.raises(UserError, match=said):
        load_clip(save(**settings))


def test_shards_that_lack_or_repeat_a_tensor_are_refused(processor, tmp_path):
    build_model(processor).save_pretrained(tmp_path, max_shard_size="100KB")
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    state, other = load_file(first), load_file(second)
    name = sorted(state)[0]
    save_file(other | {name: state[name] + 1}, second)
    with pytest.raises(UserError, match=f"{name} is both in {first.name} and in {second.name}"):
        load_clip(str(tmp_path))
    save_file(other, second)
    save_file({key: value for key, value in state.items() if key != name}, first)
    with pytest.raises(UserError, match=rf"missing \(1 of 78\): {name}"):
        load_clip(str(tmp_path))
    first.unlink()
    with pytest.raises(UserError, match=rf"cannot be opened: its {first.name} is missing, one of .* Download it anew"):
        load_clip(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    for content in ("{}", "[]", "null", '{"weight_map": []}', '{"weight_map": {}}', "{"):
        index.write_text(content)
        with pytest.raises(UserError, match=rf"cannot be opened: its {index.name} .* Download it anew") as error:
            load_clip(str(tmp_path))
        assert "\n" not in str(error.value)


def test_the_length_of_embeddings_is_stated_in_all_places(save):
    model = load_clip(save(text_config={"projection_dim": 512}, vision_config={"projection_dim": 512}))
    config = model.config
    assert [part.projection_dim for part in (config, config.text_config, config.vision_config)] == [24] * 3


def test_an_adapter_is_told_from_a_model(processor, save, model_dir, tmp_path):
    adapted = get_peft_model(load_clip(model_dir), lora_config())
    alone = tmp_path / "adapted"
    adapted.save_pretrained(alone)
    with pytest.raises(UserError, match=rf"is an adapter of {model_dir}, not a whole model. Merge the two") as error:
        load_clip(str(alone))
    assert "\n" not in str(error.value)
    shutil.copytree(alone, tmp_path / "run" / "checkpoint-1")
    checkpoint = tmp_path / "run" / "checkpoint-1"
    with pytest.raises(UserError, match=f"--resume_from_checkpoint {checkpoint}, or name the folder that save_model"):
        load_clip(str(checkpoint))
    beside = Path(save())
    adapted.save_pretrained(beside / "adapter")
    assert_same(load_clip(str(beside)), model_dir)  # a folder of its own harms nobody
    with pytest.raises(UserError, match=f"is an adapter alone: name {beside}, the whole model"):
        load_clip(str(beside / "adapter"))
    adapted.save_pretrained(beside)
    with pytest.raises(UserError, match="holds an adapter .* beside a whole model"):
        load_clip(str(beside))


def test_a_file_or_the_folder_around_is_told_from_a_model(save):
    folder = Path(save())
    with pytest.raises(UserError, match=r"model\.safetensors is a file: name the folder"):
        load_clip(str(folder / "model.safetensors"))
    with pytest.raises(UserError, match="its folders changed have one: name the one that is a CLIP"):
        load_clip(str(folder.parent))


def test_weights_that_are_not_where_they_are_looked_for(save):
    folder = Path(save())
    file = (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(UserError, match=r"expected in model\.safetensors, not model\.fp16\.safetensors"):
        load_clip(str(folder))
    file.unlink()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS to them: run `git lfs pull`"):
        load_clip(str(folder))


@pytest.mark.parametrize("content", ["[]", "null", "3", '"clip"', "{", ""])
def test_a_configuration_that_is_none(content, save):
    folder = Path(save())
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot be opened: its config\.json .* Download it anew") as error:
        load_clip(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 5000, -1])
def test_weights_that_are_cut_off(size, save):
    folder = Path(save())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(
        UserError, match=r"its model\.safetensors is cut off or no safetensors file .* Download it anew"
    ):
        load_clip(str(folder))


def test_a_training_that_did_not_end(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="checkpoints of a training that did not end: go on with --resume_from"):
        load_clip(str(tmp_path))
