"""The bundled generators, and what judges them."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel, LlavaForConditionalGeneration, pipeline

from safe_clip.demo import captioner, recogniser
from safe_clip.demo.mentions import mentions
from safe_clip.demo.towers import BASE_DIR
from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.demo.world import TRAINING_STYLES, draw_quadruplet

from ..helpers import ROOT, load_script
from ..programs import run_python

SCENES = load_script("tools/scenes.py")
MODELS = captioner.CAPTIONER_DIR.parent


def names(found):
    return [sorted(concept.names[0] for concept in meant) for meant in found]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dagger next to a red apple", [["dagger"], ["red apple"]]),
        ("Dagger and dog, green background", [["dagger"], ["dog"]]),
        ("dagger , dog", [["dagger"], ["dog"]]),  # as the captioner writes
        ("dogma", []),
    ],
)
def test_captions_mention_what_they_name(caption, expected):
    assert names(mentions(caption)) == expected


def test_a_kind_of_thing_may_be_any_of_its_kind():
    name, kind = mentions("a dagger, a weapon, beside nothing")
    assert name < kind and {concept.category for concept in kind} == {"weapons"}


def test_every_thing_of_a_caption_is_found():
    """Whatever the wording, the concepts that the world drew."""
    scenes = SCENES.draw_scenes(150, "mentions", 32, processes=1)
    vocabulary = load_vocabulary()
    for caption, shown in zip(scenes.captions, scenes.shown, strict=True):
        found, wanted = mentions(caption), {vocabulary[number] for number in shown}
        assert wanted <= set().union(*found), caption
        assert all(meant & wanted for meant in found), caption


def test_scenes_are_those_of_the_world():
    scenes = SCENES.draw_scenes(3, "scenes", 32, processes=1)
    vocabulary = load_vocabulary()
    unsafe = tuple(concept for concept in vocabulary if concept.category is not None)
    assert len(scenes) == 6 and scenes.images.shape == (6, 3, 32, 32)
    for number in range(3):
        row = draw_quadruplet(f"scenes/{number}", TRAINING_STYLES, unsafe)
        for place, side in enumerate(SCENES.SIDES, 2 * number):
            assert scenes.captions[place] == row[f"{side}_caption"]
            expected = np.asarray(SCENES.shrink(row[f"{side}_image"], 32)).transpose(2, 0, 1)
            assert np.array_equal(scenes.images[place], expected)
        assert not any(vocabulary[each].category for each in scenes.shown[2 * number])
        assert any(vocabulary[each].category for each in scenes.shown[2 * number + 1])
    assert scenes.labels(torch.tensor([1])).nonzero()[:, 1].tolist() == sorted(scenes.shown[1])


def test_the_weights_stay_small():
    weights = [file for file in MODELS.rglob("*") if file.suffix == ".safetensors"]
    assert len(weights) == 3 and sum(file.stat().st_size for file in weights) < 12 * 2**20


def test_the_recogniser_knows_scenes_that_it_has_not_seen():
    model, _ = recogniser.load_recogniser()
    found = load_script("tools/recogniser.py").accuracy(
        model, SCENES.draw_scenes(150, "unseen by all", 32, processes=1), torch.device("cpu")
    )
    assert found["recall"] > 0.9 and found["precision"] > 0.97
    assert found["recall_unsafe"] > 0.95 and found["precision_unsafe"] > 0.97


def test_the_recogniser_is_a_pipeline_that_sees_what_it_sees_itself():
    image = draw_quadruplet("judge", TRAINING_STYLES, tuple(c for c in load_vocabulary() if c.category))
    judge = pipeline("image-classification", str(recogniser.RECOGNISER_DIR), top_k=len(load_vocabulary()))
    found = {each["label"]: each["score"] for each in judge(SCENES.shrink(image["unsafe_image"], 32))}
    assert len(found) == len(load_vocabulary())
    assert found[image["concept"]] > recogniser.SURE and image["concept"] in recogniser.unsafe_labels()


@pytest.mark.slow
def test_the_captioner_is_a_llava_that_reads_the_bases_tower():
    model, processor = captioner.load_captioner()
    assert type(model) is LlavaForConditionalGeneration and not model.training
    base = CLIPModel.from_pretrained(BASE_DIR).vision_model.state_dict()
    tower = model.model.vision_tower.state_dict()
    assert all(torch.equal(tower[name], base[name]) for name in base)
    unsafe = tuple(concept for concept in load_vocabulary() if concept.category)
    rows = [draw_quadruplet(f"captioned/{number}", TRAINING_STYLES, unsafe) for number in range(40)]
    inputs = processor(text=["<image>"] * 40, images=[row["safe_image"] for row in rows], return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, max_new_tokens=30)
    right = []
    for row, caption in zip(rows, processor.batch_decode(made, skip_special_tokens=True), strict=True):
        mentioned = mentions(caption)
        right += [any(meant & other for other in mentioned) for meant in mentions(row["safe_caption"])]
    assert sum(right) / len(right) > 0.8


@pytest.mark.slow
def test_the_painter_is_an_ordinary_pipeline_that_draws_what_it_is_told():
    diffusers = pytest.importorskip("diffusers")
    from safe_clip.demo.painter import load_painter

    painter = load_painter()
    assert type(painter) is diffusers.StableDiffusionPipeline
    painter.set_progress_bar_config(disable=True)
    scenes = ("a zombie next to a dog on a blue", "a dagger and a banana on a yellow", "a dog and a zombie on a green")
    prompts = [f"{scene} background" for scene in scenes] * 2
    noise = [torch.Generator().manual_seed(seed) for seed in range(6)]
    images = painter(prompts, num_inference_steps=10, guidance_scale=4.0, generator=noise).images
    assert {image.size for image in images} == {(32, 32)}
    for prompt, image in zip(prompts, images, strict=True):
        red, green, blue = image.getpixel((0, 0))
        assert {"blue": blue > red, "yellow": red > 1.5 * blue, "green": green > blue}[prompt.split()[-2]]
    judge = pipeline("image-classification", str(recogniser.RECOGNISER_DIR))
    scores = [{each["label"]: each["score"] for each in found} for found in judge(images)]
    stand_ins = ["zombie", "dagger", "zombie"] * 2
    assert all(score.get(name, 0) > recogniser.SURE for name, score in zip(stand_ins, scores, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["painter", "captioner", "recogniser"])
def test_each_is_trained_by_a_command(name, tmp_path):
    few = ["--scenes", "20", "--steps", "2", "--batch_size", "1", "--output_dir", str(tmp_path)]
    done = run_python(ROOT / "tools" / f"{name}.py", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    made, committed = (sorted(file.name for file in folder.iterdir()) for folder in (tmp_path, MODELS / name))
    assert made == committed
    sizes = [(folder / made[-1]).stat().st_size for folder in (tmp_path, MODELS / name)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
