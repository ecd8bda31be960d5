"""Ranks and their test: exact distributions, ArviZ's own implementation where there is one, and the failure rate."""

import importlib.util

import numpy as np
import pytest
from scipy import stats

from bayesmeta.diagnostics.uniformity import ecdf_band, holm, log_gamma, p_value, pit


def test_rank_of_the_truth_is_uniform_over_the_places_it_can_take():
    random = np.random.default_rng(0)
    draws, truth = random.normal(size=(9, 20_000)), random.normal(size=20_000)
    values = pit(truth, draws, random)
    rank = (draws < truth).sum(0)
    assert ((values >= rank / 10) & (values <= (rank + 1) / 10)).all()  # (rank + V) / (L + 1)
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_ties_are_broken_at_random():
    random = np.random.default_rng(0)
    draws, truth = random.integers(0, 2, (19, 20_000)).astype(float), random.integers(0, 2, 20_000).astype(float)
    assert stats.kstest(pit(truth, draws, random), "uniform").pvalue > 1e-3
    constant = pit(np.zeros(5000), np.zeros((19, 5000)), random)  # no information at all
    assert stats.kstest(constant, "uniform").pvalue > 1e-3


def test_nan_is_no_rank():
    random = np.random.default_rng(0)
    draws = np.zeros((4, 3))
    draws[1, 1] = np.nan
    assert np.isnan(pit(np.array([0.0, 0.0, np.nan]), draws, random)).tolist() == [False, True, True]
    assert np.isnan(p_value(np.array([0.1, np.nan])))


def test_p_value_by_hand():
    """Two values: order statistics Beta(1, 2) and Beta(2, 1), with cdf 1 - (1 - u)^2 and u^2."""
    low, high = 0.1, 0.3
    cdf = np.array([1 - (1 - low) ** 2, high**2])
    p = 2 * np.minimum(cdf, 1 - cdf)
    t = np.where(p < 0.5, np.tan((0.5 - p) * np.pi), 0.0)
    assert p_value(np.array([high, low])) == pytest.approx(0.5 - np.arctan(t.mean()) / np.pi)


def test_p_values_of_many_columns_at_once():
    u = np.random.default_rng(0).random((50, 3, 2))
    expected = [[p_value(u[:, i, j]) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(p_value(u), expected)


def test_certain_rejection_is_zero_and_centred_values_a_half():
    assert p_value(np.zeros(10)) == 0 and p_value(np.ones(10)) == 0
    assert p_value(stats.beta.median(np.arange(1, 11), np.arange(10, 0, -1))) == pytest.approx(0.5)
    assert 0 < p_value(np.full(300, 0.4)) < 1e-10  # small, and not rounded to nothing


@pytest.mark.parametrize("alpha", [0.05, 0.01, 1e-3])
def test_the_test_rejects_as_often_as_it_says(alpha):
    """The Cauchy combination is approximate: at most 1.5 times the level, plus four standard errors."""
    count = 10_000
    rejected = (p_value(np.random.default_rng(1).random((200, count))) < alpha).mean()
    assert rejected < 1.5 * alpha + 4 * np.sqrt(alpha / count)
    assert rejected > 0.3 * alpha


@pytest.mark.parametrize("power", [1.3, 1 / 1.3])
def test_skewed_values_are_found(power):
    assert p_value(np.random.default_rng(0).random(500) ** power) < 1e-3


@pytest.mark.skipif(importlib.util.find_spec("arviz_stats") is None, reason="ArviZ 1.x, Python >= 3.12")
def test_agrees_with_arviz():
    from arviz_stats.base import array_stats

    u = np.random.default_rng(0).random((100, 20)) ** 1.1
    theirs = [float(array_stats.uniformity_test(column)[0]) for column in u.T]
    np.testing.assert_allclose(p_value(u), theirs, rtol=1e-9)


@pytest.mark.parametrize("count", [20, 300])
def test_the_band_holds_uniforms_as_often_as_it_says(count):
    where, low, high = ecdf_band(count)
    u = np.sort(np.random.default_rng(5).random((2000, count)), 1)
    ecdf = np.stack([np.searchsorted(row, where, side="right") for row in u]) / count
    inside = ((ecdf >= low - 1e-12) & (ecdf <= high + 1e-12)).all(1).mean()
    assert 0.93 < inside < 0.985  # the binomial is discrete, so that the band is a little wide for few values
    gammas = np.array([log_gamma(row) for row in u[:400]])
    assert 0.02 < (gammas < 0).mean() < 0.09
    assert log_gamma(np.linspace(0, 1, count) ** 3) < -2


def test_holm_is_bonferroni_step_by_step():
    p = np.array([[0.01, np.nan], [0.02, 0.04]])
    assert holm(p, 0.05).tolist() == [[True, False], [True, True]]
    assert holm(p, 0.03).tolist() == [[True, False], [False, False]]  # 0.01 <= 0.03 / 3, then 0.02 > 0.03 / 2
    assert not holm(np.full(3, np.nan), 0.05).any()
