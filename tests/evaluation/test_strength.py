"""The curve of safety against utility, and its elbow."""

import json

import pytest
from accelerate import Accelerator
from PIL import Image

from safe_clip import UserError, merge
from safe_clip.cli import eval as script
from safe_clip.evaluation.data import load_evaluation_data
from safe_clip.evaluation.run import Subject
from safe_clip.evaluation.strength import Point, elbow, sweep, sweep_table

from ..helpers import build_model


def test_elbow_by_hand():
    # Above the straight line by 0.8 - 0.2 = 0.6 at strength 0.5, by 0.9 - 0.6 = 0.3 at 0.8.
    points = [Point(0, 0.1, 0.9), Point(0.5, 0.5, 0.88), Point(0.8, 0.55, 0.84), Point(1, 0.6, 0.8)]
    assert elbow(points) == points[1]
    straight = [Point(0, 0.0, 1.0), Point(0.5, 0.5, 0.5), Point(1, 1.0, 0.0)]
    assert elbow(straight) is None
    below = [Point(0, 0.0, 1.0), Point(0.5, 0.1, 0.5), Point(1, 1.0, 0.0)]
    assert elbow(below) is None
    nothing_gained = [Point(0, 0.5, 1.0), Point(0.5, 0.6, 0.9), Point(1, 0.5, 0.8)]
    assert elbow(nothing_gained) is None
    free = [Point(0, 0.1, 0.5), Point(0.5, 0.4, 0.5), Point(1, 0.9, 0.6)]
    assert elbow(free) == free[-1]
    table = sweep_table({"test": points, "other": straight})
    assert [line for line in table.splitlines() if line.endswith("< elbow")] == [
        "                         0.50    50.0     88.0  < elbow"
    ]
    assert table.count("No elbow") == 1


@pytest.fixture
def safe_dir(processor, tmp_path):
    build_model(processor, seed=1).save_pretrained(tmp_path / "safe")
    processor.save_pretrained(tmp_path / "safe")
    return str(tmp_path / "safe")


def test_its_points_are_those_of_the_merged_models(model_dir, safe_dir, dataset_dir, tmp_path):
    data = load_evaluation_data(dataset_dir, tasks=("retrieval", "redirection"))
    accelerator, options = Accelerator(), {"cache_dir": tmp_path / "cache"}
    ends = Subject(safe_dir), Subject(model_dir)
    (points,) = sweep(*ends, [1, 0, 0.3, 1], data, accelerator, **options).values()
    assert [point.strength for point in points] == [0, 0.3, 1]
    merge(model_dir, safe_dir, 0.3).save_pretrained(tmp_path / "safe")
    (alone,) = sweep(*ends, [1.0], data, accelerator, **options).values()
    assert alone[0][1:] == points[1][1:]
    (original,) = sweep(Subject(model_dir), Subject(model_dir), [1.0], data, accelerator, **options).values()
    assert original[0][1:] == points[0][1:]


@pytest.mark.slow
def test_eval_py_draws_the_curve(model_dir, safe_dir, dataset_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", safe_dir, "--baseline", model_dir, "--dataset", dataset_dir, "--cache_dir", "cache"]
    script.main([*flags, "--sweep", "strength", "--strengths", "0", "0.5", "1"])
    said = capsys.readouterr().out
    curves = json.loads((tmp_path / "evaluation" / "strength.json").read_text())
    assert [point["strength"] for point in curves["test"]] == [0, 0.5, 1]
    assert f"1.00  {100 * curves['test'][2]['safety']:6.1f}" in said
    assert Image.open(tmp_path / "evaluation" / "strength.png").size[0] > 300
    # One point alone, by all protocols.
    script.main([*flags, "--strength", "0.5", "--output_dir", "half", "--tasks", "retrieval", "redirection"])
    results = json.loads((tmp_path / "half" / "results.json").read_text())
    assert results["names"]["model"] == f"{safe_dir}, strength 0.5"
    recalls = results["models"]["model"]["splits"]["test"]["retrieval"]
    utility = (recalls["safe_t2i_recall_at_1"]["value"] + recalls["safe_i2t_recall_at_1"]["value"]) / 2
    assert utility == curves["test"][1]["utility"]
    for wrong, message in (
        (["--model", safe_dir, "--strength", "0.5"], "name the original model with --baseline"),
        ([*flags, "--sweep", "rank"], "only strength can be swept"),
        ([*flags, "--sweep", "strength", "--strengths", "1", "1"], "at least two different values"),
    ):
        with pytest.raises(UserError, match=message):
            script.main(wrong)
