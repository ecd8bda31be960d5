"""Exact expected returns of Beta-Bernoulli bandits: what the best learner, and well-known others, get.

``k`` arms pay 1 with probability ``p_a ~ Beta(alpha, beta)``, independently, else 0. Returns are undiscounted sums of
``T`` pulls; the regret of a learner is ``oracle_value`` or ``bayes_adaptive_value`` less its return.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Num
from numpy import ndarray
from torch import Tensor

from bayesmeta.rl.bandit_states import Values, action_values, backward, counts, hashes, layers

MAX_STATES = 3_000_000  # up to half a minute and 2 GB
MAX_DEPTH = 50_000
_ENTRIES = 1 << 22  # of an array over states, arms and nodes: 32 MiB


def bayes_adaptive_value(
    arms: int, horizon: int, alpha: float = 1.0, beta: float = 1.0, *, max_states: int = MAX_STATES
) -> float:
    """The greatest expected return of any learner: the value of the Bayes-adaptive MDP (Duff 2002) at its prior.

    Raises ValueError where there are more than ``max_states`` belief states, and for arguments out of range.
    """
    return float(_optimal(arms, horizon, alpha, beta, max_states)[0].values[0])


def thompson_value(
    arms: int, horizon: int, alpha: float = 1.0, beta: float = 1.0, *, max_states: int = MAX_STATES
) -> float:
    """The expected return of Thompson sampling with a new draw for every pull: arm ``a`` with P(``a`` is the best).

    The probabilities are integrated to about 1e-12. Raises ValueError as :func:`bayes_adaptive_value`.
    """
    if arms == 1:
        return no_adaptation_value(arms, horizon, alpha, beta)
    _check(arms, horizon, alpha, beta)
    states = layers(arms, horizon, max_states)
    density, log_cdf, _ = _beta_tables(arms, horizon, alpha, beta)

    def average(codes: ndarray, values: ndarray) -> ndarray:
        # The last column stands for all the arms that have not been pulled yet, where there are any.
        repeats = np.ones(codes.shape[1])
        repeats[-1] += arms - codes.shape[1]
        found = np.empty(len(codes))
        size = max(1, _ENTRIES // (codes.shape[1] * log_cdf.shape[1]))
        for rows in (slice(start, start + size) for start in range(0, len(codes), size)):
            each = log_cdf[codes[rows]]  # [G, W, U]
            others = np.einsum("w,gwu->gu", repeats, each)[:, None] - each
            best = repeats * (density[codes[rows]] * np.exp(others)).sum(-1)
            found[rows] = (best * values[rows]).sum(-1)
        return found

    return float(backward(states, alpha, beta, average)[0].values[0])


def oracle_value(arms: int, horizon: int, alpha: float = 1.0, beta: float = 1.0) -> float:
    """``T E[max_a p_a]``: the expected return of one who knows the arms. By quadrature, to about 1e-12 ``T``."""
    _check(arms, horizon, alpha, beta)
    density, log_cdf, nodes = _beta_tables(arms, 1, alpha, beta)
    return float(horizon * arms * (nodes * density[0] * np.exp((arms - 1) * log_cdf[0])).sum())


def no_adaptation_value(arms: int, horizon: int, alpha: float = 1.0, beta: float = 1.0) -> float:
    """``T alpha / (alpha + beta)``: the expected return of any choice of arms that does not look at the rewards."""
    _check(arms, horizon, alpha, beta)
    return horizon * alpha / (alpha + beta)


def bayes_optimal_action_values(
    successes: Num[Tensor, "B A"],
    failures: Num[Tensor, "B A"],
    remaining: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    max_states: int = MAX_STATES,
) -> Float[Tensor, "B A"]:
    """Expected reward of the ``remaining`` >= 1 pulls if the first is of arm ``a`` and the others optimal, in float64.

    The counts are of all pulls so far. One table serves all states with the same number of pulls, those so far and
    those to come together, and is kept for the next call: an episode solves once. Raises ValueError as
    :func:`bayes_adaptive_value`, and for counts that are negative or no integers.
    """
    seen = torch.stack([successes, failures]).double().cpu().numpy()
    if not ((seen >= 0) & (seen == np.floor(seen))).all() or remaining < 1:
        raise ValueError(
            f"bayes_optimal_action_values: expected counts that are integers >= 0 and remaining >= 1, got remaining = "
            f"{remaining} and {seen}; pass the numbers of successes and failures of each arm"
        )
    won, lost = seen.astype(np.int64)
    pulls, codes = (won + lost).sum(1), (won + lost) * (won + lost + 1) // 2 + lost
    found = np.empty(codes.shape)
    for n in np.unique(pulls).tolist():
        horizon = n + remaining
        solved = _optimal(codes.shape[1], horizon, alpha, beta, max_states)
        after = solved[n + 1] if remaining > 1 else None
        found[pulls == n] = action_values(codes[pulls == n], after, hashes(horizon), alpha, beta)
    return torch.as_tensor(found, device=successes.device)


def bayes_optimal_actions(
    successes: Num[Tensor, "B A"],
    failures: Num[Tensor, "B A"],
    remaining: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    max_states: int = MAX_STATES,
) -> Int[Tensor, "B"]:
    """The arm that the best learner pulls with ``remaining`` pulls to go; the first of those that are equally good.

    See :func:`bayes_optimal_action_values`.
    """
    return bayes_optimal_action_values(successes, failures, remaining, alpha, beta, max_states=max_states).argmax(-1)


def gittins_index(alpha: float, beta: float, discount: float, *, tolerance: float = 1e-6) -> float:
    """The reward per pull of a known arm that is worth as much as an arm with ``p ~ Beta(alpha, beta)`` (Gittins 1979).

    The result is below the index by at most ``tolerance``. Value iteration on the triangle of counts, with a known arm
    to retire to. Where the triangle ends the unknown arm is taken as known too, a value too small by at most
    ``sd(p) / (2 (1 - discount))``, and sd(p) <= 1/2. The advantage of a pull over retiring is convex in the known
    reward and falls at least as fast as it rises, so that Newton's method from the left stays there and ends.

    Optimal in the infinite discounted problem only (Gittins and Jones 1974): with a horizon, a line to compare with.
    Raises ValueError for arguments out of range, and for a discount so near 1 that the triangle has over 50 000 layers.
    """
    if not (alpha > 0 and beta > 0 and 0 < discount < 1 and tolerance >= 1e-10):  # beyond it rounding counts
        raise ValueError(
            f"gittins_index: expected alpha, beta > 0, a discount in (0, 1) and tolerance >= 1e-10, got alpha = "
            f"{alpha}, beta = {beta}, discount = {discount} and tolerance = {tolerance}"
        )
    depth = max(1, math.ceil(math.log(2 * tolerance * (1 - discount)) / math.log(discount)))
    if depth > MAX_DEPTH:
        raise ValueError(
            f"gittins_index: expected a triangle of at most {MAX_DEPTH} layers, got {depth} for discount = {discount} "
            f"and tolerance = {tolerance}; take a smaller discount or a greater tolerance"
        )
    index, gain = alpha / (alpha + beta), math.inf
    while gain > tolerance / 2:
        gain, slope = _advantage(index, alpha, beta, discount, depth)
        index -= gain / slope
    return index


def _advantage(known: float, alpha: float, beta: float, discount: float, depth: int) -> tuple[float, float]:
    """What a pull of the unknown arm is worth above retiring to ``known`` for ever, and its derivative by ``known``."""
    retired = np.array([[known], [1.0]]) / (1 - discount)  # value and derivative
    wins = np.arange(depth + 1)
    mean = (alpha + wins) / (alpha + beta + depth)
    value = np.where(mean > known, np.stack([mean, np.zeros(depth + 1)]) / (1 - discount), retired)
    for n in range(depth - 1, -1, -1):
        p = (alpha + wins[: n + 1]) / (alpha + beta + n)
        pulled = discount * (p * value[:, 1:] + (1 - p) * value[:, :-1])
        pulled[0] += p
        value = np.where(pulled[0] > retired[0], pulled, retired)
    gain, slope = (pulled - retired)[:, 0]
    return float(gain), float(slope)


@functools.lru_cache(maxsize=2)
def _optimal(arms: int, horizon: int, alpha: float, beta: float, max_states: int) -> list[Values]:
    _check(arms, horizon, alpha, beta)
    return backward(layers(arms, horizon, max_states), alpha, beta, lambda _, values: values.max(-1))


def _check(arms: int, horizon: int, alpha: float, beta: float) -> None:
    if arms < 1 or horizon < 1 or not (alpha > 0 and beta > 0):
        raise ValueError(
            f"bandits: expected arms, horizon >= 1 and alpha, beta > 0, got {arms} arms, a horizon of {horizon}, "
            f"alpha = {alpha} and beta = {beta}"
        )


def _beta_tables(
    arms: int, horizon: int, alpha: float, beta: float
) -> tuple[Float64[ndarray, "C U"], Float64[ndarray, "C U"], Float64[ndarray, "U"]]:
    """Weights of the density and ``log`` of the cdf of an arm by its code, and the nodes ``p``, for ``horizon`` pulls.

    The trapezoid rule in ``u = log(p / (1 - p))``, where a Beta density is analytic and falls exponentially, in steps
    of half the width of the narrowest; the cdf is summed up from Gauss-Legendre panels between the nodes.
    """
    pulls, failures = counts(np.arange(horizon * (horizon + 1) // 2))
    a, b = (alpha + pulls - failures)[:, None], (beta + failures)[:, None]
    step = min(0.25, 1 / math.sqrt((alpha + beta + horizon) * (1 + math.log(arms))))
    low, high = 40 / alpha + math.log1p(horizon), (40 + math.log(arms)) / beta + math.log1p(horizon)
    u = np.arange(-low, high, step)

    def log_density(u: ndarray) -> ndarray:
        return -a * np.logaddexp(0, -u) - b * np.logaddexp(0, u)

    log_weights = log_density(u)
    peak = log_weights.max(1, keepdims=True)
    points, weights = np.polynomial.legendre.leggauss(8)
    panels = [w * np.exp(log_density(u + 0.5 * step * (t - 1)) - peak) for t, w in zip(points, weights, strict=True)]
    cdf = np.cumsum(sum(panels), 1)
    density = np.exp(log_weights - peak)
    log_cdf = np.log(np.maximum(cdf / cdf[:, -1:], 1e-300))
    return density / density.sum(1, keepdims=True), log_cdf, 1 / (1 + np.exp(-u))
