import math

import numpy as np
import pytest
import torch

from safe_clip.evaluation.intervals import summarise


def test_the_interval_of_a_share_is_about_that_of_the_normal_approximation():
    hits = torch.zeros(1000, dtype=torch.float64)
    hits[:300] = 1
    figure = summarise({"hit": hits})["hit"]
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert figure["value"] == 0.3
    assert figure["low"] == pytest.approx(0.3 - half, abs=0.004)
    assert figure["high"] == pytest.approx(0.3 + half, abs=0.004)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        figure = summarise({"hit": torch.tensor(rng.random(200) < 0.4, dtype=torch.float64)}, resamples=300)["hit"]
        inside += figure["low"] <= 0.4 <= figure["high"]
    assert 0.90 <= inside / 200 <= 0.99


def test_the_median_of_ranks_and_its_interval():
    ranks = torch.tensor([1.0] * 25 + [2.0] * 30 + [9.0] * 45, dtype=torch.float64)
    figures = summarise({"safe_t2i_rank": ranks})
    assert set(figures) == {"safe_t2i_median_rank"}
    assert figures["safe_t2i_median_rank"] == {"value": 2, "low": 2, "high": 9}
    even = summarise({"a_rank": torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)})["a_median_rank"]
    assert even["value"] == 2.5 and even["low"] >= 1 and even["high"] <= 10


def test_medians_of_resamples_are_those_of_the_repeated_values():
    from safe_clip.evaluation.intervals import _weighted_medians

    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 6):
        values = np.sort(rng.integers(0, 9, size=count)).astype(float)
        for _ in range(200):
            weights = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
            assert _weighted_medians(values, weights[None]) == np.median(np.repeat(values, weights.astype(int)))


def test_categories_have_their_own_figures():
    values = torch.tensor([1, 1, 0, 0, 1, 0], dtype=torch.float64)
    figure = summarise({"hit": values}, ["a", "a", "b", "b", "b", "b"])["hit"]
    assert figure["value"] == 0.5
    assert figure["by_category"]["a"] == {"value": 1, "low": 1, "high": 1, "n": 2}
    assert figure["by_category"]["b"]["value"] == 0.25 and figure["by_category"]["b"]["n"] == 4


def test_the_same_input_gives_the_same_output_and_nothing_gives_nothing():
    values = {"hit": torch.rand(50, dtype=torch.float64), "rank": torch.rand(50, dtype=torch.float64)}
    assert summarise(values) == summarise(values)
    assert summarise({}) == {}


def test_queries_that_belong_together_are_one_piece_of_evidence():
    hits = torch.tensor([1.0] * 60 + [0.0] * 140, dtype=torch.float64)
    alone = summarise({"hit": hits})["hit"]
    five_times = summarise({"hit": hits.repeat(5)}, clusters=list(range(200)) * 5)["hit"]
    assert five_times == alone
    assert summarise({"hit": hits.repeat(5)})["hit"]["high"] < alone["high"] - 0.02


def test_a_change_is_known_better_than_its_ends():
    rng = np.random.default_rng(5)
    before = torch.tensor(rng.random(400) < 0.5, dtype=torch.float64)
    after = before.clone()
    after[:12] = 1  # some of which it was before
    alone, made = summarise({"hit": after})["hit"], summarise({"hit": after}, against={"hit": before})["hit"]
    by = made.pop("change")
    assert made == alone
    moved = (after - before).mean().item()
    assert by["value"] == pytest.approx(moved, abs=1e-6) and 0 < by["low"] < moved < by["high"]
    assert by["high"] - by["low"] < 0.3 * (made["high"] - made["low"])
    # As the normal approximation of paired differences has it.
    half = 1.96 * (after - before).std().item() / 400**0.5
    assert by["high"] - by["low"] == pytest.approx(2 * half, rel=0.15)


def test_changes_of_what_both_have():
    values = {"hit": torch.tensor([1.0, 0.0, math.nan, 1.0]), "new": torch.ones(4), "a_rank": torch.ones(4)}
    before = {"hit": torch.tensor([0.0, 0.0, 1.0, math.nan]), "a_rank": torch.ones(4), "old": torch.ones(4)}
    made = summarise({name: each.double() for name, each in values.items()}, against=before)
    assert made["hit"]["change"]["value"] == 0.5  # over the two queries that both have
    assert "change" not in made["new"] and "change" not in made["a_median_rank"]
    same = summarise({"hit": values["hit"].double()}, ["a", "a", "b", "b"], clusters=[0, 0, 1, 1], against=values)[
        "hit"
    ]
    assert same["change"] == {"value": 0, "low": 0, "high": 0} and "change" not in same["by_category"]["a"]
