"""The text encoder of a pipeline is trained on captions alone, and goes back in its place."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from safe_clip import (
    SafeCLIPTrainer,
    SafeCLIPTrainingArguments,
    UserError,
    load_clip,
    load_processor,
    lora_config,
    merge,
    safe_text_to_image,
)
from safe_clip.card import write_model_card
from safe_clip.cli.eval import main as measure
from safe_clip.cli.export import main as export
from safe_clip.cli.train import main as train
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.quadruplets import embed_quadruplets
from safe_clip.models.pipelines import split_name

from ..checkpoints import save_pipeline
from ..helpers import ROOT, make_rows
from ..hub import Hub
from ..programs import run_python

KINDS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
CAPTIONS = {name: captions for name, captions in make_rows().items() if name.endswith("caption")}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    save_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def captions():
    from datasets import Dataset

    return Dataset.from_dict(CAPTIONS)


def tokens_of(folder, texts):
    """As a pipeline of diffusers reads prompts."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids


@torch.no_grad()
def read(model, ids):
    """What pipelines read: the last states, those before the last layer, and the pooled ones."""
    output = model.eval()(ids, output_hidden_states=True)
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    return output.last_hidden_state, output.hidden_states[-2], pooled


def make_trainer(name, output, rows, **settings):
    defaults = {"max_steps": 40, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    defaults |= {"disable_tqdm": True, "save_strategy": "no", "bf16": False, "warmup_steps": 0}
    args = SafeCLIPTrainingArguments(output_dir=str(output), **(defaults | settings))
    model = load_clip(name)
    return SafeCLIPTrainer(model, args, train_dataset=rows, peft_config=lora_config(model=model))


@pytest.fixture(scope="module", params=KINDS)
def trained(request, pipeline, captions, tmp_path_factory):
    """The part, a trainer that has trained it, its weights before, and where it was saved."""
    output = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(f"{pipeline}:{request.param}", output, captions)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    trainer.save_model()
    return request.param, trainer, before, output


@pytest.mark.parametrize("part", KINDS)
def test_a_part_is_loaded_as_what_it_is_with_its_own_tokenizer(part, pipeline):
    model, processor = load_clip(f"{pipeline}:{part}"), load_processor(f"{pipeline}:{part}")
    stock = KINDS[part].from_pretrained(pipeline / part)
    assert type(model) is KINDS[part] and not hasattr(model, "vision_model")
    assert model.config._name_or_path == f"{pipeline}:{part}"
    assert processor.image_processor is None
    assert processor.tokenizer.pad_token == ("!" if part == "text_encoder_2" else "<|endoftext|>")
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    texts = ["a red square", "a blue one with a mark", ""]
    made = Embedder(model, processor).texts(texts).embeds
    assert made.shape == (3, 20 if part == "text_encoder_2" else 24)
    pooled = read(stock, tokens_of(pipeline / part.replace("text_encoder", "tokenizer"), texts))[-1]
    torch.testing.assert_close(made, torch.nn.functional.normalize(pooled, dim=1), atol=1e-5, rtol=0)
    named_by_folder = load_processor(str(pipeline / part))  # whose tokenizer lies beside it
    assert named_by_folder.tokenizer.pad_token == processor.tokenizer.pad_token


def test_every_adapter_is_trained_and_nothing_else_and_the_reference_stays(trained, pipeline):
    part, trainer, before, _ = trained
    after = trainer.model.state_dict()
    assert sum("lora_B" in name for name in after) == 2 * 5  # two layers, five modules of each
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name
    ids = tokens_of(pipeline / part.replace("text_encoder", "tokenizer"), CAPTIONS["safe_caption"])
    pooled = read(KINDS[part].from_pretrained(pipeline / part), ids)[-1]
    expected = torch.nn.functional.normalize(pooled, dim=1)
    torch.testing.assert_close(trainer.reference(input_ids=ids).text_embeds, expected, atol=1e-5, rtol=0)


def test_the_drop_in_reads_as_the_trained_model_in_a_process_without_this_package(trained, pipeline):
    part, trainer, _, output = trained
    code = """if True:
        import json, sys, torch, transformers
        for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
            del sys.modules[name]  # which programs of tests find imported
        kind = getattr(transformers, sys.argv[2])
        model, loading = kind.from_pretrained(sys.argv[1], output_loading_info=True)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(sys.argv[1])
        ids = tokenizer(sys.argv[3:], padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = model.eval()(ids).last_hidden_state
        loaded = [name for name in ("peft", "safe_clip") if name in sys.modules]
        print(json.dumps([loaded, [len(each) for each in loading.values()], ids.tolist(), states.tolist()]))
    """
    texts = [CAPTIONS["safe_caption"][0], CAPTIONS["unsafe_caption"][1]]
    env = {**os.environ, "PYTHONPATH": ""}
    done = run_python("-c", code, output, KINDS[part].__name__, *texts, cwd=output, env=env)
    assert done.returncode == 0, done.stderr
    loaded, wrong, ids, states = json.loads(done.stdout.splitlines()[-1])
    expected = tokens_of(pipeline / part.replace("text_encoder", "tokenizer"), texts)
    assert not loaded and not any(wrong) and ids == expected.tolist()
    ours = read(trainer.model.get_base_model(), expected)[0]
    torch.testing.assert_close(torch.tensor(states), ours, atol=1e-5, rtol=0)
    original = read(KINDS[part].from_pretrained(pipeline / part), expected)[0]
    assert (ours[1] - original[1]).abs().max() > 0.1  # training moved it


def test_the_drop_in_has_the_configuration_of_what_was_taken(trained, pipeline):
    part, _, _, output = trained
    made, taken = (json.loads((each / "config.json").read_text()) for each in (output, pipeline / part))
    assert made == taken | {"use_cache": False}  # which the Trainer adds, and which no encoder reads
    assert not (output / "preprocessor_config.json").exists() and not (output / "processor_config.json").exists()


def test_unsafe_captions_move_to_where_their_counterparts_were_and_safe_ones_stay(trained, pipeline):
    part, _, _, output = trained
    before, after = (KINDS[part].from_pretrained(each) for each in (pipeline / part, output))
    safe, unsafe = (tokens_of(output, CAPTIONS[name]) for name in ("safe_caption", "unsafe_caption"))
    target = read(before, safe)
    was, became, stayed = read(before, unsafe), read(after, unsafe), read(after, safe)
    apart = [cosine_similarity(each[-1], target[-1], dim=-1).mean().item() for each in (was, became, stayed)]
    was_off, is_off, safe_off = (1 - each for each in apart)
    assert is_off < was_off / 3 and safe_off < was_off / 3, apart
    for layer in (0, 1):  # which Stable Diffusion and SDXL read
        moved = ((stayed[layer] - target[layer]).square().sum(-1) / target[layer].square().sum(-1)).mean()
        assert moved < 0.05, (layer, moved)


def test_the_card_says_how_it_goes_back(trained):
    part, trainer, _, _ = trained
    card = write_model_card(trainer).read_text()
    assert f"a plain\n`{KINDS[part].__name__}`, and" in card
    assert f'DiffusionPipeline.from_pretrained("tiny", {part}=text_encoder)' in card
    assert "pipeline_tag: feature-extraction" in card
    assert not any(word in card for word in ("image-classification", "sentence_transformers", "open_clip", "vision"))


def test_between_the_original_and_the_safe_one_lie_others(trained, pipeline):
    part, _, _, output = trained
    half = merge(f"{pipeline}:{part}", str(output), 0.5)
    ends = [load_clip(each).state_dict() for each in (f"{pipeline}:{part}", str(output))]
    for name, weight in half.state_dict().items():
        torch.testing.assert_close(weight, (ends[0][name] + ends[1][name]) / 2)


def test_it_goes_back_into_stable_diffusion(pipeline, captions, tmp_path):
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    parts = {
        "vae": AutoencoderKL(latent_channels=4, **blocks),
        "unet": UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=24,
            attention_head_dim=2,
            **blocks,
        ),
        "scheduler": PNDMScheduler(skip_prk_steps=True),
        "text_encoder": CLIPTextModel.from_pretrained(pipeline / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(pipeline / "tokenizer"),
    }
    made = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    source, output = tmp_path / "source", tmp_path / "safe"
    made.save_pretrained(source)
    trainer = make_trainer(f"{source}:text_encoder", output, captions, max_steps=10)
    trainer.train()
    trainer.save_model()
    safe = CLIPTextModel.from_pretrained(output)
    again = StableDiffusionPipeline.from_pretrained(source, text_encoder=safe, safety_checker=None)
    again.set_progress_bar_config(disable=True)
    prompt, options = CAPTIONS["unsafe_caption"][0], {"device": "cpu", "num_images_per_prompt": 1}
    states = again.encode_prompt(prompt, do_classifier_free_guidance=False, **options)[0]
    expected = read(trainer.model.get_base_model(), tokens_of(output, [prompt]))[0]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
    images = again(prompt, num_inference_steps=2, height=8, width=8, output_type="np").images
    assert images.shape == (1, 8, 8, 3)
    by_hand = safe_text_to_image(str(source), str(output), safety_checker=None).text_encoder.state_dict()
    assert all(torch.equal(weight, by_hand[name]) for name, weight in safe.state_dict().items())
    shutil.rmtree(source / "text_encoder")
    shutil.copytree(output, source / "text_encoder")  # in place of what was there
    there = StableDiffusionPipeline.from_pretrained(source, safety_checker=None).text_encoder.state_dict()
    assert all(torch.equal(weight, there[name]) for name, weight in safe.state_dict().items())


@pytest.mark.slow
def test_the_command_trains_and_measures_it(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [dict(zip(CAPTIONS, values, strict=True)) for values in zip(*CAPTIONS.values(), strict=True)]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    common = ["--dataset", "rows.jsonl"]
    name = f"{pipeline}:text_encoder_2"
    train(["--model", name, *common, "--max_steps", "2", "--output_dir", "safe", "--report_to", "none"])
    said = capsys.readouterr()
    assert f"It goes back into {pipeline} as its text_encoder_2: safe/README.md says how." in said.out
    assert "Could not find a config file" not in said.err
    measure(["--model", "safe", "--baseline", name, *common, "--splits", "train"])
    figures = json.loads(Path("evaluation", "results.json").read_text())["models"]["model"]["splits"]["train"]
    assert figures["counterparts"]["text_recall_at_1"]["value"] > 0 and not figures["redirection"]
    with pytest.raises(UserError, match="format onnx has no models of this family; take transformers"):
        export(["--model", "safe", "--format", "onnx", "--output_dir", "graphs"])
    with pytest.raises(UserError, match="lies in .*which is read and never written to"):
        train(["--model", name, *common, "--output_dir", str(pipeline / "text_encoder_2" / "safe")])


def test_images_are_refused_before_anything_is_made_of_them(pipeline, rows, tmp_path):
    said = r"sees no images: leave them out with --column_mapping .*rows.select_columns"
    name = f"{pipeline}:text_encoder"
    with pytest.raises(UserError, match=said):
        make_trainer(name, tmp_path, rows)
    embedder = Embedder(load_clip(name), load_processor(name))
    with pytest.raises(UserError, match=said):
        embed_quadruplets(embedder, rows)
    with pytest.raises(UserError, match="sees no images; that requires a whole CLIP"):
        _ = embedder.model.family.image_tower


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{}", r"tiny is a pipeline of diffusers, not a CLIP\. Name .*tiny:text_encoder or .*tiny:text_encoder_2,"),
        (
            "{}:text_encoder_3",
            r"its text_encoder_3 is a T5EncoderModel, which is no CLIP's\. Name .*tiny:text_encoder ",
        ),
        ("{}:text_encoder_4", r"it has no text_encoder_4\. Name "),
        ("{}/text_encoder:text_encoder", "it is no pipeline of diffusers with a text encoder"),
        ("{}/missing:text_encoder", "tiny/missing cannot be opened: "),
    ],
)
def test_what_is_no_text_encoder_of_a_clip_is_refused_with_what_to_name(name, said, pipeline):
    with pytest.raises(UserError, match=said) as caught:
        load_clip(name.format(pipeline))
    assert "\n" not in str(caught.value)


