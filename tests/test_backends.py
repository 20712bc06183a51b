"""The two image-processor backends of transformers: torchvision's, and Pillow's where that is absent."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from safe_clip.demo import world

ROOT = Path(__file__).parent.parent

WITHOUT_TORCHVISION = """
import importlib.util, sys

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "torchvision" else real(name, *rest)
sys.modules["torchvision"] = None

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, load_processor, load_quadruplets

model, dataset, out = sys.argv[1:]
assert "Pil" in type(load_processor(model).image_processor).__name__
splits = load_quadruplets(dataset)
args = SafeCLIPTrainingArguments(out, max_steps=2, per_device_train_batch_size=4, report_to="none")
trainer = SafeCLIPTrainer(model, args, splits["train"], splits["validation"])
trainer.train()
trainer.save_model()

from transformers import pipeline

label = pipeline("zero-shot-image-classification", out)(splits["test"][0]["safe_image"], ["a red square", "a mark"])
assert len(label) == 2
"""


@pytest.mark.slow
def test_everything_works_where_torchvision_is_absent(model_dir, dataset_dir, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCHVISION, model_dir, dataset_dir, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_both_backends_make_the_same_pixels_of_the_embedded_world():
    """Its images need no resizing, which is where the two differ."""
    row = world.draw_quadruplet("backends", world.TRAINING_STYLES, world.unsafe_concepts(False))
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    images = [row["safe_image"], row["unsafe_image"]]
    ours, theirs = (
        processor(images, return_tensors="pt")["pixel_values"]
        for processor in (CLIPImageProcessor(**size), CLIPImageProcessorPil(**size))
    )
    assert ours.shape == (2, 3, 64, 64)
    assert (ours - theirs).abs().max() < 1e-5
    # Normalised as CLIP expects: undoing it gives back the image's levels.
    mean, std = (torch.tensor(getattr(CLIPImageProcessor(), f"image_{name}")).view(3, 1, 1) for name in ("mean", "std"))
    levels = ((ours[0] * std + mean) * 255).round().permute(1, 2, 0).to(torch.uint8)
    import numpy as np

    assert (levels.numpy() == np.asarray(row["safe_image"])).all()
