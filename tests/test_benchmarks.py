"""The benchmarks that train and measure, with the trainings and measurements left out."""

import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import ImageColor

from safe_clip.embedding.embedder import Embedder

from .helpers import FEATURES, ROOT, build_model, load_script, make_rows

FIGURES = {"before": 0.25, "after": 0.75}


@pytest.fixture
def sweep(monkeypatch):
    """The benchmark, of which each training writes the same figures, and the commands of these."""
    script, commands = load_script("benchmarks/sweep.py"), []

    def call(verb, flags):
        commands.append([verb, *flags])
        folder = Path(flags[flags.index("--output_dir") + 1])
        splits = flags[flags.index("--eval_splits") + 1 : flags.index("--seed")]
        folder.mkdir(parents=True)
        figures = {
            when: {split: dict.fromkeys(script.FIGURES, value) for split in splits} for when, value in FIGURES.items()
        }
        (folder / "results.json").write_text(json.dumps(figures))

    monkeypatch.setattr(script, "call", call)
    return script, commands


def test_recipes_and_files_of_ones_own_are_swept_and_not_trained_twice(sweep, tmp_path, monkeypatch, capsys):
    script, commands = sweep
    own = tmp_path / "own.yaml"
    own.write_text("max_steps: 3\n")
    for config in ("demo", "paper", str(own)):
        for _ in range(2):
            words = ["sweep.py", config, "--seeds", "0", "1", "--splits", "test", "--runs", str(tmp_path / "runs")]
            monkeypatch.setattr(sys, "argv", words)
            script.main()
            last = capsys.readouterr().out.splitlines()[-1]
            assert last == f"| {Path(config).name} | test |" + " 75.0 ± 0.0 |" * len(script.FIGURES)
    assert [command[:2] for command in commands] == [
        ["train", config] for config in ("demo", "paper", str(own)) for _ in range(2)
    ]
    own.write_text("max_steps: 4\n")
    script.run(str(own), [], ["test"], 0, tmp_path / "runs")
    assert len(commands) == 7  # since its settings changed


def test_every_recipe_of_a_benchmark_is_one(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    there = {path.stem for path in (ROOT / "safe_clip" / "configs").glob("*.yaml")}
    named = {load_script("benchmarks/bakeoff.py").CONFIG}
    named |= {config for config, _ in load_script("benchmarks/generation.py").RECIPES.values()}
    assert named <= there


def test_the_first_results_alone_are_ordered_anew():
    best = load_script("benchmarks/rerank.py").best
    original, safe = torch.tensor([[0.9, 0.8, 0.7, 0.1]]), torch.tensor([[0.1, 0.2, 0.5, 0.9]])
    assert [best(original, safe, k).item() for k in (1, 2, 3, 4, 9)] == [0, 1, 2, 3, 3]


# An index of what it is told, in chunks; SPOILT makes it depend on whether it was stopped.
FAKE_EMBED = """
import sys, time
from pathlib import Path
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
images = sorted(Path(words["--dataset"]).iterdir())
cache, index = Path(words["--cache_dir"]), Path(words["--output_dir"])
cache.mkdir(exist_ok=True)
index.mkdir(exist_ok=True)
resumed = any(cache.iterdir())
for number in range(0, len(images), 3):
    if not (cache / f"{number:07}.safetensors").exists():
        time.sleep(0.1)
        (cache / f"{number:07}.safetensors").write_text("a chunk")
(index / "index.json").write_text("facts")
(index / "index.parquet").write_bytes(b"".join(image.read_bytes() for image in images) + b"x" * (resumed and SPOILT))
"""


@pytest.mark.parametrize("spoilt", [0, 1])
def test_an_index_that_was_stopped_is_compared_byte_for_byte(spoilt, tmp_path, monkeypatch, capsys):
    script, fake = load_script("benchmarks/embed.py"), tmp_path / "fake.py"
    fake.write_text(FAKE_EMBED.replace("SPOILT", str(spoilt)))
    monkeypatch.setattr(script, "COMMAND", [sys.executable, str(fake)])
    monkeypatch.setattr(sys, "argv", ["embed.py", "--images", "15"])
    if spoilt:
        with pytest.raises(SystemExit, match="index.parquet of the run that was stopped is not that of the whole run"):
            script.main()
        return
    script.main()
    lines = capsys.readouterr().out.splitlines()
    runs = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines[2:5]}
    assert int(runs["whole"][2]) == 5 == int(runs["killed"][2]) + int(runs["again"][2]) and int(runs["killed"][2]) >= 3
    assert all(float(run[4].strip(" |").replace(",", "")) > 1 for run in runs.values())  # MB, of any Python
    assert lines[5].startswith("15 images in 5 chunks; both indexes have the same")


def test_images_to_embed_are_drawn_the_same_each_time(tmp_path):
    draw = load_script("benchmarks/embed.py").draw
    draw(tmp_path / "one", 5)
    draw(tmp_path / "other", 5)
    files = [
        [(file.name, file.read_bytes()) for file in sorted((tmp_path / name).iterdir())] for name in ("one", "other")
    ]
    assert files[0] == files[1] and len({content for _, content in files[0]}) == 5


def test_strips_show_what_is_found_first_with_its_side_around_it(processor):
    script = load_script("benchmarks/strips.py")
    rows = Dataset.from_dict(make_rows(8), features=FEATURES)
    model, other = (Embedder(build_model(processor, seed), processor, progress=False) for seed in (0, 1))
    texts = rows["unsafe_caption"][:2]
    found = list(script.searches(rows, texts, [model, other]))
    images = model.images(script.gallery_of(rows), "image").embeds
    assert (
        found[1][0] == (model.texts(texts).embeds[1] @ images.T).topk(6).indices.tolist() and found[1][0] != found[1][1]
    )
    sheet = script.draw([("a query", script.gallery_of(rows), [[0, 7], [8, 15]])])
    tile, right = script.IMAGE_SIZE + 2 * script.FRAME, sheet.width // 2 + script.GAP // 2
    colours = [sheet.getpixel((x, 2 * script.LINE + 1)) for x in (0, tile + 2, right, right + tile + 2)]
    assert colours == [ImageColor.getrgb(script.COLOURS[unsafe]) for unsafe in (False, False, True, True)]
