"""The benchmarks that train and measure, with the trainings and measurements left out."""

import json
import sys
from pathlib import Path

import pytest
import torch

from .helpers import ROOT, load_script

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
