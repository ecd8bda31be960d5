"""Scores against brute force, integrals and closed forms; statistical tests fail once in a thousand seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, chi2, norm

from bayesmeta.diagnostics.scores import (
    LEVELS,
    Reliability,
    auroc,
    averaged,
    brier,
    covered,
    crps_ensemble,
    crps_normal,
    ece,
    interval_coverage,
    interval_score,
    log_loss,
    mce,
    pooled,
    reliability,
    rmsce,
    spread_skill,
)

ALPHA = 1e-3  # the declared failure rate of each statistical test; the seeds are fixed
Z = norm.ppf(1 - ALPHA / 2)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=12), st.integers(-4, 4))
def test_crps_is_the_double_sum(draws, y):
    count = len(draws)
    pairs = sum(abs(a - b) for a in draws for b in draws)
    expected = np.mean([abs(a - y) for a in draws]) - pairs / (2 * count * (count - 1))
    found = crps_ensemble(np.array([draws], float), np.array([float(y)]))
    np.testing.assert_allclose(found, [expected], atol=1e-12)


def test_crps_is_batched_and_keeps_its_digits_far_from_zero():
    random = np.random.default_rng(0)
    draws, y = random.normal(size=(3, 2, 50)), random.normal(size=(3, 2))
    whole = crps_ensemble(draws, y)
    assert whole.shape == (3, 2)
    np.testing.assert_allclose(whole[1, 0], crps_ensemble(draws[1, 0][None], y[1, 0][None])[0])
    np.testing.assert_allclose(crps_ensemble(draws + 1e8, y + 1e8), whole, rtol=1e-6)


@pytest.mark.parametrize("mean, sd, y", [(0.0, 1.0, 0.0), (0.5, 2.0, -3.0), (-1.0, 0.1, 2.0)])
def test_crps_of_a_normal_is_its_integral(mean, sd, y):
    below, _ = quad(lambda t: norm.cdf(t, mean, sd) ** 2, mean - 40 * sd, y)
    above, _ = quad(lambda t: norm.sf(t, mean, sd) ** 2, y, max(y, mean) + 40 * sd)
    np.testing.assert_allclose(crps_normal(*(np.array([v]) for v in (mean, sd, y))), [below + above], rtol=1e-6)


@pytest.mark.parametrize("count", [2, 10, 300])
def test_crps_of_draws_is_fair_at_every_number_of_them(count):
    """Its mean over ensembles is the CRPS of the law, even for two draws; the plain estimator is too large by 1/L."""
    random = np.random.default_rng(0)
    y = random.normal(size=20_000)
    draws = 0.5 + 2 * random.normal(size=(len(y), count))
    error = crps_ensemble(draws, y) - crps_normal(np.full_like(y, 0.5), np.full_like(y, 2.0), y)
    assert abs(error.mean()) < Z * error.std() / math.sqrt(len(y))


def test_interval_score_by_hand():
    low, high, y = (np.array(v, float) for v in ([0, 0, 0], [1, 1, 1], [0.5, -0.25, 2.0]))
    np.testing.assert_allclose(interval_score(low, high, y, 0.9), [1.0, 1 + 20 * 0.25, 1 + 20 * 1.0])


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_score_is_lowest_at_the_true_quantiles(level):
    y = norm.ppf((np.arange(20_000) + 0.5) / 20_000)  # an expectation over N(0, 1) without noise
    ends = norm.ppf([(1 - level) / 2, (1 + level) / 2])

    def expected(low, high):
        return interval_score(np.full_like(y, low), np.full_like(y, high), y, level).mean()

    best = expected(*ends)
    closed_form = 2 * 2 / (1 - level) * norm.pdf(ends[1])
    assert best == pytest.approx(closed_form, rel=1e-3)
    for shift in [(0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05), (0.1, 0.1), (-0.1, 0.1), (0.1, -0.1)]:
        assert expected(*(ends + shift)) > best


def test_coverage_of_an_even_spread_is_the_level():
    pit = (np.arange(10_000) + 0.5) / 10_000
    np.testing.assert_allclose(interval_coverage(pit), LEVELS, atol=1e-4)
    assert rmsce(pit) < 1e-4
    assert interval_coverage(pit.reshape(100, 100), np.array([0.5, 0.8])).tolist() == [0.5, 0.8]
    assert covered(np.array([0.25, 0.24, 0.75, 0.76]), 0.5).tolist() == [True, False, True, False]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_coverage_counts_what_is_covered(values):
    pit = np.array(values)
    np.testing.assert_allclose(interval_coverage(pit), [covered(pit, level).mean() for level in LEVELS])


def test_calibration_error_closed_forms():
    """All targets at the median: every interval holds them all. All outside: none does."""
    np.testing.assert_allclose(rmsce(np.full(7, 0.5)), np.sqrt(np.mean((1 - LEVELS) ** 2)))
    np.testing.assert_allclose(rmsce(np.array([0.0, 1.0])), np.sqrt(np.mean(LEVELS**2)))


def test_calibration_error_of_calibrated_data_is_the_noise_it_says():
    pit = np.random.default_rng(0).random((4000, 50))
    squares = np.array([rmsce(row) ** 2 for row in pit])
    expected = np.mean(LEVELS * (1 - LEVELS)) / 50
    assert expected == pytest.approx(1 / (6 * 50), rel=0.02)
    assert abs(squares.mean() - expected) < Z * squares.std() / math.sqrt(len(squares))


def test_spread_skill_by_hand():
    assert spread_skill(np.array([[0.0, 2.0]]), np.array([4.0])) == pytest.approx(math.sqrt(1.5 * 2) / 3)


@pytest.mark.parametrize("members", [2, 5, 50])
def test_spread_is_skill_where_draws_are_like_the_data(members):
    """For any number of members; the bound is the delta method's, and ten percent less spread is found."""
    random = np.random.default_rng(0)
    centre = random.normal(size=(50_000, 1))
    draws, y = centre + random.normal(size=(50_000, members)), centre[:, 0] + random.normal(size=50_000)
    spread, error = (members + 1) / members * draws.var(1, ddof=1), (draws.mean(1) - y) ** 2
    bound = Z * (spread - error).std() / math.sqrt(len(y)) / error.mean()
    assert abs(spread_skill(draws, y) ** 2 - 1) < bound
    assert spread_skill(centre + 0.9 * (draws - centre), y) ** 2 < 1 - bound


