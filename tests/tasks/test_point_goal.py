"""Point robot against hand-computed rewards, returns in closed form, and the exact posterior."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.inference.grid import grid
from bayesmeta.tasks.point_goal import GOAL_RADIUS, PointGoal, PointGoalModel, half_circle
from bayesmeta.types import Context

HORIZON = 20


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def returns(family: PointGoal, goals: Tensor, policy) -> Tensor:
    """One simulated episode of every goal, ``[B]``."""
    env = family.env(goals)
    obs, _ = env.reset(seed=1)
    total = torch.zeros(len(goals))
    for _ in range(family.spec.horizon):
        obs, reward, *_ = env.step(policy(obs, goals))
        total += reward
    return total


def still(obs: Tensor, goals: Tensor) -> Tensor:
    return torch.zeros_like(obs)


def test_dense_step_by_hand():
    env = PointGoal().env(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    start, _ = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(torch.tensor([[0.5, -1.0], [3.0, 0.0]]))
    assert torch.equal(obs, start + torch.tensor([[0.05, -0.1], [0.1, 0.0]]))  # 3 is clipped to 1
    expected = [-math.dist(obs[0].tolist(), (1.0, 1.0)), -math.hypot(*obs[1].tolist())]
    assert reward.tolist() == pytest.approx(expected, rel=1e-6)
    assert not terminated.any() and not truncated.any() and info == {}


def test_sparse_reward_by_hand():
    """Within 0.2 of the goal the reward is one minus the distance, outside it 0; learners may see the distance."""
    env = PointGoal(sparse=True).env(torch.tensor([[0.25, 0.0]]))
    obs, _ = env.reset(seed=0)
    assert obs.tolist() == [[0.0, 0.0]]
    _, reward, _, _, info = env.step(torch.tensor([[1.0, 0.0]]))
    assert reward.item() == pytest.approx(0.85) and info["training_reward"].item() == pytest.approx(0.85)
    _, reward, _, _, info = env.step(torch.tensor([[-1.0, 0.0]]))
    assert reward.item() == 0.0 and info["training_reward"].item() == pytest.approx(-0.25)


def test_plane_has_no_walls():
    env = PointGoal(horizon=50).env(torch.zeros(1, 2))
    obs, _ = env.reset(seed=0)
    for _ in range(50):
        last, *_ = env.step(torch.ones(1, 2))
    assert torch.allclose(last, obs + 5.0, atol=1e-5)


def test_starts_are_uniform_on_the_square_and_new_in_every_episode():
    env = PointGoal().env(torch.zeros(20000, 2))
    first, second = env.reset(seed=0)[0], env.reset()[0]
    for start in (first, second):
        assert start.abs().max() <= 1
        # Mean 0 and variance 1/3 of U(-1, 1), each within 5 standard errors.
        assert start.mean(0).abs().max() < 5 * (1 / 3 / 20000) ** 0.5
        assert (start.var(0) - 1 / 3).abs().max() < 5 * (4 / 45 / 20000) ** 0.5
    assert (first * second).mean(0).abs().max() < 5 * (1 / 9 / 20000) ** 0.5  # uncorrelated


def test_goals_drawn_with_the_seed_of_the_starts_are_elsewhere():
    """The same small seed for both is what a user writes first; it must not put every robot on its goal."""
    goals = PointGoal().sample(500, "test", generator(0))
    start, _ = PointGoal().env(goals).reset(seed=0)
    assert abs(float(torch.corrcoef(torch.stack([goals[:, 0], start[:, 0]]))[0, 1])) < 5 / 500**0.5


def distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(1) - b, dim=-1)


def test_half_circle_is_split_80_20():
    family = PointGoal(sparse=True)
    train, test = family.sample(80, "train", generator(1)), family.sample(20, "test", generator(2))
    drawn = torch.cat([train, test])
    nearest = distance(drawn, half_circle()).min(1)
    assert nearest.values.max() < 1e-6
    assert sorted(nearest.indices.tolist()) == list(range(100))  # disjoint, and every goal in one of them
    again = family.sample(80, "train", generator(3))
    assert not torch.equal(train, again)  # another order of the same goals
    assert (distance(again, train).min(1).values < 1e-6).all()


def test_half_circle_pool_is_exhausted_before_it_repeats():
    goals = PointGoal(sparse=True).sample(50, "test", generator())
    counts = distance(goals, goals).lt(1e-6).sum(1)
    assert sorted(set(counts.tolist())) == [2, 3]  # 50 draws from 20 goals


def test_ood_frame_is_filled():
    goals = PointGoal().sample(5000, "ood", generator())
    size = goals.abs().amax(1)
    assert size.min() > 1 and size.max() <= 1.5
    for axis in range(2):
        assert (goals[:, axis] > 1).any() and (goals[:, axis] < -1).any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), noise=st.floats(0.01, 2.0))
def test_nothing_is_closer_to_the_goal_than_the_oracle(seed, noise):
    """At every step, not in sum only: no action sequence brings a coordinate closer than full speed does."""
    family = PointGoal()
    goals = family.sample(32, "ood", generator(seed))
    best, other = family.env(goals), family.env(goals)
    obs, rival = best.reset(seed=seed)[0], other.reset(seed=seed)[0]
    for _ in range(HORIZON):
        obs, reward, *_ = best.step(family.oracle_action(obs, goals))
        perturbed = family.oracle_action(rival, goals) + noise * torch.randn(32, 2, generator=generator(seed))
        rival, less, *_ = other.step(perturbed)
        assert (less <= reward + 1e-6).all()


def exact_dense_returns() -> tuple[float, float]:
    """Oracle and still, expected over start and goal, by quadrature and in closed form.

    The distance of a coordinate is that of two points uniform on an interval of length 2, with density ``(2 - d) / 2``;
    the oracle has made it ``max(d - 0.1 t, 0)`` after t steps. The mean distance of two points uniform in a unit square
    is ``(2 + sqrt 2 + 5 asinh 1) / 15``.
    """
    d = (torch.arange(1000, dtype=torch.double) + 0.5) * 2e-3
    weight = (2 - d) / 2 * 2e-3
    left = [(d - 0.1 * t).clamp_min(0).square() for t in range(1, HORIZON + 1)]
    oracle = -sum(float(weight @ (r.unsqueeze(1) + r).sqrt() @ weight) for r in left)
    return oracle, -HORIZON * 2 * (2 + math.sqrt(2) + 5 * math.asinh(1)) / 15


def test_dense_returns_match_theory_and_the_published_anchors():
    oracle, stay = exact_dense_returns()
    assert oracle == pytest.approx(-5.2, abs=0.05) and stay == pytest.approx(-20.9, abs=0.05)
    family = PointGoal()
    goals = family.sample(20000, "train", generator())
    for policy, expected in ((family.oracle_action, oracle), (still, stay)):
        drawn = returns(family, goals, policy)
        assert abs(float(drawn.mean()) - expected) < 5 * float(drawn.std()) / 20000**0.5


def test_sparse_returns_match_theory_and_the_published_anchor():
    family, expected = PointGoal(sparse=True), []
    for x, y in half_circle().abs().double().tolist():
        path = [(min(0.1 * t, x), min(0.1 * t, y)) for t in range(1, HORIZON + 1)]
        distances = [math.dist(place, (x, y)) for place in path]
        expected.append(sum(1 - d for d in distances if d <= GOAL_RADIUS))
    assert sum(expected) / 100 == pytest.approx(13.4, abs=0.05)
    simulated = returns(family, half_circle(), family.oracle_action)
    assert simulated.tolist() == pytest.approx(expected, abs=1e-4)
    reference = family.reference_returns(half_circle())
    assert torch.allclose(reference["oracle"], simulated, atol=1e-5) and not reference["still"].any()


def test_reference_returns_belong_to_the_task():
    goals = PointGoal().sample(5, "test", generator())
    together, alone = PointGoal().reference_returns(goals), PointGoal().reference_returns(goals[2:3])
    assert all(torch.equal(together[name][2:3], alone[name]) for name in ("oracle", "still"))


@pytest.mark.parametrize("sparse", [False, True])
def test_model_is_the_simulator(sparse):
    """The likelihood's mean at the true goal is the reward, step by step and to the last digits."""
    family = PointGoal(sparse=sparse)
    goals = 0.4 * family.sample(64, "train", generator())  # near enough to be rewarded now and then
    env, rows = family.env(goals), []
    obs, _ = env.reset(seed=0)
    for t in range(HORIZON):
        action = 2 * torch.rand(64, 2, generator=generator(t)) - 1
        new, reward, *_ = env.step(action)
        rows.append((torch.cat([obs, action], 1), reward.unsqueeze(1)))
        obs = new
    data = Context.of(*(torch.stack(column, 1) for column in zip(*rows, strict=True)))
    law = family.model.likelihood(goals.unsqueeze(1), data)
    assert torch.allclose(law.mean, data.y, atol=1e-6)
    at_best = HORIZON * torch.distributions.Normal(0.0, 0.01).log_prob(torch.zeros(()))
    assert torch.allclose(family.model.log_likelihood(goals, data), at_best.expand(64), atol=1e-3)
    assert (family.model.log_likelihood(goals.roll(1, 0), data) < at_best - 1).float().mean() > (0.2 if sparse else 0.9)


