"""A tiny CLIP and a tiny quadruplet data set, made on the spot."""

import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before any library reads them: nothing in the tests may reach for a hub, nor find what an earlier run kept. The
# workers of a run share what they keep, so that the bundled world is drawn once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="safe-clip-tests-")

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

ROOT = Path(__file__).parent.parent
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white"]
FEATURES = Features(
    {
        "safe_caption": Value("string"),
        "safe_image": Image(),
        "unsafe_caption": Value("string"),
        "unsafe_image": Image(),
    }
)


def pytest_collection_finish():
    gc.freeze()  # or each training, which collects garbage at its end, would go through all that was imported


def pytest_sessionfinish():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def processor() -> CLIPProcessor:
    texts = [f"a {a} square beside a {b} one with a mark" for a in COLOURS for b in COLOURS]
    tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(texts, vocab_size=600, show_progress=False)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPProcessor(image_processor, tokenizer)


def build_model(processor: CLIPProcessor, seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 24,
        # Large enough for embeddings of different inputs to differ.
        "initializer_factor": 2.0,
    }
    tokenizer = processor.tokenizer
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    return CLIPModel(config).eval()


@pytest.fixture
def model(processor) -> CLIPModel:
    return build_model(processor)


@pytest.fixture(scope="session")
def model_dir(processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-clip")
    build_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def make_rows(count: int = 24) -> dict[str, list]:
    """Rows of two-coloured squares; the unsafe side has a mark in the middle."""
    rows = {name: [] for name in FEATURES}
    for index in range(count):
        a, b = COLOURS[index % 8], COLOURS[(index // 8 + index + 1) % 8]
        safe = PILImage.new("RGB", (16, 16), a)
        safe.paste(PILImage.new("RGB", (8, 16), b), (8, 0))
        unsafe = safe.copy()
        unsafe.paste(PILImage.new("RGB", (6, 6), (255, 0, 255)), (5, 5))
        rows["safe_caption"].append(f"a {a} square beside a {b} one")
        rows["unsafe_caption"].append(f"a {a} square beside a {b} one with a mark")
        rows["safe_image"].append(safe)
        rows["unsafe_image"].append(unsafe)
    return rows


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict(make_rows(), features=FEATURES)


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory) -> str:
    from datasets import DatasetDict

    folder = tmp_path_factory.mktemp("tiny-quadruplets")
    splits = {"train": 24, "validation": 8, "test": 8}
    DatasetDict(
        {split: Dataset.from_dict(make_rows(count), features=FEATURES) for split, count in splits.items()}
    ).save_to_disk(folder)
    return str(folder)


def load_script(name: str):
    """A script of the root, such as `train.py`, as a module."""
    spec = importlib.util.spec_from_file_location(name.replace(".py", "_script"), ROOT / name)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its dataclass looks for names
    spec.loader.exec_module(module)
    return module
