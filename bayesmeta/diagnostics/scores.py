r"""How good predictions are: proper scores, calibration of numbers and of classes, and how well a score separates.

Arrays in, arrays out, without any knowledge of models. A datum's score is lower where the prediction was better; proper
scores are lowest on average for the true predictive (Gneiting and Raftery 2007). Calibration alone is no merit: a
predictive that ignores its input can have it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

LEVELS = np.arange(1, 100) / 100  # of the central intervals that enter the calibration error
BINS = 15  # of a reliability table, as in Guo et al. 2017


@dataclass(frozen=True)
class Score:
    """A score of all data together, and of the data of each of ``B`` tasks alone; NaN for a task without data."""

    value: float
    tasks: Float[np.ndarray, "B"]


def averaged(values: Float[np.ndarray, "n"], task: Int[np.ndarray, "n"], batch: int) -> Score:
    """The mean over data, the ``i``-th of which belongs to task ``task[i] < batch``."""
    count = np.bincount(task, minlength=batch)
    total = np.bincount(task, values, batch)
    return Score(float(values.mean()), np.where(count > 0, total, np.nan) / np.maximum(count, 1))


def pooled(statistic: Callable[..., float], task: Int[np.ndarray, "n"], batch: int, *data: np.ndarray) -> Score:
    """A statistic of data ``[n, ...]`` that is no mean over them: of all, and, one after another, of each task's."""
    rows = [np.flatnonzero(task == b) for b in range(batch)]
    tasks = [statistic(*(values[r] for values in data)) if len(r) else np.nan for r in rows]
    return Score(statistic(*data), np.array(tasks))