def test_sparse_prior_has_no_density():
    with pytest.raises(NotImplementedError, match="finitely many angles: use a finite-hypothesis filter"):
        PointGoalModel(sparse=True).prior(1)


def seen(goals: Tensor, places: list[tuple[float, float]]) -> Context:
    """What robots that stood at ``places`` were paid."""
    position = torch.tensor(places).expand(len(goals), -1, 2)
    reward = -torch.linalg.vector_norm(position - goals.unsqueeze(1), dim=-1, keepdim=True)
    return Context.of(torch.cat([position, torch.zeros_like(position)], -1), reward)


def mass(belief, place: Tensor) -> Tensor:
    """Posterior probability within 0.1 of a place, ``[B]``."""
    near = torch.linalg.vector_norm(belief.points - place.unsqueeze(1), dim=-1) < 0.1
    return (belief.log_weights.exp() * near).sum(1)


def upper(belief) -> Tensor:
    """Posterior probability above the x axis, ``[B]``."""
    return (belief.log_weights.exp() * (belief.points[..., 1] > 0)).sum(1)


def test_three_places_that_are_not_in_line_identify_the_goal():
    goals = torch.tensor([[0.5, 0.6], [-0.8, 0.3], [0.1, -0.7], [-0.4, -0.4]])
    exact = grid(PointGoalModel(), torch.full((2,), -1.0), torch.ones(2), (200, 200), x_dim=4, y_dim=1)
    prior = exact.init(4)
    one, two = seen(goals, [(0.0, 0.0)]), seen(goals, [(0.0, 0.0), (0.5, 0.0)])
    three, line = (seen(goals, [(0.0, 0.0), (0.5, 0.0), last]) for last in [(0.0, 0.5), (-0.5, 0.0)])
    assert (mass(exact.update(prior, one), goals) < 0.3).all()  # a circle around the origin
    for data in (two, line):  # the goal or its mirror image, with even odds
        assert torch.allclose(upper(exact.update(prior, data)), torch.full((4,), 0.5), atol=1e-4)
    belief = exact.update(prior, three)
    assert (mass(belief, goals) > 0.99).all()
    posterior = belief.posterior
    assert ((posterior.mean - goals).abs() < 3 * posterior.stddev + 0.01).all() and (posterior.stddev < 0.05).all()


def test_sparse_filter_rules_out_what_was_visited():
    """Without a reward the goals within reach of the places seen are out and the others stay equally likely."""
    circle = half_circle()
    exact = FiniteFilter(circle, torch.zeros(100), PointGoalModel(sparse=True).log_likelihood, x_dim=4, y_dim=1)
    place = circle[30:31]
    data = Context.of(torch.cat([place, torch.zeros(1, 2)], 1).unsqueeze(1), torch.zeros(1, 1, 1))
    weights = exact.update(exact.init(1), data).log_weights.exp()[0]
    near = torch.linalg.vector_norm(circle - place, dim=1) <= GOAL_RADIUS
    assert 10 < int(near.sum()) < 15 and weights[near].max() < 1e-6
    assert torch.allclose(weights[~near], torch.full_like(weights[~near], 1 / int((~near).sum())))
    paid = 1 - torch.linalg.vector_norm(circle[33] - circle[30])
    weights = exact.update(exact.init(1), Context.of(data.x, paid.reshape(1, 1, 1))).log_weights.exp()[0]
    assert torch.allclose(weights[[27, 33]], torch.full((2,), 0.5), atol=0.02)  # on either side of the place
