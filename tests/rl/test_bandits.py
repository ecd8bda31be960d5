"""Values of bandits against the published constants, recursions in plain Python, quadrature and simulation."""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bayesmeta.rl import bandit_states
from bayesmeta.rl.bandits import (
    bayes_adaptive_value,
    bayes_optimal_action_values,
    bayes_optimal_actions,
    gittins_index,
    no_adaptation_value,
    oracle_value,
    thompson_value,
)

State = tuple[tuple[int, int], ...]  # successes and failures of every arm, in order


def brute_action_values(
    state: State, remaining: int, alpha: float, beta: float, choose: Callable[[State, list[float]], float]
) -> list[float]:
    """The recursion over ordered counts, arm by arm; ``choose(state, action values)`` is the value of a policy."""

    @functools.cache
    def value(state: State, remaining: int) -> float:
        return choose(state, actions(state, remaining)) if remaining else 0.0

    def actions(state: State, remaining: int) -> list[float]:
        found = []
        for a, (won, lost) in enumerate(state):
            p = (alpha + won) / (alpha + beta + won + lost)
            up, down = ((*state[:a], arm, *state[a + 1 :]) for arm in ((won + 1, lost), (won, lost + 1)))
            found.append(p * (1 + value(up, remaining - 1)) + (1 - p) * value(down, remaining - 1))
        return found

    return actions(state, remaining)


@pytest.mark.parametrize(
    "arms, horizon, value, oracle, states",
    [
        (2, 5, 2.888889, 10 / 3, 38),
        (2, 10, 6.021786, 20 / 3, 365),
        (2, 20, 12.431265, 40 / 3, 4455),
        (3, 10, 6.409643, 7.5, 960),
        (10, 10, 6.713951, 100 / 11, 2296),
    ],
)
def test_constants(arms: int, horizon: int, value: float, oracle: float, states: int) -> None:
    """Golden values of an earlier dynamic program over sorted counts in pure Python, Beta(1, 1) arms."""
    assert math.isclose(bayes_adaptive_value(arms, horizon), value, abs_tol=1e-6)
    assert math.isclose(oracle_value(arms, horizon), oracle, rel_tol=1e-12)
    assert bandit_states.belief_states(arms, horizon) == states


@pytest.mark.parametrize("arms, horizon", [(1, 6), (2, 7), (3, 4), (5, 3)])
@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (0.4, 2.5)])
def test_value_is_that_of_the_recursion_over_ordered_counts(arms: int, horizon: int, alpha: float, beta: float) -> None:
    by_hand = max(brute_action_values(((0, 0),) * arms, horizon, alpha, beta, lambda _, values: max(values)))
    assert math.isclose(bayes_adaptive_value(arms, horizon, alpha, beta), by_hand, rel_tol=1e-12)


@pytest.mark.parametrize("arms, horizon", [(1, 5), (2, 6), (3, 5), (4, 2), (5, 5)])
def test_states_are_counted_as_enumeration_does(arms: int, horizon: int) -> None:
    kinds = [(won, lost) for won in range(horizon) for lost in range(horizon - won)]
    states = itertools.combinations_with_replacement(kinds, arms)
    assert bandit_states.belief_states(arms, horizon) == sum(sum(map(sum, state)) < horizon for state in states)


@pytest.mark.parametrize("remaining", [1, 2, 5])
def test_action_values_at_any_counts(remaining: int) -> None:
    """States of different numbers of pulls in one batch, as integers or as floats; equal arms are worth the same."""
    states = [((2, 0), (0, 1), (0, 0)), ((0, 0), (0, 0), (0, 0)), ((1, 3), (1, 3), (2, 0)), ((0, 0), (4, 1), (0, 3))]
    counts = torch.tensor(states)
    found = bayes_optimal_action_values(counts[..., 0], counts[..., 1].float(), remaining, 0.7, 1.2)
    each = [brute_action_values(state, remaining, 0.7, 1.2, lambda _, values: max(values)) for state in states]
    by_hand = torch.tensor(each, dtype=torch.float64)
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=1e-12)
    actions = bayes_optimal_actions(counts[..., 0], counts[..., 1], remaining, 0.7, 1.2)
    assert actions[1] == 0  # of equally good arms the first
    torch.testing.assert_close(by_hand.gather(1, actions.unsqueeze(1)).squeeze(1), by_hand.amax(1))


@pytest.mark.parametrize("arms, alpha, beta", [(1, 1.0, 1.0), (2, 0.3, 0.4), (10, 2.0, 5.0), (300, 30.0, 12.0)])
def test_oracle_is_the_expected_maximum(arms: int, alpha: float, beta: float) -> None:
    """``int 1 - F(p)^k dp`` by adaptive quadrature."""
    cdf = stats.beta(alpha, beta).cdf
    expected, _ = integrate.quad(lambda p: 1 - cdf(p) ** arms, 0, 1, epsabs=1e-12, epsrel=1e-12, limit=500)
    assert math.isclose(oracle_value(arms, 7, alpha, beta), 7 * expected, rel_tol=0, abs_tol=1e-10)


