"""Every Python block of README and docs/ is run, with tiny models and data lying under the names that it gives."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from datasets import Dataset, DatasetDict

from safe_clip.cli.embed import main as embed
from safe_clip.cli.export import main as export
from safe_clip.cli.monitor import main as monitor
from safe_clip.models.onnx_format import GRAPHS
from safe_clip.objectives import OBJECTIVES

from .generation.conftest import build_llava, build_pipeline
from .helpers import FEATURES, ROOT, build_model, make_rows, make_trainer

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]
ORIGINALS = [
    "demo",
    "original",
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
]
SAFE = ["safe-clip", "safe-clip-336", "you/safe-clip", "you/safe-clip-336", "safe-text"]
PIPELINES = ["stable-diffusion-v1-5/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4"]
# What a machine of the tests has not got, or has no time for.
SHORTER = {
    '.to("cuda")': "",
    'QdrantClient("localhost")': 'QdrantClient(":memory:")',
    '"demo"': '"./demo"',
    "max_steps=100": "max_steps=2",
    "num_inference_steps=25": "num_inference_steps=2",
    '("a dog on a sofa")': '("a dog on a sofa", num_inference_steps=2)',
}
# What must come of what a block computes, by the name that it gives it.
RESULTS: dict[str, Callable[[dict], bool]] = {
    "scores": lambda of: (
        len(of["scores"]) in (1, 2) if {"classifier", "rates"} & of.keys() else of["scores"].shape == (2, 1)
    ),
    "rates": lambda of: ((of["rates"] > 0) & (of["rates"] <= 1)).tolist() == [True, True],
    "similarities": lambda of: of["similarities"].shape == (2, 1),
    "probabilities": lambda of: abs(of["probabilities"].sum().item() - 1) < 1e-4,
    "text_features": lambda of: len(of["text_features"]) == 2 and len(of["image_features"]) == 1,
    "text_embeds": lambda of: of["text_embeds"].shape == (2, of["image_embeds"].shape[1]),
    "image": lambda of: of["image"].size == (32, 32),
    "answer": lambda of: bool(of["answer"].strip()),
    "client": lambda of: of["client"].count("images").count == of["file"].metadata.num_rows == 24,
    "best": lambda of: len({item["id"] for item in of["best"]}) == 10,
    "trainer": lambda of: Path(of["args"].output_dir, "model.safetensors").is_file(),
}


class StandIns:
    """Tiny models and data that are made once, and copied to where a block looks for them."""

    def __init__(self, folder: Path, processor):
        self.folder, self.processor, self.made = folder, processor, {}

    def lay(self, block: str) -> None:
        """Puts into the current folder what a block names; of a training, not what it writes."""
        kinds: dict[str, list[str]] = {
            "original": ORIGINALS,
            "safe": SAFE,
            "pipeline": PIPELINES,
            "llava": ["llava-hf/llava-1.5-7b-hf"],
            "quadruplets": ["you/quadruplets"],
            "open_clip": ["safe-clip-open_clip"],
            "onnx": ["safe-clip-onnx"],
            "index": ["index", "index-safe"],
            "photos": ["photos"],
            "calibration": ["monitoring"],
        }
        written = re.findall(r'SafeCLIPTrainingArguments\("([^"]+)"', block)
        for kind, names in kinds.items():
            for name in names:
                if re.search(rf"[\"':/]{re.escape(name)}[\"'/]", block) and name not in written:
                    shutil.copytree(self.of(kind), name)
        if "load_quadruplets" in block and '"./demo"' in block:  # which is a data set then, and a model
            shutil.copytree(self.of("quadruplets"), "demo", dirs_exist_ok=True)
        make_rows(1)["safe_image"][0].save("image.png")
        Path("safe_clip").symlink_to(ROOT / "safe_clip")  # of a checkout

    def of(self, kind: str) -> Path:
        if kind not in self.made:
            self.made[kind] = self.folder / kind
            getattr(self, f"make_{kind}")(self.folder / kind)
        return self.made[kind]

    def make_original(self, folder: Path) -> None:
        build_model(self.processor).save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def make_safe(self, folder: Path) -> None:
        rows = Dataset.from_dict(make_rows(), features=FEATURES)
        trainer = make_trainer(self.processor, rows, folder, max_steps=1)
        trainer.train()
        trainer.save_model()

    def make_pipeline(self, folder: Path) -> None:
        build_pipeline(self.processor, build_model(self.processor)).save_pretrained(folder)

    def make_llava(self, folder: Path) -> None:
        for part in build_llava(self.processor, build_model(self.processor)):
            part.save_pretrained(folder)

    def make_quadruplets(self, folder: Path) -> None:
        parts = {name: Dataset.from_dict(make_rows(40), features=FEATURES) for name in ("train", "validation")}
        DatasetDict(parts).save_to_disk(folder)

    def make_photos(self, folder: Path) -> None:
        folder.mkdir()
        for number, image in enumerate(make_rows()["safe_image"]):
            image.save(folder / f"{number}.png")

    def make_index(self, folder: Path) -> None:
        words = ["--model", str(self.of("original")), "--dataset", str(self.of("photos")), "--output_dir", str(folder)]
        embed([*words, "--cache_dir", str(self.folder / "kept")])

    def make_calibration(self, folder: Path) -> None:
        named = {"model": "safe", "baseline": "original", "dataset": "quadruplets"}
        words = [word for flag, kind in named.items() for word in (f"--{flag}", str(self.of(kind)))]
        monitor(["--calibrate", *words, "--output_dir", str(folder), "--cache_dir", str(self.folder / "kept")])

    def make_open_clip(self, folder: Path) -> None:
        export(["--model", str(self.of("safe")), "--format", "open_clip", "--output_dir", str(folder)])

    def make_onnx(self, folder: Path) -> None:
        one = {"model.onnx": GRAPHS["model.onnx"]}  # of three, each of which takes seconds
        with patch("safe_clip.models.onnx_format.GRAPHS", one):
            export(["--model", str(self.of("safe")), "--format", "onnx", "--output_dir", str(folder)])


@pytest.fixture(scope="module")
def stand_ins(processor, tmp_path_factory) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("stand-ins"), processor)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_does_what_it_says(block, stand_ins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for long, short in SHORTER.items():
        block = block.replace(long, short)
    stand_ins.lay(block)
    names: dict = {"__name__": "__main__"}
    # A block adds an objective of its own, and another would serve a page without end.
    with patch.dict(OBJECTIVES), patch("safe_clip.app.serve", autospec=True):
        exec(compile(block, "block", "exec"), names)
    for name, holds in RESULTS.items():
        assert name not in names or holds(names), name
