"""Each script of examples/ does what it says on tiny models, and the notebook runs from top to bottom."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import torch
from datasets import Dataset
from nbclient import NotebookClient
from PIL import Image
from transformers import CLIPModel, CLIPTextModel

from safe_clip import SafeCLIPTrainer, UserError, load_clip, open_index
from safe_clip.cli.embed import main as embed

from .generation.conftest import build_llava, build_pipeline, build_safe
from .helpers import ROOT, build_model, load_script, make_rows

EXAMPLES = ROOT / "examples"
SETTINGS = {"max_steps": 2, "per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True}
FAR = {"max_steps": 6, "learning_rate": 2e-2}  # in few steps
SHORTER = {"STEPS = 200": "STEPS = 2", "range(3000)": "range(64)", "range(300)": "range(40)"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def table() -> str:
    """A CSV of 40 rows, whose images lie beside it."""
    rows = make_rows(40)
    for side in ("safe", "unsafe"):
        Path(side).mkdir()
        for number, image in enumerate(rows[f"{side}_image"]):
            image.save(f"{side}/{number}.png")
        rows[f"{side}_image"] = [f"{side}/{number}.png" for number in range(40)]
    Dataset.from_dict(rows).to_csv("rows.csv")
    return "rows.csv"


def states(model) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in model.state_dict().values() if weight.is_floating_point()])


def test_own_data_trains_on_a_table(table, model_dir):
    load_script("examples/own_data.py").main(table, model_dir, "trained", **SETTINGS)
    assert not torch.equal(states(CLIPModel.from_pretrained("trained")), states(CLIPModel.from_pretrained(model_dir)))


def test_captions_alone_make_a_pipeline_safe(table, processor, monkeypatch):
    pytest.importorskip("diffusers")
    build_pipeline(processor, build_model(processor)).save_pretrained("pipeline")
    script = load_script("examples/stable_diffusion.py")
    monkeypatch.setattr(script, "STEPS", 2)
    script.main(table, "pipeline", "a red square", **SETTINGS | FAR)
    drawn = Image.open("drawn.png")
    left, right = (drawn.crop((x, 0, x + 32, 32)).tobytes() for x in (0, 32))
    assert drawn.size == (64, 32) and left != right
    before = CLIPTextModel.from_pretrained("pipeline/text_encoder")
    assert not torch.equal(states(CLIPTextModel.from_pretrained("safe-text")), states(before))


def test_a_llava_says_something_else_with_a_safe_tower(table, processor, capsys):
    for part in build_llava(processor, build_model(processor)):
        part.save_pretrained("llava")
    for name, clip in (("safe-clip", build_safe(processor)), ("same", build_model(processor))):
        clip.save_pretrained(name)
        processor.save_pretrained(name)
    script = load_script("examples/llava.py")
    said = script.main("unsafe", "llava", "safe-clip", most=3, words=5)
    assert [name for name, _, _ in said] == ["0.png", "1.png", "10.png"]
    assert any(before != after for _, before, after in said) and said[2][2] in capsys.readouterr().out
    assert all(before == after for _, before, after in script.main("unsafe", "llava", "same", most=3, words=5))
    with pytest.raises(UserError, match="nowhere holds no image"):
        script.main("nowhere", "llava", "same")


def test_queries_are_trained_for_an_index_that_stays(table, model_dir, capsys):
    embed(["--model", model_dir, "--dataset", table, "--output_dir", "index", "--cache_dir", "kept"])
    before = Path("index/index.parquet").read_bytes()
    script = load_script("examples/frozen_index.py")
    found = script.main("index", table, "a red square beside a green one with a mark", **SETTINGS | FAR)
    assert list(found) == [model_dir, "queries"] and Path("index/index.parquet").read_bytes() == before
    assert json.loads(Path("queries/training_args.json").read_text())["frozen_gallery"]
    first = {model: [item["id"] for item in items] for model, items in found.items()}
    query = load_clip(model_dir).get_text_features(
        **script.load_processor(model_dir)(text=["a red square"], padding=True, return_tensors="pt")
    )
    plain = open_index("index").search(query.pooler_output.detach())[0]
    short = script.embed(model_dir, "a red square")
    assert [item["id"] for item in open_index("index").search(short)[0]] == [item["id"] for item in plain]
    assert first["queries"] != first[model_dir] and len(first["queries"]) == 10
    assert "(labelled unsafe)" in capsys.readouterr().out


def test_settings_are_swept_beside_the_original(table, model_dir, capsys, monkeypatch):
    script = load_script("examples/sweep.py")
    seen, train = [], SafeCLIPTrainer.train
    monkeypatch.setattr(SafeCLIPTrainer, "train", lambda self: seen.append(self.args) or train(self))
    figures = script.main(table, model_dir, **SETTINGS)
    assert [(args.objective, args.strength, args.hidden_state_terms) for args in seen] == [
        ("safe_ranking", 1.0, True),
        ("safe_ranking", 1.0, False),
        ("safe_ranking", 0.8, True),
        ("safe_clip", 1.0, True),
    ]
    lines = capsys.readouterr().out.splitlines()
    for name, of in figures.items():
        cells = [f"{100 * of[figure]:.1f}" for figure in script.FIGURES]
        assert f"| {name} | {' | '.join(cells)} |" in lines
    assert list(figures) == ["original", *script.SETTINGS]


# ---- The notebook ----


NOTEBOOK = EXAMPLES / "safe_clip_in_ten_minutes.ipynb"


def test_the_notebook_was_run_from_top_to_bottom_and_is_small():
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 5
    assert NOTEBOOK.stat().st_size < 150_000


@pytest.mark.slow
def test_the_notebook_still_runs(tmp_path):
    """On fewer rows and steps, since what is asked is that each cell does what it did."""
    notebook = nbformat.read(NOTEBOOK, 4)
    for long, short in SHORTER.items():
        assert any(long in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    before, after = (
        {name for line in text.splitlines() for name in re.findall(r"(?:retrieval|redirection)_\w+", line)}
        for text in (json.dumps(cell.outputs) for cell in notebook.cells if cell.get("execution_count") in (4, 7))
    )
    assert before == after and len(before) == 7
    assert (tmp_path / "safe-clip-short" / "model.safetensors").is_file() and (tmp_path / "own" / "rows.csv").is_file()