@pytest.mark.parametrize("arms, horizon, alpha, beta", [(2, 4, 1.0, 1.0), (3, 3, 0.6, 2.0), (5, 3, 1.0, 1.0)])
def test_thompson_is_the_recursion_with_the_probability_of_being_best(
    arms: int, horizon: int, alpha: float, beta: float
) -> None:
    """Probabilities by adaptive quadrature of ``f_a prod F_b``; arms not yet pulled are there more than once."""

    @functools.cache
    def probability(one: tuple[int, int], others: State) -> float:
        arm = stats.beta(alpha + one[0], beta + one[1])
        rest = [stats.beta(alpha + won, beta + lost) for won, lost in others]
        # In p^alpha, in which the density is bounded at 0, where p^(alpha - 1) need not be.
        power = 1 / min(alpha, 1.0)
        found, _ = integrate.quad(
            lambda u: arm.pdf(u**power) * power * u ** (power - 1) * math.prod(law.cdf(u**power) for law in rest), 0, 1
        )
        return found

    def average(state: State, values: list[float]) -> float:
        shares = [probability(state[a], tuple(sorted(state[:a] + state[a + 1 :]))) for a in range(arms)]
        assert math.isclose(sum(shares), 1.0, abs_tol=1e-6)
        return float(np.dot(shares, values))

    state = ((0, 0),) * arms
    by_hand = average(state, brute_action_values(state, horizon, alpha, beta, average))
    assert math.isclose(thompson_value(arms, horizon, alpha, beta), by_hand, rel_tol=1e-6)


