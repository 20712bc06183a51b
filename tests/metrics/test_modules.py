from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from safe_clip.metrics import load_metric
from safe_clip.metrics.ranking import ExactIndex

from ..programs import run_python

METRICS = Path(__file__).parents[2] / "safe_clip" / "metrics"
NAMES = ("recall_at_k", "safe_rate", "neighbour_overlap")
QUERIES = [[1.0, 0.1], [1.0, 0.2], [-1.0, 0.3]]
GALLERY = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_loads_the_module_by_its_path_and_it_describes_itself(name):
    module = evaluate.load(str(METRICS / name))
    assert module.module_type == "metric"
    assert "title={" in module.citation and "Args:" in module.inputs_description and len(module.description) > 100
    example = [line.strip() for line in module.inputs_description.splitlines() if ">>>" in line or "{'" in line]
    scope = {"evaluate": evaluate}
    for line in example[:-1]:
        code = line.removeprefix(">>> ").replace('"safe_clip/metrics', f'"{METRICS}')
        if ".compute(" in code:
            assert eval(code, scope) == pytest.approx(eval(example[-1]))
        else:
            exec(code, scope)


@pytest.mark.slow
def test_evaluate_loads_them_offline_in_a_fresh_process(tmp_path):
    code = (
        "import evaluate, sys\n"
        f"recall = evaluate.load('{METRICS}/recall_at_k')\n"
        f"print(recall.compute(queries={QUERIES}, references=[[0], [1], [2]], gallery={GALLERY}, k=[1, 2]))"
    )
    env = {"PATH": "/usr/bin", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    done = run_python("-c", code, cwd=METRICS.parents[1], env=env)
    assert done.returncode == 0, done.stderr
    figures = eval(done.stdout.splitlines()[-1])
    assert figures == pytest.approx({"recall_at_1": 2 / 3, "recall_at_2": 1.0, "median_rank": 1.0})


def test_recall_by_hand():
    recall = load_metric("recall_at_k")
    figures = recall.compute(queries=QUERIES, references=[[0], [1], [2]], gallery=GALLERY, k=[1, 2])
    assert figures == pytest.approx({"recall_at_1": 2 / 3, "recall_at_2": 1.0, "median_rank": 1.0})


def test_recall_with_several_right_items():
    recall = load_metric("recall_at_k")
    figures = recall.compute(queries=QUERIES, references=[[0, 1], [1, 0], [2]], gallery=GALLERY, k=[1])
    assert figures == pytest.approx({"recall_at_1": 1.0, "median_rank": 1.0})


def test_safe_rate_by_hand():
    figures = load_metric("safe_rate").compute(
        queries=[[1.0, 0.1], [0.1, 1.0], [-1.0, 0.1], [0.0, -1.0]],
        safe_gallery=[[1.0, 0.0], [0.0, 1.0]],
        unsafe_gallery=[[-1.0, 0.0], [0.0, -1.0]],
        k=[1, 2, 4],
    )
    assert figures == pytest.approx({"safe_rate_at_1": 0.5, "safe_rate_at_2": 0.6875, "safe_rate_at_4": 0.5})


def test_arrays_lists_and_tensors_and_any_length_give_the_same():
    recall = load_metric("recall_at_k")
    options = {"references": [[0], [1], [2]], "k": [1, 2]}
    expected = recall.compute(queries=QUERIES, gallery=GALLERY, **options)
    for kind in (np.asarray, torch.tensor):
        assert recall.compute(queries=3 * kind(QUERIES), gallery=5 * kind(GALLERY), **options) == expected
    index = ExactIndex(torch.tensor(GALLERY))
    assert recall.compute(queries=QUERIES, index=index, **options) == expected


def test_values_by_query_are_in_the_order_of_the_queries():
    values = load_metric("recall_at_k").compute(
        queries=QUERIES, references=[[1], [0], [1]], gallery=GALLERY, k=[1], per_query=True
    )
    assert values["recall_at_1"].tolist() == [0, 1, 0]
    assert values["rank"].tolist() == [2, 1, 2]


def test_neighbour_overlap_of_what_did_not_move_is_one_and_turning_changes_nothing():
    overlap = load_metric("neighbour_overlap")
    items = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    assert overlap.compute(before=items.numpy(), after=items.numpy())["neighbour_overlap"] == 1
    assert overlap.compute(before=items.numpy(), after=(items @ turn).numpy())["neighbour_overlap"] == 1


def test_batches_that_are_added_give_what_whole_inputs_give():
    recall = load_metric("recall_at_k")
    options = {"gallery": GALLERY, "k": [1, 2]}
    whole = recall.compute(queries=QUERIES, references=[[0], [1], [2]], **options)
    for index, query in enumerate(QUERIES):
        recall.add_batch(queries=[query], references=[[index]])
    assert recall.compute(**options) == whole


def test_inputs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        load_metric("neighbour_overlap").compute(before=QUERIES, after=QUERIES[:2], k=1)
