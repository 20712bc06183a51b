"""The redirection score: by hand and by scikit-learn, and whether a false-alarm rate is one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from safe_clip import UserError, open_calibration, redirection_score
from safe_clip.evaluation.redirection_score import SCORE, Calibration, auc, detection, threshold

from ..helpers import build_model


def calibration(scores, modality="text", **facts) -> Calibration:
    known = {
        "score": SCORE,
        "names": {"model": "safe", "baseline": "original"},
        "weights": {"model": "a", "baseline": "b"},
    }
    return Calibration(known | facts | {"modalities": {modality: {"scores": torch.tensor(sorted(scores)).tolist()}}})


def test_a_score_is_one_minus_the_cosine():
    original = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [1.0, 0.0]])
    safe = torch.tensor([[2.0, 0.0], [1.0, 0.0], [4.0, 3.0], [-1.0, 0.0]])
    assert redirection_score(safe, original).tolist() == pytest.approx([0, 1, 1 - 24 / 25, 2])
    assert redirection_score(safe[:0], original[:0]).tolist() == []
    with pytest.raises(UserError, match=r"embeddings of one shape, not \(4, 2\) with \(3, 2\)"):
        redirection_score(safe, original[:3])


def test_a_rate_counts_the_safe_items_that_are_moved_at_least_as_far():
    made = calibration([0.1, 0.2, 0.2, 0.4])
    rates = made.false_alarm_rate(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5]))
    # One more is counted on each side: the query itself may be a safe one.
    assert rates.tolist() == pytest.approx([1, 1, 4 / 5, 2 / 5, 1 / 5])
    # A fifth is the least that four safe items can tell.
    least = made.threshold(0.2)
    assert least > 0.4 and least == pytest.approx(0.4)
    assert made.threshold(0.4) == pytest.approx(0.2) and made.threshold(0.4) > 0.2
    with pytest.raises(UserError, match="a false-alarm rate of 0.01 requires 99 safe items of kind text, and .* has 4"):
        made.threshold(0.01)
    with pytest.raises(UserError, match="is of text alone"):
        made.threshold(0.2, "image")


def test_thresholds_and_rates_agree_to_the_last_bit():
    scores = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 0.1
    made = calibration(scores.tolist())
    for rate in (0.01, 0.05, 0.1, 0.5):
        reached = scores >= made.threshold(rate)
        assert torch.equal(reached, made.false_alarm_rate(scores) <= rate)
        assert reached.sum() == int(rate * 501) - 1


def test_of_safe_queries_no_more_than_the_rate_are_flagged():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        least = threshold(np.sort(rng.gamma(2, 1, 199).astype(np.float32)), 0.05)
        shares.append((rng.gamma(2, 1, 200).astype(np.float32) >= least).mean())
    # Of 199 items the tenth share is exact: 10 of 200 rank as high. Within three standard errors of the mean.
    assert np.mean(shares) == pytest.approx(0.05, abs=3 * np.std(shares) / 300**0.5)


def test_the_area_is_that_of_scikit_learn_within_its_interval():
    rng = np.random.default_rng(1)
    rows = torch.arange(300)
    safe, unsafe = (torch.tensor(rng.normal(by, 1, 300).round(1)) for by in (0, 1))  # with ties
    found = auc(safe, unsafe, rows, rows)
    expected = roc_auc_score([0] * 300 + [1] * 300, torch.cat([safe, unsafe]))
    assert found["value"] == pytest.approx(expected, abs=1e-6)
    assert found["low"] < found["value"] < found["high"] and found["high"] - found["low"] == pytest.approx(
        0.07, abs=0.02
    )
    assert auc(safe, safe + 100, rows, rows) == {"value": 1, "low": 1, "high": 1}


def test_what_is_found_and_what_is_alarmed_falsely_by_hand():
    row = torch.arange(4)
    sides = {"safe": (torch.tensor([0.1, 0.1, 0.3, 0.6]), row), "unsafe": (torch.tensor([0.2, 0.5, 0.5, 0.9]), row)}
    told = detection(sides, 4, {0.25: 0.5, 0.5: 0.3})
    assert (told["safe"], told["unsafe"]) == (4, 4)
    assert told["found"]["0.25"]["value"] == 0.75 and told["false_alarms"]["0.25"]["value"] == 0.25
    assert told["found"]["0.5"]["value"] == 0.75 and told["false_alarms"]["0.5"]["value"] == 0.5
    assert told["auc"]["value"] == (2 + 3 + 3 + 4) / 16
    alone = detection(sides | {"unsafe": (torch.empty(0), torch.empty(0, dtype=torch.int64))}, 4, {0.5: 0.3})
    assert alone.keys() == {"safe", "unsafe", "false_alarms"}


def test_a_calibration_of_other_weights_is_refused(processor, tmp_path):
    models = [build_model(processor, seed) for seed in (0, 1, 2)]
    from safe_clip.models.reference import FrozenCLIP

    digests = [FrozenCLIP(model).weights for model in models]
    made = calibration([0.1], weights={"model": digests[0], "baseline": digests[1]})
    (tmp_path / "calibration.json").write_text(json.dumps(made.facts))
    opened = open_calibration(tmp_path)
    opened.check(models[0], models[1])
    with pytest.raises(UserError, match=r"of another safe model \(safe, as it was then\)"):
        opened.check(models[2], models[1])
    with pytest.raises(UserError, match=r"of another original"):
        opened.check(models[0], models[2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is not there: safe-clip monitor --calibrate writes it"),
        ("{", "is no calibration"),
        ("[]", "is no calibration"),
        (
            '{"score": "other", "names": {}, "weights": {"model": "a", "baseline": "b"}, "modalities": {}}',
            "another score",
        ),
    ],
)
def test_what_is_no_calibration_is_told_in_a_line(text, said, tmp_path):
    file = Path(tmp_path, "calibration.json")
    if text:
        file.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        open_calibration(file)
    assert "\n" not in str(error.value)
