"""What is kept of every kind, damaged in every way: told of, made again, and never believed."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from safe_clip import FrozenReference, QuadrupletCollator, QuadrupletRows, load_quadruplets
from safe_clip.data import fetching
from safe_clip.data.audit.reading import read_items
from safe_clip.data.sources import load_splits
from safe_clip.demo import dataset as demo
from safe_clip.embedding.embedder import Embedder
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.generation.text_to_image import ImageScorer, paint_all, requests_of
from safe_clip.objectives import SafeCLIPLoss
from safe_clip.store.folders import GENERATED, KINDS, entries, folder_of
from safe_clip.training.targets import Targets

from ..generation.conftest import FakeJudge, build_pipeline, redness
from ..generation.test_text_to_image import FEW, items
from ..helpers import FEATURES, build_model, make_rows

CSV = "safe_caption,unsafe_caption\n" + "".join(f"a dog {n},a gun {n}\n" for n in range(300))
DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: bytes(byte ^ (4 * (n == len(content) // 2)) for n, byte in enumerate(content)),
    "other": lambda content: b'{"version": 0}',
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "data"))
    return tmp_path


# Each makes an entry the way the package does, and gives what is read of it.


def embeddings(processor, folder):
    model, cache_dir = build_model(processor), folder_of("embeddings")
    return Embedder(model, processor, cache_dir=cache_dir).texts([f"a red square {n}" for n in range(20)]).embeds


def reference_embeddings(processor, folder):
    rows = QuadrupletRows(Dataset.from_dict(make_rows(8), features=FEATURES))
    reference, cache_dir = FrozenReference(build_model(processor)), folder_of("reference_embeddings")
    targets = Targets(Embedder(reference, processor, cache_dir=cache_dir), SafeCLIPLoss())
    targets.prepare(rows, QuadrupletCollator(processor, 77))
    return list(targets.table.take(np.arange(8)).values())


def pixels(processor, folder):
    rows = QuadrupletRows(Dataset.from_dict(make_rows(4), features=FEATURES))
    rows.cache_images(processor.image_processor, progress=False)
    return torch.stack([rows[index]["safe_image"] for index in range(4)])


def audit(processor, folder):
    rows = Dataset.from_dict(make_rows(4), features=FEATURES).select_columns(["unsafe_image"])
    return read_items(DatasetDict(train=rows), processor.tokenizer, progress=False)[0].facts[:]


def bundled(processor, folder):
    split = demo._drawn("t", demo._rows, demo.FEATURES, {"count": 1, "styles": demo.STYLES[:1], "held_out": False})
    return np.asarray(split[0]["safe_image"])


def rows(processor, folder):
    if not (folder / "rows.jsonl").exists():
        (folder / "rows.jsonl").write_text("".join(f'{{"safe_caption": "a dog {n}"}}\n' for n in range(300)))
    return load_quadruplets(str(folder / "rows.jsonl"), hold_out=False)["train"]["safe_caption"][:]


def tables(processor, folder):
    (folder / "rows.csv").write_text(CSV)
    return load_splits(str(folder / "rows.csv"))["train"]["unsafe_caption"][:]


def fetched(processor, folder):
    return fetching.fetched(["http://images.example/1"], folder_of("fetched"))["http://images.example/1"].read_bytes()


def mended(processor, folder):
    if not (folder / "0.tar").exists():
        for n in range(9):
            (folder / f"{n}.txt").write_text(f"a dog {n}")
        with tarfile.open(folder / "0.tar", "w") as archive:
            for n in range(9):
                archive.add(folder / f"{n}.txt", f"{n}.txt")
        (folder / "0.tar").write_bytes((folder / "0.tar").read_bytes()[:7000])
    return load_splits(str(folder / "0.tar"), skip_damaged=True)["train"]["txt"][:]


def links(processor, folder):
    (folder / "rows[1].jsonl").write_text('{"safe_caption": "a dog"}\n')
    return load_splits(str(folder / "rows[1].jsonl"))["train"]["safe_caption"][:]


def generated(processor, folder):
    clip = build_model(processor)
    scorer = ImageScorer([FakeJudge("red", redness)], Embedder(clip, processor, precision="float32"))
    requests, settings = requests_of(items(1), 1), GenerationArguments(**FEW)
    made = paint_all(build_pipeline(processor, clip), requests, settings, scorer, folder / GENERATED)
    return [made.tensors["embeds"], made.records, *(np.asarray(made.image(n)) for n in range(2))]


MAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "embeddings": embeddings,
    "reference_embeddings": reference_embeddings,
    "pixels": pixels,
    "audit": audit,
    "demo": bundled,
    "rows": rows,
    "tables": tables,
    "fetched": fetched,
    "mended": mended,
    "links": links,
    "generated": generated,
}
SILENT = {"links", "mended"}  # looked at, or written anew, by each run


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray | torch.Tensor) else one == other


def test_every_kind_is_damaged_here():
    assert {*MAKERS, "earlier"} == {*KINDS}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_damaged_is_made_again(kind, how, processor, cache, monkeypatch, caplog):
    async def image(*_) -> bytes:
        return png

    Image.effect_noise((32, 32), 80).save(cache / "noise.png")
    png = (cache / "noise.png").read_bytes()
    monkeypatch.setattr(fetching, "_fetch", image)
    kept = cache / GENERATED if kind == "generated" else folder_of(kind)

    def times_said() -> int:
        caplog.clear()
        assert same(MAKERS[kind](processor, cache), whole)
        return caplog.text.count("it is made again")

    whole = MAKERS[kind](processor, cache)
    found = list(entries(kind, kept))
    assert found and all(entry.size for entry in found) and times_said() == 0
    files = [file for entry in found for file in ([entry.path] if entry.path.is_file() else entry.path.rglob("*"))]
    for file in sorted(file for file in files if file.is_file() and file.suffix != ".lock"):
        content = DAMAGE[how](file.read_bytes())
        if file.is_symlink():
            file.unlink()
        file.write_bytes(content)
        assert times_said() == (kind not in SILENT) and times_said() == 0, file
        assert len(list(entries(kind, kept))) == len(found)