def test_of_a_repository_the_encoder_and_its_tokenizer_are_downloaded_and_nothing_else(pipeline, tmp_path):
    files = {str(path.relative_to(pipeline)): path.read_bytes() for path in pipeline.rglob("*") if path.is_file()}
    files |= {"unet/model.safetensors": b"large", "text_encoder_2/model.fp16.safetensors": b"half"}
    files |= {"text_encoder_2/pytorch_model.bin": b"a pickle", "tokenizer_2/evil.py": b""}
    code = """if True:
        import json
        from safe_clip import UserError, load_clip, load_processor
        model, processor = load_clip("you/tiny:text_encoder_2"), load_processor("you/tiny:text_encoder_2")
        said = []
        for name in ("you/tiny", "you/tiny:text_encoder_3", "you/none:text_encoder"):
            try:
                load_clip(name)
            except UserError as error:
                said.append(str(error))
        config = model.config
        print(json.dumps([type(model).__name__, processor.tokenizer.pad_token, config._name_or_path, said,
                          config._commit_hash]))
    """
    with Hub() as hub:
        repo = hub.create("you/tiny", files=files)
        env = {**os.environ, "PYTHONPATH": str(ROOT), **hub.environment(str(tmp_path / "home"))}
        done = run_python("-c", code, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    kind, pad, name, said, commit = json.loads(done.stdout.splitlines()[-1])
    assert (kind, pad, name) == ("CLIPTextModelWithProjection", "!", "you/tiny:text_encoder_2")
    assert commit == repo.refs["main"]
    assert "you/tiny is a pipeline of diffusers, not a CLIP. Name you/tiny:text_encoder or " in said[0]
    assert "T5EncoderModel, which is no CLIP's" in said[1]
    assert "you/none was found neither as a folder nor at https://huggingface.co/you/none." in said[2]
    (kept,) = (tmp_path / "home" / "hub" / "models--you--tiny" / "snapshots").iterdir()
    expected = {"text_encoder_2/config.json", "text_encoder_2/model.safetensors", "model_index.json"}
    expected |= {name for name in files if name.startswith("tokenizer_2/") and not name.endswith(".py")}
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if not path.is_dir()} == expected


def test_an_encoder_with_a_projection_is_not_replaced_by_one_without(pipeline):
    painter = SimpleNamespace(text_encoder=CLIPTextModelWithProjection.from_pretrained(pipeline / "text_encoder_2"))
    with pytest.raises(UserError, match="has a projection, but the safe model, a text encoder alone, none"):
        safe_text_to_image(painter, load_clip(f"{pipeline}:text_encoder"))


def test_names_of_parts():
    assert split_name("you/pipeline:text_encoder_2") == ("you/pipeline", "text_encoder_2")
    assert split_name("you/pipeline:unet") is split_name("you/pipeline") is split_name(":text_encoder") is None
