"""The smallest world: what tells, what pays, what is believed after either."""

import math

import pytest
import torch

from bayesmeta.tasks.reveal import Reveal
from tests.tasks.worlds import episode

A = 6
FAMILY = Reveal(actions=A)
EVERY = torch.cartesian_prod(torch.arange(A), torch.arange(A))  # problems and actions
PROBLEM, ACTION = EVERY.unbind(1)


def test_one_action_tells_the_problem_and_the_others_nothing():
    seen = episode(FAMILY.env(PROBLEM.float().unsqueeze(1)), ACTION.unsqueeze(0), explore=True)
    told = torch.where(ACTION == 0, 1 + PROBLEM, 0)
    assert (seen.obs == 0).all() and torch.equal(seen.next_obs[:, 0, 0], told.float())
    assert (seen.reward == 0).all() and not seen.terminated.any() and seen.boundary.all()
    belief = FAMILY.exact.update(FAMILY.exact.init(A * A), seen.context(next_obs=True))
    entropy = torch.special.entr(belief.log_weights.exp()).sum(-1)
    assert torch.allclose(entropy, torch.where(ACTION == 0, 0.0, math.log(A)), atol=1e-6)
    assert torch.equal(belief.log_weights[ACTION == 0].argmax(1), torch.arange(A))


def test_the_right_action_alone_is_paid_and_the_reward_is_evidence():
    seen = episode(FAMILY.env(PROBLEM.float().unsqueeze(1)), ACTION.unsqueeze(0))
    right = PROBLEM == ACTION
    assert torch.equal(seen.reward[:, 0], right.float()) and seen.terminated.all()
    assert (seen.obs[:, 0, 1] == 1).all()
    weights = FAMILY.exact.update(FAMILY.exact.init(A * A), seen.context(next_obs=True)).log_weights.exp()
    for b, (problem, action) in enumerate(EVERY.tolist()):
        expected = torch.full((A,), 1.0 / (A - 1))
        expected[action] = 0.0
        if action in (0, problem):  # told, or paid
            expected = torch.eye(A)[problem]
        assert torch.allclose(weights[b], expected, atol=1e-6)


def test_reward_of_an_exploration_says_nothing():
    """All of them are 0: taken for the pay of an action, that would rule the action out."""
    seen = episode(FAMILY.env(torch.tensor([[3.0]])), torch.tensor([[3]]), explore=True)
    weights = FAMILY.exact.update(FAMILY.exact.init(1), seen.context(next_obs=True)).log_weights.exp()
    assert torch.allclose(weights, torch.full((1, A), 1 / A))


@pytest.mark.parametrize("actions", [2, 8, 64])
def test_references(actions):
    family = Reveal(actions=actions)
    found = family.reference_returns(family.identifiers("train"))
    assert torch.equal(found["oracle"], torch.ones(actions))
    assert torch.allclose(found["walking"], torch.full((actions,), 1 / actions))
    assert family.spec.param_sizes == (actions,) and family.spec.horizon == 1


def test_one_action_is_refused():
    with pytest.raises(ValueError, match="Reveal: expected actions >= 2, got 1"):
        Reveal(actions=1)
