r"""Are these values uniform on [0, 1]? The closed-form test, simultaneous bands, and correction for many tests.

Ranks of the truth among posterior draws, as probability integral transforms (PIT), are uniform under exact inference:

    r_i = #{l : f_l < f} + uniform{0, ..., ties},      u_i = (r_i + V_i) / (L + 1),      V_i ~ U(0, 1).

They are kept in [0, 1]: plots that rescale raw ranks by the largest one hide a bias.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy import special, stats

_SIMULATIONS = 2000


def pit(
    truth: Float[np.ndarray, "B *r"], draws: Float[np.ndarray, "L B *r"], random: np.random.Generator
) -> Float[np.ndarray, "B *r"]:
    """The randomised rank of ``truth`` among ``draws`` in [0, 1], uniform if both come from the same law.

    Ties are broken at random, as for discrete quantities (Modrak et al. 2023, section 2.1). NaN where a value is NaN.
    """
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    rank = below + random.integers(0, ties + 1)
    values = (rank + random.random(rank.shape)) / (len(draws) + 1)
    return np.where(np.isnan(truth) | np.isnan(draws).any(0), np.nan, values)


def p_value(u: Float[np.ndarray, "N *r"]) -> Float[np.ndarray, "*r"]:
    r"""Of the hypothesis that ``u`` are ``N`` uniforms: the pointwise order-statistics test with Cauchy combination.

    The i-th smallest of N uniforms is ``Beta(i, N + 1 - i)``, which gives two-sided values ``p_i``; their combination
    is ``1/2 - arctan(mean_i t_i) / pi`` with ``t_i = tan((1/2 - p_i) pi)`` where ``p_i < 1/2``, else 0, so that it is
    never above 1/2 (Tesso and Vehtari 2026, arXiv:2603.02928, equation 24: POT-C). NaN if a value is NaN.
    """
    ordered = np.sort(u, axis=0)
    i = np.arange(1, len(u) + 1).reshape(-1, *[1] * (u.ndim - 1))
    p = 2 * np.minimum(*(tail(i, len(u) + 1 - i, ordered) for tail in (special.betainc, special.betaincc)))
    # tan((1/2 - p) pi) = 1 / tan(p pi), which keeps its digits for small p; p = 0 is a certain rejection.
    with np.errstate(divide="ignore", over="ignore"):
        cauchy = np.where(p < 0.5, 1 / np.tan(np.pi * p), 0.0)
    combined = np.arctan2(1.0, cauchy.mean(0)) / np.pi
    return np.where(np.isnan(u).any(0), np.nan, combined)


def log_gamma(u: Float[np.ndarray, "N"], level: float = 0.95) -> float:
    r"""``log gamma - log gamma_level``: negative where the ECDF leaves its simultaneous band of this level.

    ``gamma = 2 min_k min(F(R_k), 1 - F(R_k - 1))`` with ``R_k = #{u_i <= k/K}``, F the binomial distribution function
    of ``(N, k/K)`` and K = min(N, 100) (Sailynoja, Buerkner and Vehtari 2022, section 3.1). Smaller is worse.
    """
    gamma = max(_gamma(u[None])[0], np.finfo(float).tiny)
    return float(np.log(gamma) - np.log(_critical_gamma(len(u), level)))


def ecdf_band(count: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where, lowest and highest ECDF of ``count`` uniforms with the simultaneous probability ``level``."""
    where = _points(count)
    gamma = _critical_gamma(count, level)
    low = stats.binom.ppf(gamma / 2, count, where) / count
    high = stats.binom.ppf(1 - gamma / 2, count, where) / count
    return where, low, high


def holm(p: Float[np.ndarray, "..."], alpha: float) -> Bool[np.ndarray, "..."]:
    """Which of several hypotheses are rejected at the family-wise failure rate ``alpha`` (Holm 1979). NaN is not."""
    flat = p.ravel()
    valid = np.flatnonzero(~np.isnan(flat))
    order = valid[np.argsort(flat[valid])]
    passes = flat[order] <= alpha / (len(order) - np.arange(len(order)))
    rejected = np.zeros(flat.shape, bool)
    rejected[order[np.cumprod(passes).astype(bool)]] = True
    return rejected.reshape(p.shape)


def _points(count: int) -> np.ndarray:
    resolution = min(count, 100)
    return np.arange(1, resolution) / resolution


def _gamma(u: Float[np.ndarray, "S N"]) -> Float[np.ndarray, "S"]:
    """The smallest two-sided pointwise probability of each row's ECDF."""
    where, count = _points(u.shape[1]), u.shape[1]
    inside = np.stack([np.searchsorted(row, where, side="right") for row in np.sort(u, 1)])
    low, high = stats.binom.cdf(inside, count, where), stats.binom.sf(inside - 1, count, where)
    return 2 * np.minimum(low, high).min(1)


@lru_cache
def _critical_gamma(count: int, level: float) -> float:
    """What ``gamma`` of uniforms exceeds with probability ``level``, by simulation from a fixed seed."""
    uniforms = np.random.default_rng(0).random((_SIMULATIONS, count))
    return float(np.quantile(_gamma(uniforms), 1 - level))
