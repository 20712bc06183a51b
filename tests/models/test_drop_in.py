"""Every snippet of docs/using.md, run as written in a process that does not know this package."""

import json
import os
import re
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTextModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, load_quadruplets, lora_config

from ..helpers import build_model
from ..programs import run_python

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def snippets() -> dict[str, str]:
    """The code blocks of the page's ways of use, by the first thing that tells each from the others."""
    section = (ROOT / "docs" / "using.md").read_text().split("\n## Choose how much\n")[0]
    names = {
        "transformers": "CLIPTextModelWithProjection",
        "features": "image-feature-extraction",
        "zero_shot": "zero-shot-image-classification",
        "diffusers": "StableDiffusionPipeline",
        "llava": "LlavaForConditionalGeneration",
        "sentence_transformers": "SentenceTransformer",
        "adapter": "PeftModel",
        "open_clip command": "--format open_clip",
        "open_clip": "import open_clip",
        "onnx command": "--format onnx",
        "onnx": "import onnxruntime",
    }
    blocks = re.findall(r"```(?:python|bash)\n(.*?)```", section, re.DOTALL)
    found = {name: [block for block in blocks if mark in block] for name, mark in names.items()}
    assert sorted(chain(*found.values())) == sorted(blocks), "a snippet of docs/using.md is not run here"
    return {name: block for name, (block,) in found.items()}


@pytest.fixture(scope="module")
def place(processor, dataset_dir, tmp_path_factory):
    """A folder with a trained model, an image, and small stand-ins for what the snippets fetch from the Hub."""
    folder = tmp_path_factory.mktemp("use")
    original = build_model(processor)
    original.save_pretrained(folder / "openai" / "clip-vit-large-patch14")
    train(folder, build_model(processor), processor, dataset_dir)
    stable_diffusion(folder / "CompVis" / "stable-diffusion-v1-4", original, processor)
    llava(folder / "llava-hf" / "llava-1.5-7b-hf", original)
    return folder


def train(folder: Path, model: CLIPModel, processor, dataset_dir: str) -> None:
    """Puts a trained model into a folder, and an image."""
    args = SafeCLIPTrainingArguments(
        str(folder / "safe-clip"), max_steps=3, learning_rate=1e-2, report_to="none", disable_tqdm=True, use_cpu=True
    )
    rows = load_quadruplets(dataset_dir)["train"]
    trainer = SafeCLIPTrainer(model, args, rows, None, processor, lora_config(4, 8))
    trainer.train()
    trainer.save_model()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 25, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")


def stable_diffusion(folder: Path, clip: CLIPModel, processor) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    text = clip.config.text_config
    text_encoder = CLIPTextModel(text)
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[32, 32], norm_num_groups=8, latent_channels=4),
        text_encoder=text_encoder,
        tokenizer=processor.tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=text.hidden_size,
            attention_head_dim=4,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def llava(folder: Path, clip: CLIPModel) -> None:
    torch.manual_seed(0)
    language = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config, text_config=language, image_token_index=63, image_seq_length=4
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)


# What the merged model gives for the page's inputs.
EXPECTED = """
import sys
assert "safe_clip" not in sys.modules, "the snippet imported safe_clip"
import torch
from PIL import Image as _Image
from torch.nn.functional import normalize
from transformers import CLIPModel as _Model, CLIPProcessor as _Processor
_processor = _Processor.from_pretrained("safe-clip")
_inputs = _processor(text=["a dog", "a bus"], images=_Image.open("image.png"), padding=True, return_tensors="pt")
_reference = _Model.from_pretrained("safe-clip").eval()
with torch.no_grad():
    expected = _reference(**_inputs)
def same(made, wanted, atol=1e-5):
    torch.testing.assert_close(normalize(torch.as_tensor(made).float(), dim=-1), wanted, atol=atol, rtol=0)
"""


@pytest.fixture(scope="module")
def run(place):
    """Runs a snippet, then a check that may use `expected`."""
    return partial(run_snippet, place)


def run_snippet(place: Path, name: str, check: str) -> None:
    file = place / f"snippet_{name}.py"  # a bare name would shadow the library
    file.write_text(snippets()[name] + EXPECTED + check + '\nprint("as wanted")\n')
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "TQDM_DISABLE": "1"}
    done = run_python(file.name, cwd=place, env=environment)
    assert done.returncode == 0 and "as wanted" in done.stdout, done.stderr[-3000:]