def test_reliability_by_hand():
    """Five events in four bins of equal width, (low, high], one of them empty."""
    claimed, happened = np.array([0.1, 0.25, 0.3, 0.9, 1.0]), np.array([0, 1, 0, 1, 1])
    table = reliability(claimed, happened, bins=4)
    assert table.count.tolist() == [2, 1, 0, 2]
    np.testing.assert_allclose(table.confidence, [0.175, 0.3, np.nan, 0.95])
    np.testing.assert_allclose(table.accuracy, [0.5, 0.0, np.nan, 1.0])
    assert ece(table) == pytest.approx((2 * 0.325 + 0.3 + 2 * 0.05) / 5)
    assert mce(table) == pytest.approx(0.325)


def test_classes_are_judged_by_the_most_probable():
    """The truth is (0.7, 0.2, 0.1) and the claim (0.9, 0.05, 0.05): the error is 0.2 whatever the bins."""
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    claimed = np.tile([0.9, 0.05, 0.05], (100, 1))
    for by in ("width", "mass"):
        table = reliability(claimed, labels, by=by)
        assert ece(table) == pytest.approx(0.2) and mce(table) == pytest.approx(0.2)
    honest = np.tile([0.7, 0.2, 0.1], (100, 1))
    assert ece(reliability(honest, labels)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("by", ["width", "mass"])
def test_calibrated_events_have_no_error_but_noise_and_squared_ones_have_a_sixth(by):
    """Under calibration the squared errors are a chi-squared. Claims p of frequency p^2 are off by E[p - p^2] = 1/6."""
    random = np.random.default_rng(0)
    claimed, coin = random.random((2, 40_000))
    right = ece(reliability(claimed, (coin < claimed).astype(int), by=by))
    assert right < math.sqrt(chi2.ppf(1 - ALPHA, 15) / (4 * len(claimed)))
    wrong = ece(reliability(claimed, (coin < claimed**2).astype(int), by=by))
    assert abs(wrong - 1 / 6) < Z * (claimed - (coin < claimed**2)).std() / math.sqrt(len(claimed))


def test_bins_of_equal_mass_keep_ties_together():
    claimed = np.random.default_rng(0).beta(5, 1, size=1000)
    assert np.ptp(reliability(claimed, np.ones(1000, int), bins=8, by="mass").count) <= 1
    tied = reliability(np.repeat([0.2, 0.8], [90, 10]), np.ones(100, int), bins=4, by="mass")
    assert sorted(tied.count.tolist()) == [0, 0, 10, 90]
    assert np.nanmax(tied.confidence) == pytest.approx(0.8)


def test_brier_and_log_loss_by_hand():
    p, labels = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]]), np.array([0, 2])
    np.testing.assert_allclose(brier(p, labels), [0.25 + 0.09 + 0.04, 2.0])
    assert log_loss(p, labels).tolist() == [pytest.approx(math.log(2)), math.inf]
    event, happened = np.array([0.75, 0.75]), np.array([1, 0])
    np.testing.assert_allclose(brier(event, happened), [0.0625, 0.5625])
    np.testing.assert_allclose(log_loss(event, happened), [-math.log(0.75), -math.log(0.25)])
    as_classes = np.stack([1 - event, event], 1)
    np.testing.assert_allclose(brier(as_classes, happened), 2 * brier(event, happened))
    np.testing.assert_allclose(log_loss(as_classes, happened), log_loss(event, happened))


