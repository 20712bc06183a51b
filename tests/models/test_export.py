"""What is exported gives the same embeddings in the tools that read it."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.normalizers import NFC
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from safe_clip import UserError, load_clip, load_processor, merge
from safe_clip.cli.export import main
from safe_clip.evaluation.run import Subject
from safe_clip.models.export import FORMATS, export_open_clip
from safe_clip.models.load import check_processor
from safe_clip.models.open_clip_format import open_clip_config
from safe_clip.models.open_clip_inputs import has_openai_tokens

from ..helpers import build_model

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
CAPTIONS = ["a red square beside a blue one", "a green square", "a black square beside a white one with a mark"]


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (20, 25, 3), dtype=np.uint8)) for _ in range(3)]


@torch.no_grad()
def embed(model: CLIPModel, processor, images):
    batch = processor(text=CAPTIONS, images=images, padding=True, return_tensors="pt")
    output = model(**batch)
    return output.text_embeds, output.image_embeds, batch


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_open_clip_embeds_the_same(activation, processor, images, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    model = build_model(processor)
    for tower in (model.config.text_config, model.config.vision_config):
        tower.hidden_act = activation
    model = CLIPModel(model.config).eval()
    model.load_state_dict(build_model(processor, seed=3).state_dict())
    export_open_clip(model, processor, tmp_path)

    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    text_embeds, image_embeds, batch = embed(model, processor, images)
    theirs.eval()
    with torch.no_grad():
        text = normalize(theirs.encode_text(tokenizer(CAPTIONS)), dim=-1)
        image = normalize(theirs.encode_image(batch["pixel_values"]), dim=-1)
        prepared = torch.stack([preprocess(each) for each in images])
    assert theirs.logit_scale.item() == model.logit_scale.item()
    torch.testing.assert_close(text, text_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(image, image_embeds, atol=1e-4, rtol=0)
    # Alike but for rounding; where a crop leaves an odd number of pixels, the two also round its place differently.
    assert prepared.shape == batch["pixel_values"].shape
    assert (prepared - batch["pixel_values"]).abs().max() < 0.05


def test_the_wrong_activation_would_show(processor, images, tmp_path):
    """The tolerance above tells quick_gelu from gelu."""
    open_clip = pytest.importorskip("open_clip")
    model = build_model(processor, seed=3)
    export_open_clip(model, processor, tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True
    config["model_cfg"]["quick_gelu"] = False
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    _, image_embeds, batch = embed(model, processor, images)
    with torch.no_grad():
        image = normalize(theirs.eval().encode_image(batch["pixel_values"]), dim=-1)
    assert (image - image_embeds).abs().max() > 1e-3


def test_old_configurations_pool_at_the_largest_token(processor):
    model = build_model(processor)
    model.config.text_config.eos_token_id = 2
    assert open_clip_config(model, processor)["model_cfg"]["text_cfg"]["pool_type"] == "argmax"


def test_an_end_token_that_is_the_largest_is_written_as_older_versions_know_it(processor):
    """They pool at the largest token, and know neither `eos_id` nor `norm_kwargs`."""
    model, processor = build_model(processor), copy.deepcopy(processor)
    text, tokenizer = model.config.text_config, processor.tokenizer
    assert tokenizer.eos_token_id != len(tokenizer) - 1
    pooling = {"pool_type": "eos", "eos_id": tokenizer.eos_token_id}
    assert pooling.items() <= open_clip_config(model, processor)["model_cfg"]["text_cfg"].items()
    text.eos_token_id = len(tokenizer) - 1
    cfg = open_clip_config(model, processor)["model_cfg"]
    assert cfg["text_cfg"]["pool_type"] == "argmax" and "eos_id" not in cfg["text_cfg"]
    assert "norm_kwargs" not in cfg["text_cfg"] and "norm_kwargs" not in cfg["vision_cfg"]
    tokenizer.add_tokens("larger")  # which would be read in its place
    assert open_clip_config(model, processor)["model_cfg"]["text_cfg"]["eos_id"] == text.eos_token_id


SIZES = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
SQUASHED = {"size": {"height": 16, "width": 16}, "do_center_crop": False}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        SQUASHED,
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0, 0.5, 2.0]},
        {"do_rescale": False, "image_mean": [127.0, 120.0, 110.0], "image_std": [64.0, 60.0, 70.0]},
        {"resample": Image.Resampling.BILINEAR},
    ],
)
def test_open_clip_makes_the_same_pixels(settings, model, processor, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    images = CLIPImageProcessor(**(SIZES | settings))
    export_open_clip(model, CLIPProcessor(images, processor.tokenizer), tmp_path)
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    generator = np.random.default_rng(0)
    for size in ((64, 32), (32, 96)):
        noise = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize(size)
        ours = images(noise, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(preprocess(noise), ours, atol=0.1, rtol=0)
        assert ours.std() > 0.15


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": {"shortest_edge": 20}}, r"other pixels than the image processor with .*size \{'shortest_edge': 20\}"),
        ({"size": {"shortest_edge": 17}}, "other pixels"),
        ({"size": {"height": 20, "width": 20}}, "other pixels"),
        ({"do_resize": False}, "other pixels than the image processor with .*do_resize False"),
        ({"resample": Image.Resampling.LANCZOS}, r"by lanczos \(its `resample`\)"),
        ({"resample": Image.Resampling.NEAREST}, r"by nearest \(its `resample`\)"),
    ],
)
def test_pixels_that_open_clip_cannot_make_are_refused(settings, said, model, processor, tmp_path):
    images = CLIPImageProcessor(**(SIZES | settings))
    with pytest.raises(UserError, match=said) as error:
        export_open_clip(model, CLIPProcessor(images, processor.tokenizer), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def openai_tokenizer(changed: bool = False) -> CLIPTokenizer:
    theirs = pytest.importorskip("open_clip").tokenizer.SimpleTokenizer()
    vocabulary = {token: number for number, token in enumerate(sorted(theirs.encoder, key=theirs.encoder.get)[:-2])}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    merges = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.get)
    if changed:  # as many tokens, cut in another order
        merges[0], merges[1] = merges[1], merges[0]
    return CLIPTokenizer(vocabulary, merges)


def test_as_many_tokens_as_openai_has_are_not_its_tokens():
    assert has_openai_tokens(openai_tokenizer()) and not has_openai_tokens(openai_tokenizer(changed=True))
    cased = openai_tokenizer()
    cased.backend_tokenizer.normalizer = NFC()
    assert not has_openai_tokens(cased)


def test_the_tokenizer_that_open_clip_shall_read_is_named(processor):
    own = openai_tokenizer(changed=True)
    model = CLIPModel(CLIPConfig(text_config={**TINY, "vocab_size": 49408}, vision_config={**TINY, "image_size": 16}))
    text = open_clip_config(model, CLIPProcessor(processor.image_processor, own))["model_cfg"]["text_cfg"]
    assert text["hf_tokenizer_name"] == "local"
    same = CLIPProcessor(processor.image_processor, openai_tokenizer())
    assert "hf_tokenizer_name" not in open_clip_config(model, same)["model_cfg"]["text_cfg"]


@pytest.mark.parametrize(("activation", "dtype"), [("quick_gelu", torch.float32), ("gelu", torch.float16)])
def test_what_was_written_for_open_clip_is_read_back(activation, dtype, processor, images, tmp_path):
    model = build_model(processor, seed=3)
    for tower in (model.config.text_config, model.config.vision_config):
        tower.hidden_act, tower.layer_norm_eps = activation, 1e-6
    weights = {name: value.to(dtype) for name, value in model.state_dict().items()}
    model = CLIPModel(model.config).eval()
    model.load_state_dict(weights)
    export_open_clip(copy.deepcopy(model).to(dtype), processor, tmp_path)
    again = load_clip(str(tmp_path))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    own = load_processor(str(tmp_path))
    check_processor(again, own)
    for found, expected in zip(embed(again, own, images), embed(model, processor, images), strict=True):
        if isinstance(found, torch.Tensor):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_what_open_clip_has_and_a_clip_model_has_not_is_refused(processor, tmp_path):
    export_open_clip(build_model(processor), processor, tmp_path)
    file = tmp_path / "open_clip_config.json"
    written = json.loads(file.read_text())
    for part, change, said in (
        ("vision_cfg", {"timm_model_name": "vit_base"}, "says timm_model_name 'vit_base' in vision_cfg"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "does not describe a CLIP"),
        ("vision_cfg", {"pool_type": "avg"}, "says pool_type 'avg' in vision_cfg"),
        ("text_cfg", {"pool_type": "last"}, "says pool_type 'last' in text_cfg"),
        ("text_cfg", {"no_causal_mask": True}, "says no_causal_mask True in text_cfg"),
        ("text_cfg", {"layers": 3}, r"missing \(12 of 74\): transformer\.resblocks\.2\."),
    ):
        changed = copy.deepcopy(written)
        changed["model_cfg"][part].update(change)
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=said) as error:
            load_clip(str(tmp_path))
        assert str(error.value).startswith(f"--model {tmp_path}: ")
    harmless = copy.deepcopy(written)
    harmless["model_cfg"]["vision_cfg"] |= {"pool_type": "tok", "attentional_pool": False, "timm_model_name": None}
    file.write_text(json.dumps(harmless))
    load_clip(str(tmp_path))


def test_a_strength_lies_between_the_two_models(model_dir, processor, tmp_path):
    flags = ["--model", model_dir, "--baseline", model_dir, "--format", "transformers"]
    for strength in ("8", "nan", "-0.1", "inf", "1.0001"):
        with pytest.raises(UserError, match=r"--strength is .*; it must be from 0, the original, to 1"):
            main([*flags, "--output_dir", str(tmp_path / "out"), f"--strength={strength}"])
        with pytest.raises(UserError, match="it must be from 0"):
            merge(model_dir, model_dir, float(strength))
        with pytest.raises(UserError, match="it must be from 0"):
            Subject("demo", baseline=Subject("demo"), strength=float(strength))
    with pytest.raises(UserError, match="it must be from 0"):
        merge(model_dir, model_dir, "much")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_read_is_never_written(model_dir, processor, tmp_path):
    build_model(processor, seed=1).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for kind in FORMATS:
        for model, baseline, said in ((tmp_path, model_dir, "--model"), (model_dir, tmp_path, "--baseline")):
            flags = ["--model", str(model), "--baseline", str(baseline), "--strength", "0", "--format", kind]
            with pytest.raises(UserError, match=f"is the folder of {said}, which is never written"):
                main([*flags, "--output_dir", f"{tmp_path}/../{tmp_path.name}"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_architecture_that_open_clip_lacks_is_refused(processor):
    model = build_model(processor)
    model.config.text_config.hidden_act = "relu"
    with pytest.raises(UserError, match="open_clip knows quick_gelu and gelu, for both encoders alike, not"):
        open_clip_config(model, processor)


def test_a_point_between_the_original_and_the_safe_model_is_written(model_dir, processor, tmp_path):
    build_model(processor, seed=1).save_pretrained(tmp_path / "safe")
    processor.save_pretrained(tmp_path / "safe")
    flags = ["--model", str(tmp_path / "safe"), "--format", "transformers", "--output_dir", str(tmp_path / "out")]
    main([*flags, "--baseline", model_dir, "--strength", "0.25"])
    expected = merge(model_dir, str(tmp_path / "safe"), 0.25).state_dict()
    for name, value in CLIPModel.from_pretrained(tmp_path / "out").state_dict().items():
        assert torch.equal(value, expected[name])
    assert CLIPProcessor.from_pretrained(tmp_path / "out").tokenizer("a red square")["input_ids"]
    with pytest.raises(UserError, match="--strength and --baseline go together"):
        main([*flags, "--strength", "0.25"])


def test_formats_are_named_by_the_command_line():
    with pytest.raises(UserError, match="^--format: it must be among .*, not 'pickle'.$") as error:
        main(["--format", "pickle"])
    assert error.value.code == 2 and all(name in str(error.value) for name in FORMATS)