def command(name: str, place: Path) -> None:
    words = snippets()[name].split()
    assert words[0] == "safe-clip"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = run_python("-m", "safe_clip", *words[1:], cwd=place, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_transformers_loads_it_whole_and_by_encoder(run, place):
    run(
        "transformers",
        """
same(text_embeds.detach(), expected.text_embeds)
same(image_embeds.detach(), expected.image_embeds)
torch.testing.assert_close(probabilities.detach(), expected.logits_per_image.softmax(dim=1))
from transformers import AutoModel, CLIPTextModel, CLIPVisionModel
assert type(AutoModel.from_pretrained("safe-clip")).__name__ == "CLIPModel"
text = CLIPTextModel.from_pretrained("safe-clip")(inputs["input_ids"], inputs["attention_mask"])
same((text.pooler_output @ _reference.text_projection.weight.T).detach(), expected.text_embeds)
vision = CLIPVisionModel.from_pretrained("safe-clip")(inputs["pixel_values"])
same((vision.pooler_output @ _reference.visual_projection.weight.T).detach(), expected.image_embeds)
""",
    )


def test_the_feature_pipeline_runs_it(run):
    run("features", "same(features, expected.image_embeds)\n")


def test_the_zero_shot_pipeline_runs_it(run):
    run(
        "zero_shot",
        """
assert {row["label"] for row in scores} == {"a dog", "a bus"} and abs(sum(row["score"] for row in scores) - 1) < 1e-5
found = classifier("image.png", candidate_labels=["a dog", "a bus"], hypothesis_template="{}")
by_label = {row["label"]: row["score"] for row in found}
wanted = expected.logits_per_image.softmax(dim=1)[0].tolist()
assert abs(by_label["a dog"] - wanted[0]) < 1e-4 and abs(by_label["a bus"] - wanted[1]) < 1e-4
""",
    )


def test_stable_diffusion_draws_with_its_text_encoder(run):
    run(
        "diffusers",
        """
assert image.size == (16, 16), image.size
embeds, _ = pipeline.encode_prompt("a dog on a sofa", "cpu", 1, False)
tokens = _processor.tokenizer(["a dog on a sofa"], padding="max_length", max_length=77, return_tensors="pt")
with torch.no_grad():
    states = _reference.text_model(tokens["input_ids"]).last_hidden_state
torch.testing.assert_close(embeds, states, atol=1e-5, rtol=0)
own = StableDiffusionPipeline.from_pretrained("CompVis/stable-diffusion-v1-4")
assert (own.encode_prompt("a dog on a sofa", "cpu", 1, False)[0] - embeds).abs().max() > 1e-3
""",
    )


def test_llava_sees_with_its_vision_tower(run):
    run(
        "llava",
        """
with torch.no_grad():
    found = llava.model.get_image_features(_inputs["pixel_values"]).pooler_output[0]
    states = _reference.vision_model(_inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(found, llava.model.multi_modal_projector(states)[0], atol=1e-5, rtol=0)
    ids = torch.tensor([[1, 63, 63, 63, 63, 2]])
    assert torch.isfinite(llava(input_ids=ids, pixel_values=_inputs["pixel_values"]).logits).all()
""",
    )


def test_sentence_transformers_encodes_texts_and_images(run):
    pytest.importorskip("sentence_transformers", minversion="6")
    run(
        "sentence_transformers",
        """
same(model.encode(["a dog", "a bus"]), expected.text_embeds)
same(model.encode([Image.open("image.png")]), expected.image_embeds)
torch.testing.assert_close(similarities, expected.text_embeds @ expected.image_embeds.T, atol=1e-5, rtol=0)
""",
    )


def test_the_adapter_alone_gives_the_same_model(run, place):
    run("adapter", "with torch.no_grad():\n    same(model.eval()(**_inputs).text_embeds, expected.text_embeds)\n")
    files = sorted(file.name for file in (place / "safe-clip" / "adapter").iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)


def test_open_clip_embeds_the_same(run, place):
    pytest.importorskip("open_clip")
    command("open_clip command", place)
    # Its own image preparation rounds in other places.
    run(
        "open_clip",
        "same(text_features, expected.text_embeds, 1e-4)\nsame(image_features, expected.image_embeds, 5e-3)\n",
    )


def test_onnxruntime_embeds_the_same_for_other_numbers_of_items_too(processor, dataset_dir, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    train(tmp_path, build_model(processor, layers=1), processor, dataset_dir)  # to trace each layer takes seconds
    command("onnx command", tmp_path)
    run_snippet(
        tmp_path, "onnx", "same(text_embeds, expected.text_embeds)\nsame(image_embeds, expected.image_embeds)\n"
    )

    images = [Image.effect_noise((20, 25), 90).convert("RGB") for _ in range(2)]
    texts = ["a red square beside a blue one", "a green square", "a black square beside a white one with a mark"]
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(tmp_path / "safe-clip").eval()(**batch)
    made = tmp_path / "safe-clip-onnx"
    session = onnxruntime.InferenceSession(made / "onnx" / "model.onnx")
    outputs = session.run(None, {name: value.numpy() for name, value in batch.items()})
    found = dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))
    np.testing.assert_allclose(found["text_embeds"], expected.text_embeds, atol=1e-5)
    np.testing.assert_allclose(found["image_embeds"], expected.image_embeds, atol=1e-5)
    assert found["logits_per_image"].shape == (2, 3)
    # Of one encoder each, as transformers.js loads CLIPTextModelWithProjection and CLIPVisionModelWithProjection.
    for kind, name, given, embeds in (
        ("text_model", "text_embeds", "input_ids", expected.text_embeds),
        ("vision_model", "image_embeds", "pixel_values", expected.image_embeds),
    ):
        session = onnxruntime.InferenceSession(made / "onnx" / f"{kind}.onnx")
        assert [one.name for one in session.get_inputs()] == [given]
        assert [one.name for one in session.get_outputs()] == [name]
        (alone,) = session.run(None, {given: batch[given].numpy()})
        np.testing.assert_allclose(normalize(torch.from_numpy(alone), dim=-1), embeds, atol=1e-5)
    layout = {"config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "onnx"}
    assert layout <= {file.name for file in made.iterdir()}
    read = json.loads((made / "preprocessor_config.json").read_text())
    assert read["size"] == {"shortest_edge": 16}
    assert read["image_mean"] == list(processor.image_processor.image_mean)
