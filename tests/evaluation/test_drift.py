"""Drift: values by hand and by scipy, and how often chance alone is taken for it."""

import numpy as np
import pytest
from scipy import stats

from safe_clip.evaluation.drift import FEWEST, SCORES, drift, holm, kolmogorov_smirnov, two_proportions
from safe_clip.evaluation.intervals import share_interval, summarise


def period(queries, redirected, histogram=None):
    histogram = histogram if histogram is not None else [queries - redirected, redirected]
    mean = float(np.dot(histogram, range(len(histogram))) / queries)
    return {"queries": queries, "counts": {"redirected": redirected}, "histogram": list(histogram), "mean_score": mean}


def test_two_proportions_by_hand():
    # 10 of 100 and 20 of 100: pooled 0.15, z = 0.1 / sqrt(0.15 * 0.85 * 0.02) = 1.98030, p = 0.04767
    assert two_proportions(20, 100, 10, 100) == pytest.approx(0.047670, abs=1e-6)
    assert two_proportions(10, 100, 10, 100) == 1
    assert two_proportions(400, 1000, 500, 1000) < 1e-5


@pytest.mark.parametrize("counts", [(1, 100, 2, 100), (20, 29, 20, 100), (0, 100, 0, 100), (100, 100, 100, 100)])
def test_too_few_are_not_tested(counts):
    assert two_proportions(*counts) is None


def test_distances_and_their_p_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    edges = np.linspace(-4, 4, 2001)  # fine, so that the histograms lose next to nothing
    one, other = rng.normal(size=800), rng.normal(0.1, 1, size=500)
    distance, p = kolmogorov_smirnov(*(np.histogram(each, edges)[0] for each in (one, other)))
    theirs = stats.ks_2samp(one, other)
    assert distance == pytest.approx(theirs.statistic, abs=4e-3)
    expected = stats.kstwobign.sf(distance * np.sqrt(800 * 500 / 1300))
    assert p == pytest.approx(expected, rel=1e-9) and p == pytest.approx(theirs.pvalue, abs=0.05)
    assert kolmogorov_smirnov([50, 50], [50, 50]) == (0, 1)
    assert kolmogorov_smirnov([100, 0], [0, FEWEST - 1]) == (0, None)
    assert kolmogorov_smirnov([60, 20, 20], [20, 20, 60])[0] == pytest.approx(0.4)


def test_holm_by_hand():
    # In order 0.01, 0.02, 0.03, 0.6 they are multiplied by 4, 3, 2 and 1, and none is smaller than the one before.
    assert holm([0.02, 0.6, 0.01, 0.03]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert holm([]) == []


def test_a_period_that_differs_is_found_and_told_by_how_much():
    alike, other = period(1000, 30), period(1000, 90)
    found = drift([alike, other, alike], period(1000, 30), ["redirected"])
    assert [len(each) for each in found] == [0, 1, 0]
    (share,) = found[1]
    assert (share.what, share.before, share.after, share.size) == ("redirected", 0.03, 0.09, pytest.approx(0.06))
    # Of 6 tests it is the surest.
    assert share.p == pytest.approx(6 * two_proportions(90, 1000, 30, 1000), rel=1e-6)


def test_scores_alone_may_differ():
    before = period(1000, 30, [700, 270, 30])
    found = drift([period(1000, 30, [500, 470, 30])], before, ["redirected"])[0]
    assert [each.what for each in found] == [SCORES] and found[0].size == pytest.approx(0.2)


def test_a_small_change_is_passed_over_however_sure():
    million = period(10**6, 30_000), period(10**6, 33_000)
    assert drift([million[1]], million[0], ["redirected"]) == [[]]
    assert len(drift([million[1]], million[0], ["redirected"], least=0)[0]) == 2


def test_chance_alone_is_seldom_taken_for_drift_and_drift_mostly_found():
    rng = np.random.default_rng(0)
    scores = np.array([0.5, 0.3, 0.15, 0.05])
    shifted = np.array([0.45, 0.3, 0.15, 0.1])

    def drawn(chances, queries):
        histogram = rng.multinomial(queries, chances)
        return period(queries, int(histogram[-1]), histogram)

    def flagged(last):
        run = [drawn(scores, 500) for _ in range(7)] + [drawn(last, 500)]
        return any(drift(run, drawn(scores, 1000), ["redirected"], level=0.05, least=0))

    alarms = sum(flagged(scores) for _ in range(400))
    # At most 5 % of runs, give or take three standard deviations; not none, or the test would find nothing.
    assert 1 <= alarms <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
    assert sum(flagged(shifted) for _ in range(100)) > 60


def test_wilsons_interval_by_hand_and_beside_the_bootstrap():
    # 0 of 3: from 0 to z² / (n + z²) = 3.8415 / 6.8415
    assert share_interval(0, 3) == pytest.approx({"value": 0, "low": 0, "high": 0.561497}, abs=1e-5)
    assert share_interval(3, 3) == pytest.approx({"value": 1, "low": 0.438503, "high": 1}, abs=1e-5)
    ours = share_interval(60, 400)
    theirs = stats.binomtest(60, 400).proportion_ci(method="wilson")
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-5)
    drawn = summarise({"x": np.repeat([1.0, 0.0], [60, 340])})["x"]
    assert (ours["low"], ours["high"]) == pytest.approx((drawn["low"], drawn["high"]), abs=0.01)