def crps_ensemble(draws: Float[np.ndarray, "*b L"], y: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    r"""Continuous ranked probability score from ``L`` draws of the predictive, in units of ``y``; fair for any ``L``.

    ``mean_l |y_l - y| - \sum_{l,m} |y_l - y_m| / (2 L (L - 1))``: its expectation over draws is the CRPS of the law
    that they come from (Ferro 2014), so that it may be negative. ``O(L log L)``: with the draws sorted, the
    double sum is ``2 \sum_l (2 l - L - 1) y_(l)``. Raises ValueError for fewer than two draws.
    """
    count = draws.shape[-1]
    if count < 2:
        raise ValueError(f"crps_ensemble: expected at least 2 draws on the last axis, got {count}; draw more")
    errors = np.sort(draws.astype(float) - y[..., None], axis=-1)  # centred: the sum below cancels large values badly
    spread = errors @ (2.0 * np.arange(1, count + 1) - count - 1) / (count * (count - 1))
    return np.abs(errors).mean(-1) - spread


def crps_normal(
    mean: Float[np.ndarray, "*b"], sd: Float[np.ndarray, "*b"], y: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b"]:
    r"""CRPS of a normal predictive, ``sd`` > 0, in units of ``y`` (Gneiting et al. 2005, equation 5).

    ``sd (w (2 \Phi(w) - 1) + 2 \phi(w) - 1 / \sqrt{\pi})`` with ``w = (y - mean) / sd``.
    """
    w = (y - mean) / sd
    density = np.exp(-0.5 * w**2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(torch.as_tensor(w)).numpy()
    return sd * (w * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))


def interval_score(
    low: Float[np.ndarray, "*b"], high: Float[np.ndarray, "*b"], y: Float[np.ndarray, "*b"], level: float
) -> Float[np.ndarray, "*b"]:
    r"""Winkler's score of the central interval ``[low, high]`` of probability ``level``, in units of ``y``.

    ``(high - low) + 2/\alpha (low - y)_+ + 2/\alpha (y - high)_+`` with ``\alpha = 1 - level``; lowest on average for
    the true quantiles at ``\alpha/2`` and ``1 - \alpha/2`` (Gneiting and Raftery 2007, equation 43). Raises ValueError
    unless ``0 < level < 1``.
    """
    if not 0 < level < 1:
        raise ValueError(f"interval_score: expected a probability 0 < level < 1, got {level}; 95 % is level=0.95")
    penalty = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return (high - low) + 2 / (1 - level) * penalty


def covered(pit: Float[np.ndarray, "*b"], level: float) -> Bool[np.ndarray, "*b"]:
    """Whether each datum lies in its central interval: ``|2 u - 1| <= level`` for its PIT value ``u = F(y)``.

    Raises ValueError for PIT values outside [0, 1].
    """
    return _depth(pit) <= level


def interval_coverage(pit: Float[np.ndarray, "*b"], levels: Float[np.ndarray, "P"] = LEVELS) -> Float[np.ndarray, "P"]:
    """Share of all data in their central intervals at each level: the level itself, if calibrated. Raises the same."""
    return np.searchsorted(np.sort(_depth(pit), axis=None), levels, side="right") / pit.size


def _depth(pit: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    if not pit.size or not (pit.min() >= 0 and pit.max() <= 1):
        found = f"[{pit.min():.3g}, {pit.max():.3g}]" if pit.size else "none"
        raise ValueError(f"expected PIT values in [0, 1], got {found}; divide ranks by the number of draws plus 1")
    return np.abs(2 * pit - 1)


def rmsce(pit: Float[np.ndarray, "*b"]) -> float:
    r"""Root mean squared calibration error ``\sqrt{mean_p (coverage(p) - p)^2}`` over the levels 1 to 99 %.

    Kuleshov, Fenner and Ermon 2018, for central intervals. Not 0 for finitely many data: ``n`` independent
    ones of a calibrated predictive give about ``\sqrt{1 / (6 n)}``.
    """
    return float(np.sqrt(np.mean((interval_coverage(pit) - LEVELS) ** 2)))


def spread_skill(draws: Float[np.ndarray, "*b M"], y: Float[np.ndarray, "*b"]) -> float:
    r"""``\sqrt{(M + 1)/M \, mean Var} / RMSE`` of ``M`` draws of each datum's predictive: 1 if they are like the datum.

    ``Var`` is unbiased and the RMSE that of the draws' mean (Fortin et al. 2014). Below 1 is
    over-confident.
    """
    count = draws.shape[-1]
    if count < 2:
        raise ValueError(f"spread_skill: expected at least 2 draws on the last axis, got {count}; draw more")
    variance = draws.var(-1, ddof=1, dtype=float).mean()
    error = np.mean((draws.mean(-1, dtype=float) - y) ** 2)
    return float(np.sqrt((count + 1) / count * variance / error))


@dataclass(frozen=True)
class Reliability:
    """Claimed and observed frequencies in each of ``K`` bins of confidence; NaN in a bin without data.

    ``confidence [K]`` is the mean of the claimed probabilities, ``accuracy [K]`` how often the claim came true.
    """

    confidence: Float[np.ndarray, "K"]
    accuracy: Float[np.ndarray, "K"]
    count: Int[np.ndarray, "K"]


Probabilities = Float[np.ndarray, "N C"] | Float[np.ndarray, "N"]


def reliability(
    probabilities: Probabilities, labels: Int[np.ndarray, "N"], bins: int = BINS, by: Literal["width", "mass"] = "width"
) -> Reliability:
    """Confidence against accuracy: of the most probable class for ``[N, C]``, of the event itself for ``[N]``.

    The bins of confidence have equal width in [0, 1] or equal mass: as many data in each as ties, which are never
    parted, allow. Labels are class numbers, or 0 and 1 for events. Raises ValueError for labels or probabilities that
    are neither.
    """
    _check_classes(probabilities, labels)
    if bins < 1:
        raise ValueError(f"reliability: expected at least 1 bin, got {bins}")
    if probabilities.ndim == 1:
        confidence, correct = probabilities, labels == 1
    else:
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    inner = np.arange(1, bins) / bins
    edges = inner if by == "width" else np.quantile(confidence, inner)
    index = np.searchsorted(edges, confidence)  # bins are (low, high], as in Guo et al.
    count = np.bincount(index, minlength=bins)
    share = np.where(count > 0, 1 / np.maximum(count, 1), np.nan)
    mean_confidence = share * np.bincount(index, confidence, bins)
    return Reliability(mean_confidence, share * np.bincount(index, correct, bins), count)


def ece(table: Reliability) -> float:
    r"""Expected calibration error ``\sum_k n_k / n |accuracy_k - confidence_k|`` (Guo et al. 2017, equation 3).

    Biased upwards by the noise of the accuracies, the more so the fewer data a bin has.
    """
    return float(np.nansum(table.count * np.abs(table.accuracy - table.confidence)) / table.count.sum())


def mce(table: Reliability) -> float:
    """Maximum calibration error over the bins with data (Guo et al. 2017, equation 5)."""
    return float(np.nanmax(np.abs(table.accuracy - table.confidence)))


def brier(probabilities: Probabilities, labels: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    r"""Quadratic score: ``(p - y)^2`` in [0, 1] of an event, ``\sum_c (p_c - 1[y = c])^2`` in [0, 2] of classes."""
    _check_classes(probabilities, labels)
    if probabilities.ndim == 1:
        return (probabilities - labels) ** 2
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1)


def log_loss(probabilities: Probabilities, labels: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """``-log p(label)`` in nats; infinite where what was called impossible came true."""
    _check_classes(probabilities, labels)
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], 1)
    with np.errstate(divide="ignore"):
        return -np.log(probabilities[np.arange(len(labels)), labels])


def _check_classes(probabilities: np.ndarray, labels: np.ndarray) -> None:
    classes = 2 if probabilities.ndim == 1 else probabilities.shape[1]
    if not len(labels):
        raise ValueError("expected at least one prediction with its label, got none")
    if not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"expected labels 0 .. {classes - 1}, got {labels.min()} .. {labels.max()}; number the classes from 0"
        )
    whole = probabilities.ndim == 1 or np.allclose(probabilities.sum(1), 1, atol=1e-4)
    if not (whole and probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-6):
        raise ValueError("expected probabilities in [0, 1] that add up to 1 over the classes; normalise them first")


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve, in [0, 1], with the bounds of its interval."""

    value: float
    low: float
    high: float


def auroc(negative: Float[np.ndarray, "N"], positive: Float[np.ndarray, "P"], level: float = 0.95) -> Auroc:
    """Probability that a positive scores above a negative, ties counted half, with its interval of DeLong et al. 1988.

    1/2 is blind and 1 perfect; below 1/2 the score points the wrong way. The interval is a normal one for independent
    values, cut off at 0 and 1; where the groups do not overlap at all it has no width, which is too certain for small
    groups. Raises ValueError for fewer than two values in a group, or NaN.
    """
    if min(len(negative), len(positive)) < 2 or np.isnan(negative).any() or np.isnan(positive).any():
        raise ValueError(
            f"auroc: expected at least 2 scores in each group and no NaN, got {len(negative)} negatives with "
            f"{np.isnan(negative).sum()} NaN and {len(positive)} positives with {np.isnan(positive).sum()}"
        )
    beats, beaten = _share_below(positive, negative), 1 - _share_below(negative, positive)
    area = float(beats.mean())
    error = math.sqrt(beats.var(ddof=1) / len(positive) + beaten.var(ddof=1) / len(negative))
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Auroc(area, max(0.0, area - reach), min(1.0, area + reach))


def _share_below(values: Float[np.ndarray, "n"], others: Float[np.ndarray, "m"]) -> Float[np.ndarray, "n"]:
    """For each value the share of the others that are below it, of equal ones half."""
    ranked = np.sort(others)
    return (np.searchsorted(ranked, values) + np.searchsorted(ranked, values, side="right")) / (2 * len(others))