few = st.lists(st.integers(0, 4), min_size=2, max_size=9)


@given(few, few)
def test_auroc_is_the_share_of_pairs_with_ties_half(negative, positive):
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    error = math.sqrt(wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative))
    n, p = np.array(negative, float), np.array(positive, float)
    found = auroc(n, p)
    assert found.value == pytest.approx(wins.mean())
    assert found.high == pytest.approx(min(1, wins.mean() + norm.ppf(0.975) * error), abs=1e-9)
    assert found.low == pytest.approx(max(0, wins.mean() - norm.ppf(0.975) * error), abs=1e-9)
    assert auroc(p, n).value == pytest.approx(1 - found.value)
    assert auroc(np.exp(n), np.exp(p)).value == found.value


def test_auroc_at_its_ends():
    assert auroc(np.zeros(5), np.zeros(3)).value == 0.5
    apart = auroc(np.arange(3.0), np.arange(3.0, 6.0))
    assert (apart.value, apart.low, apart.high) == (1.0, 1.0, 1.0)
    assert auroc(np.array([0.0, 1.0]), np.array([np.inf, np.inf])).value == 1.0


def test_auroc_interval_holds_the_truth_as_often_as_it_says():
    """Two normals one standard deviation apart have area Phi(1 / sqrt 2); a normal interval is short by about 1 %."""
    random = np.random.default_rng(0)
    pairs = [auroc(random.normal(size=60), 1 + random.normal(size=40)) for _ in range(1000)]
    hits = sum(found.low <= norm.cdf(1 / math.sqrt(2)) <= found.high for found in pairs)
    assert binom.ppf(ALPHA / 2, 1000, 0.93) <= hits <= binom.ppf(1 - ALPHA / 2, 1000, 0.96)


def test_scores_of_tasks():
    """Task 1 has no data."""
    task, values = np.array([0, 0, 2]), np.array([1.0, 3.0, 8.0])
    mean = averaged(values, task, 3)
    assert mean.value == 4.0
    np.testing.assert_array_equal(mean.tasks, [2.0, np.nan, 8.0])
    widest = pooled(lambda a: float(np.ptp(a)), task, 3, values)
    assert widest.value == 7.0
    np.testing.assert_array_equal(widest.tasks, [2.0, np.nan, 0.0])


NONE, LABEL = np.zeros((0, 2)), np.array([0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: crps_ensemble(np.zeros((3, 1)), np.zeros(3)), "crps_ensemble: expected at least 2 draws .* got 1"),
        (lambda: spread_skill(np.zeros((3, 1)), np.zeros(3)), "spread_skill: expected at least 2 draws"),
        (lambda: interval_score(*[np.zeros(1)] * 3, level=95.0), r"0 < level < 1, got 95.0; 95 % is level=0\.95"),
        (lambda: rmsce(np.array([3.0, 7.0])), r"PIT values in \[0, 1\], got \[3, 7\]; divide ranks"),
        (lambda: covered(np.array([np.nan]), 0.5), r"got \[nan, nan\]"),
        (lambda: rmsce(np.zeros(0)), "got none"),
        (lambda: reliability(np.array([0.5]), LABEL, bins=0), "at least 1 bin, got 0"),
        (lambda: reliability(np.array([0.5]), np.array([2])), r"labels 0 \.\. 1, got 2 \.\. 2; number the classes"),
        (lambda: brier(np.array([[0.5, 0.1]]), LABEL), "add up to 1 over the classes; normalise"),
        (lambda: log_loss(np.array([1.5]), LABEL), r"probabilities in \[0, 1\]"),
        (lambda: log_loss(NONE, np.zeros(0, int)), "at least one prediction with its label, got none"),
        (lambda: auroc(np.zeros(1), np.zeros(3)), "at least 2 scores in each group and no NaN, got 1 negatives"),
        (lambda: auroc(np.zeros(2), np.array([0, np.nan])), "2 positives with 1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_table_of_one_bin_is_the_mean_error():
    table = Reliability(np.array([0.6]), np.array([0.5]), np.array([10]))
    assert ece(table) == mce(table) == pytest.approx(0.1)
