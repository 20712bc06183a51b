import math

import pytest
import torch
from torch.nn.functional import normalize

from safe_clip.metrics import retrieval
from safe_clip.metrics.retrieval import quadruplet_metrics, recall_at_1, safe_rate

# Three directions in the plane.
POOL = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


def test_recall_by_hand():
    queries = normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [-1.0, 0.3]]), dim=-1)
    assert recall_at_1(queries, POOL) == pytest.approx(2 / 3)


def test_recall_counts_identical_captions_as_right():
    queries = normalize(torch.tensor([[0.1, 1.0], [0.1, 1.0], [-1.0, 0.3]]), dim=-1)
    assert recall_at_1(queries, POOL) == pytest.approx(2 / 3)
    assert recall_at_1(queries, POOL, groups=[0, 0, 2]) == pytest.approx(1)


def test_safe_rate_by_hand():
    queries = normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [-1.0, 0.1], [0.0, -1.0]]), dim=-1)
    safe, unsafe = POOL[:2], torch.tensor([[-1.0, 0.0], [0.0, -1.0]])
    assert safe_rate(queries, safe, unsafe) == pytest.approx(0.5)


def test_constant_embeddings_score_chance():
    constant = torch.tensor([[0.6, 0.8]]).repeat(50, 1)
    assert recall_at_1(constant, constant) == pytest.approx(1 / 50)
    assert safe_rate(constant, constant, constant[:30]) == pytest.approx(50 / 80)


def test_random_embeddings_score_chance():
    generator = torch.Generator().manual_seed(0)
    draw = [normalize(torch.randn(2000, 16, generator=generator), dim=-1) for _ in range(3)]
    assert abs(recall_at_1(draw[0], draw[1]) - 1 / 2000) <= 3 * math.sqrt(1 / 2000 / 2000)
    assert abs(safe_rate(*draw) - 0.5) <= 3 * math.sqrt(0.25 / 2000)


def test_chunks_do_not_change_the_result(monkeypatch):
    draw = [normalize(torch.randn(103, 8), dim=-1) for _ in range(4)]
    whole = quadruplet_metrics(*draw)
    monkeypatch.setattr(retrieval, "CHUNK", 10)
    assert quadruplet_metrics(*draw) == pytest.approx(whole)


def test_quadruplet_metrics_name_the_query():
    # Safe items agree with safe items, unsafe ones with unsafe ones.
    eye = torch.eye(4)
    metrics = quadruplet_metrics(safe_text=eye, unsafe_text=-eye, safe_image=eye, unsafe_image=-eye)
    assert metrics == {
        "recall_t2i": 1.0,
        "recall_i2t": 1.0,
        "safe_rate_safe_text": 1.0,
        "safe_rate_safe_image": 1.0,
        "safe_rate_unsafe_text": 0.0,
        "safe_rate_unsafe_image": 0.0,
    }
