"""What is exported gives the same embeddings in the tools that read it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from safe_clip import UserError, merge
from safe_clip.export import FORMATS, export_open_clip, main, open_clip_config

from .conftest import build_model

CAPTIONS = ["a red square beside a blue one", "a green square", "a black square beside a white one with a mark"]


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (20, 25, 3), dtype=np.uint8)) for _ in range(3)]


@torch.no_grad()
def embed(model: CLIPModel, processor, pictures):
    batch = processor(text=CAPTIONS, images=pictures, padding=True, return_tensors="pt")
    output = model(**batch)
    return output.text_embeds, output.image_embeds, batch


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_open_clip_embeds_the_same(activation, processor, pictures, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    model = build_model(processor)
    for tower in (model.config.text_config, model.config.vision_config):
        tower.hidden_act = activation
    model = CLIPModel(model.config).eval()
    model.load_state_dict(build_model(processor, seed=3).state_dict())
    export_open_clip(model, processor, tmp_path)

    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    text_embeds, image_embeds, batch = embed(model, processor, pictures)
    theirs.eval()
    with torch.no_grad():
        text = normalize(theirs.encode_text(tokenizer(CAPTIONS)), dim=-1)
        image = normalize(theirs.encode_image(batch["pixel_values"]), dim=-1)
        prepared = torch.stack([preprocess(picture) for picture in pictures])
    assert theirs.logit_scale.item() == model.logit_scale.item()
    torch.testing.assert_close(text, text_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(image, image_embeds, atol=1e-4, rtol=0)
    # Alike but for rounding; where a crop leaves an odd number of pixels, the two also round its place differently.
    assert prepared.shape == batch["pixel_values"].shape
    assert (prepared - batch["pixel_values"]).abs().max() < 0.05


def test_the_wrong_activation_would_show(processor, pictures, tmp_path):
    """The tolerance above tells quick_gelu from gelu."""
    open_clip = pytest.importorskip("open_clip")
    model = build_model(processor, seed=3)
    export_open_clip(model, processor, tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True
    config["model_cfg"]["quick_gelu"] = False
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    _, image_embeds, batch = embed(model, processor, pictures)
    with torch.no_grad():
        image = normalize(theirs.eval().encode_image(batch["pixel_values"]), dim=-1)
    assert (image - image_embeds).abs().max() > 1e-3


def test_old_configurations_pool_at_the_largest_token(processor):
    model = build_model(processor)
    model.config.text_config.eos_token_id = 2
    assert open_clip_config(model, processor)["model_cfg"]["text_cfg"]["pool_type"] == "argmax"


def test_an_architecture_that_open_clip_lacks_is_refused(processor):
    model = build_model(processor)
    model.config.text_config.hidden_act = "relu"
    with pytest.raises(UserError, match="open_clip knows quick_gelu and gelu, for both encoders alike, not"):
        open_clip_config(model, processor)


@pytest.mark.slow
def test_onnxruntime_embeds_the_same_for_other_numbers_of_items(model_dir, processor, pictures, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main(["--model", model_dir, "--format", "onnx", "--output_dir", str(tmp_path)])
    model = CLIPModel.from_pretrained(model_dir).eval()
    text_embeds, image_embeds, batch = embed(model, processor, pictures[:2])
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    outputs = session.run(None, {name: value.numpy() for name, value in batch.items()})
    found = dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))
    np.testing.assert_allclose(found["text_embeds"], text_embeds, atol=1e-5)
    np.testing.assert_allclose(found["image_embeds"], image_embeds, atol=1e-5)
    assert found["logits_per_image"].shape == (2, 3)
    layout = {"config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "onnx"}
    assert layout <= {file.name for file in tmp_path.iterdir()}
    images = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert images["size"] == {"shortest_edge": 16} and images["image_mean"] == list(
        processor.image_processor.image_mean
    )


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
