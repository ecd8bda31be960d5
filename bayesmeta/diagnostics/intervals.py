"""Bootstrap intervals over tasks and seeds, and the interquartile mean (Agarwal et al. 2021)."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float

_VALUES = 1 << 24  # resampled values in memory at a time


def iqm(values: Float[np.ndarray, "..."], axis: int = 0) -> Float[np.ndarray, "..."]:
    """Interquartile mean along an axis: of what is left when a quarter of the values is cut off at each end."""
    count = values.shape[axis]
    cut = count // 4
    return np.asarray(np.sort(values, axis).take(range(cut, count - cut), axis).mean(axis))


def bootstrap_interval(
    values: Float[np.ndarray, "..."],
    *,
    level: float = 0.95,
    statistic: Literal["mean", "iqm"] = "mean",
    runs: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Percentile bootstrap interval of a statistic of ``values [B, *rest]`` over ``B`` tasks, pointwise in the rest.

    With ``runs=True`` the values are ``[R, B, *rest]``: runs are resampled, then the tasks of each drawn run, so that
    the interval speaks of a new seed and of new tasks (each run is a stratum). The same values give the same interval.
    Raises ValueError for fewer than two values to resample.
    """
    values = np.asarray(values) if runs else np.asarray(values)[None]
    if values.ndim < 2 or values.shape[1] < 2:
        raise ValueError(f"bootstrap_interval: expected at least two tasks to resample, got shape {values.shape[1:]}")
    rest = values.shape[2:]
    flat = values.reshape(values.shape[0] * values.shape[1], -1)
    average: Callable = np.mean if statistic == "mean" else iqm
    replicates = [average(flat[index], axis=1) for index in _resamples(values.shape[:2], flat.shape[1], draws, seed)]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(replicates), [tail, 1 - tail], axis=0)
    return low.reshape(rest), high.reshape(rest)


def _resamples(shape: tuple[int, int], width: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers ``[some draws, R * B]`` into the flattened runs and tasks."""
    generator = np.random.default_rng(seed)
    runs, tasks = shape
    at_once = max(1, _VALUES // (runs * tasks * width))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        drawn = generator.integers(runs, size=(count, runs, 1)) if runs > 1 else np.zeros((count, 1, 1), int)
        yield (drawn * tasks + generator.integers(tasks, size=(count, runs, tasks))).reshape(count, -1)