def simulate(arms: int, horizon: int, policy: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> np.ndarray:
    """Returns of a policy on 20 000 tasks of the Beta(1, 1) prior."""
    random, tasks = np.random.default_rng(0), 20_000
    chance = torch.as_tensor(random.random((tasks, arms)))
    wins, losses = torch.zeros(tasks, arms), torch.zeros(tasks, arms)
    for t in range(horizon):
        arm = policy(wins, losses, horizon - t).unsqueeze(1)
        won = (torch.as_tensor(random.random((tasks, 1))) < chance.gather(1, arm)).float()
        wins.scatter_add_(1, arm, won)
        losses.scatter_add_(1, arm, 1 - won)
    return wins.sum(1).numpy()


@pytest.mark.parametrize("arms, horizon", [(2, 20), (10, 10)])
def test_agents_get_what_is_predicted(arms: int, horizon: int) -> None:
    """Within 4 standard errors: the best learner, Thompson sampling, and always the same arm."""
    random = np.random.default_rng(1)

    def thompson(wins: torch.Tensor, losses: torch.Tensor, _: int) -> torch.Tensor:
        return torch.as_tensor(random.beta(1 + wins.numpy(), 1 + losses.numpy()).argmax(1))

    policies = (bayes_optimal_actions, thompson, lambda wins, *_: torch.zeros(len(wins), dtype=torch.int64))
    values = (f(arms, horizon) for f in (bayes_adaptive_value, thompson_value, no_adaptation_value))
    for policy, value in zip(policies, values, strict=True):
        returns = simulate(arms, horizon, policy)
        assert abs(returns.mean() - value) < 4 * returns.std() / math.sqrt(len(returns))


@pytest.mark.parametrize("arms, horizon, alpha, beta", [(2, 20, 1.0, 1.0), (4, 8, 0.5, 3.0), (30, 6, 2.0, 2.0)])
def test_who_knows_more_gets_more(arms: int, horizon: int, alpha: float, beta: float) -> None:
    setting = (arms, horizon, alpha, beta)
    values = [f(*setting) for f in (no_adaptation_value, thompson_value, bayes_adaptive_value, oracle_value)]
    assert values == sorted(values) and values[0] < values[2] - 0.1
    assert math.isclose(thompson_value(1, horizon, alpha, beta), no_adaptation_value(1, horizon, alpha, beta))


@pytest.mark.parametrize(
    "wins, losses, discount, index",
    [(0, 0, 0.9, 0.7029), (1, 1, 0.9, 0.6346), (2, 2, 0.9, 0.6010), (9, 1, 0.9, 0.8695), (0, 0, 0.99, 0.8699)],
)
def test_gittins_indices_are_the_published_ones(wins: int, losses: int, discount: float, index: float) -> None:
    """The tables of Christian and Griffiths, Algorithms to Live By (2016), chapter 2, to the digits that they have."""
    assert abs(gittins_index(1.0 + wins, 1.0 + losses, discount) - index) < 6e-5


@pytest.mark.parametrize("alpha, beta, discount", [(1.0, 1.0, 0.9), (2.0, 1.0, 0.8), (0.5, 1.7, 0.9), (4.0, 9.0, 0.85)])
def test_gittins_index_by_restarting(alpha: float, beta: float, discount: float) -> None:
    """``(1 - discount) V`` where one may start from the first state again at any time (Katehakis and Veinott 1987)."""
    depth, sweeps = 180, 250
    wins, losses = np.mgrid[: depth + 1, : depth + 1]
    p = (alpha + wins) / (alpha + beta + wins + losses)
    value = p / (1 - discount)  # also beyond the triangle, where the arm is taken as known
    for _ in range(sweeps):
        onward = p[:-1, :-1] + discount * (p[:-1, :-1] * value[1:, :-1] + (1 - p[:-1, :-1]) * value[:-1, 1:])
        value[:-1, :-1] = np.maximum(onward, onward[0, 0])
    assert abs(gittins_index(alpha, beta, discount) - (1 - discount) * value[0, 0]) < 1e-6
    coarse = gittins_index(alpha, beta, discount, tolerance=1e-3)
    assert 0 <= gittins_index(alpha, beta, discount) - coarse <= 1e-3


def test_the_arm_of_the_greatest_gittins_index_is_optimal_with_discounting() -> None:
    """The theorem of Gittins and Jones (1974), on two arms and as long a horizon as discounting leaves of interest."""
    discount, horizon = 0.5, 20

    @functools.cache
    def value(state: State, remaining: int) -> float:
        return max(actions(state, remaining)) if remaining else 0.0

    def actions(state: State, remaining: int) -> list[float]:
        (a, b), (c, d) = state
        p, q = (1 + a) / (2 + a + b), (1 + c) / (2 + c + d)
        up, down = ((((a + w, b + 1 - w)), (c, d)) for w in (1, 0))
        right, left = (((a, b), (c + w, d + 1 - w)) for w in (1, 0))
        return [
            p * (1 + discount * value(up, remaining - 1)) + (1 - p) * discount * value(down, remaining - 1),
            q * (1 + discount * value(right, remaining - 1)) + (1 - q) * discount * value(left, remaining - 1),
        ]

    for state in [((3, 1), (0, 0)), ((1, 2), (0, 0)), ((1, 1), (6, 5)), ((0, 0), (5, 4)), ((0, 0), (7, 5))]:
        first, second = actions(state, horizon)
        one, other = (gittins_index(1.0 + won, 1.0 + lost, discount) for won, lost in state)
        assert abs(first - second) > 2 * discount**horizon / (1 - discount)
        assert (first > second) == (one > other)
    assert gittins_index(1.0, 1.0, discount) > 6 / 11  # the mean that the fourth gives up to explore


def test_what_does_not_fit_is_refused_beforehand() -> None:
    message = (
        r"expected at most 3000000 belief states, got at least 10\^7\.1 for 3 arms and 60 pulls; take fewer of either"
    )
    with pytest.raises(ValueError, match=message):
        bayes_adaptive_value(3, 60)
    with pytest.raises(ValueError, match=r"got at least 10\^\d+\.\d for 1000 arms"):
        thompson_value(1000, 1000)
    with pytest.raises(ValueError, match=r"at most 364 belief states, got 10\^2\.6 for 2 arms and 10 pulls"):
        bayes_adaptive_value(2, 10, max_states=364)
    assert bayes_adaptive_value(2, 10, max_states=365) > 6
    counts = torch.full((1, 2), 400)
    with pytest.raises(ValueError, match="for 2 arms and 1601 pulls"):
        bayes_optimal_actions(counts, counts, 1)


def test_arguments_out_of_range_are_refused() -> None:
    for function in (bayes_adaptive_value, thompson_value, oracle_value, no_adaptation_value):
        for bad in [(0, 5), (2, 0), (2, 5, 0.0), (2, 5, 1.0, -1.0)]:
            with pytest.raises(ValueError, match="expected arms, horizon >= 1 and alpha, beta > 0, got"):
                function(*bad)
    zeros = torch.zeros(1, 2)
    for wins, remaining in [(zeros - 1, 2), (zeros + 0.5, 2), (zeros, 0), (zeros + torch.nan, 2)]:
        with pytest.raises(ValueError, match="expected counts that are integers >= 0 and remaining >= 1"):
            bayes_optimal_actions(wins, zeros, remaining)
    for bad in [(0.0, 1.0, 0.9), (1.0, 1.0, 1.0), (1.0, 1.0, 0.0)]:
        with pytest.raises(ValueError, match=r"expected alpha, beta > 0, a discount in \(0, 1\)"):
            gittins_index(*bad)
    with pytest.raises(ValueError, match="take a smaller discount or a greater tolerance"):
        gittins_index(1.0, 1.0, 0.9999)


def test_states_with_one_key_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of states is known from counting, so that a collision cannot go unnoticed."""
    monkeypatch.setattr(bandit_states, "hashes", lambda n: np.arange((n + 1) * (n + 2) // 2, dtype=np.uint64))
    with pytest.raises(RuntimeError, match="two belief states have one key"):
        bandit_states.layers(2, 6, 1000)
