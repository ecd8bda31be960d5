"""The bootstrap: exact where it must be, right as often as it says, and not always right."""

import numpy as np
import pytest
from scipy.stats import binom, trim_mean

from bayesmeta.diagnostics.intervals import bootstrap_interval, iqm


def test_iqm_is_the_trimmed_mean():
    values = np.random.default_rng(0).normal(size=(37, 3))
    np.testing.assert_allclose(iqm(values), trim_mean(values, 0.25, axis=0))
    assert iqm(np.array([0.0, 1.0, 3.0, 1000.0])) == 2.0
    assert iqm(np.array([4.0])) == 4.0


def test_constant_values_have_no_width():
    low, high = bootstrap_interval(np.full((5, 2), 3.0))
    assert (low == 3).all() and (high == 3).all()


def test_shapes_and_repetition():
    values = np.random.default_rng(0).normal(size=(20, 3, 2))
    low, high = bootstrap_interval(values)
    again = bootstrap_interval(values)
    assert low.shape == high.shape == (3, 2)
    assert (low == again[0]).all() and (high == again[1]).all()
    assert ((low < values.mean(0)) & (values.mean(0) < high)).all()


def test_two_values_by_hand():
    """The mean of two resampled values 0 and 1 is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    low, high = bootstrap_interval(np.array([0.0, 1.0]), level=0.6)
    assert (low, high) == (0.0, 1.0)
    low, high = bootstrap_interval(np.array([0.0, 1.0]), level=0.4)
    assert (low, high) == (0.5, 0.5)


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_coverage(level, statistic):
    """Share of intervals that hold the truth over 400 data sets; the bounds are wrong once in a thousand runs.

    The percentile bootstrap of 60 values is short by about 1 %, which is allowed for.
    """
    data = np.random.default_rng(1).normal(size=(60, 400))
    low, high = bootstrap_interval(data, level=level, statistic=statistic, draws=500)
    hits = int(((low <= 0) & (high >= 0)).sum())
    assert binom.ppf(5e-4, 400, level - 0.02) <= hits <= binom.ppf(1 - 5e-4, 400, level + 0.01)


def test_runs_are_resampled():
    """All tasks of a run agree and runs differ: the interval is that of the runs, not of the many more tasks."""
    runs = np.random.default_rng(0).normal(size=6)
    values = np.repeat(runs[:, None], 50, axis=1)
    both = bootstrap_interval(values, runs=True, draws=4000)
    alone = bootstrap_interval(runs, draws=4000)
    np.testing.assert_allclose(both, alone, atol=0.1)
    pooled = bootstrap_interval(values.reshape(-1), draws=4000)
    assert both[1] - both[0] > 4 * (pooled[1] - pooled[0])


def test_tasks_are_resampled_within_runs():
    values = np.random.default_rng(0).normal(size=(1, 40))
    np.testing.assert_allclose(bootstrap_interval(values, runs=True), bootstrap_interval(values[0]))


def test_memory_is_bounded_without_changing_the_interval_much(monkeypatch):
    values = np.random.default_rng(0).normal(size=(30, 4))
    whole = bootstrap_interval(values, draws=4000)
    monkeypatch.setattr("bayesmeta.diagnostics.intervals._VALUES", 1000)
    np.testing.assert_allclose(bootstrap_interval(values, draws=4000), whole, atol=0.05)


def test_one_task_is_refused():
    with pytest.raises(ValueError, match=r"at least two tasks to resample, got shape \(1, 3\)"):
        bootstrap_interval(np.zeros((1, 3)))
