"""A tiny CLIP and a tiny quadruplet data set, made on the spot."""

import gc
import os
import shutil
import tempfile

# Before any library reads them: nothing in the tests may reach for a hub, nor find what an earlier run kept. The
# workers of a run share what they keep, so that the bundled world is drawn once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="safe-clip-tests-")

import pytest
from datasets import Dataset
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from .helpers import COLOURS, FEATURES, build_model, make_rows


@pytest.fixture(scope="module", autouse=True)
def freeze_what_was_imported():
    gc.freeze()  # or each training, which collects garbage at its end, would go through all of it


def pytest_sessionfinish():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def processor() -> CLIPProcessor:
    texts = [f"a {a} square beside a {b} one with a mark" for a in COLOURS for b in COLOURS]
    tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(texts, vocab_size=600, show_progress=False)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPProcessor(image_processor, tokenizer)


@pytest.fixture
def model(processor) -> CLIPModel:
    return build_model(processor)


@pytest.fixture(scope="session")
def model_dir(processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-clip")
    build_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


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
