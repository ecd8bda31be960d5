"""Soft actor-critic against hand-computed targets, and the optimiser step."""

import pytest
import torch
from torch import nn

from bayesmeta.models.networks import Critics, TanhGaussianPolicy
from bayesmeta.rl.sac import descend, policy_loss, polyak, soft_target, td_error
from bayesmeta.types import Transitions


def batch(tasks: int = 2, rows: int = 3) -> Transitions:
    done = torch.zeros(tasks, rows, dtype=torch.bool)
    done[0, 0] = True
    reward = torch.arange(tasks * rows).reshape(tasks, rows).float()
    return Transitions(
        obs=torch.randn(tasks, rows, 4),
        action=torch.rand(tasks, rows, 2),
        reward=torch.full_like(reward, torch.nan),  # learners read the training reward only
        training_reward=reward,
        next_obs=torch.randn(tasks, rows, 4),
        terminated=done,
        boundary=done,
        mask=torch.ones_like(done),
    )


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return TanhGaussianPolicy(4, 2, 3, (8,)), Critics(4, 2, 3, (8,)), torch.randn(2, 3), batch()


def test_target_by_hand(parts):
    policy, critics, z, data = parts
    torch.manual_seed(1)
    y = soft_target(policy, critics, data, z, temperature=torch.tensor(0.3), discount=0.9, reward_scale=2.0)
    torch.manual_seed(1)
    law = policy(data.next_obs, z)
    noise = torch.randn(2, 3, 2)
    action = (law.loc + law.log_std.exp() * noise).tanh()
    log_prob = law.log_prob(action)
    q = critics(data.next_obs, action, z)
    value = torch.minimum(q[0], q[1]) - 0.3 * log_prob
    expected = 2.0 * data.training_reward + 0.9 * value
    expected[0, 0] = 0.0  # terminal, and its reward is 0
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_td_error_is_a_mean_over_rows_and_a_sum_over_critics_per_task(parts):
    _, critics, z, data = parts
    y = torch.randn(2, 3)
    q = critics(data.obs, data.action, z)
    expected = torch.stack([((q[0, b] - y[b]) ** 2).mean() + ((q[1, b] - y[b]) ** 2).mean() for b in range(2)])
    torch.testing.assert_close(td_error(critics, data, z, y), expected)


def test_policy_gradient_is_the_reparameterised_one(parts):
    """For Q linear in the action, d/dmean of -Q(tanh(u)) is -slope * (1 - tanh(u)^2), averaged over rows."""
    policy, _, z, data = parts

    class Linear(nn.Module):
        def forward(self, obs, action, z):
            return (3.0 * action.sum(-1)).expand(2, *action.shape[:-1])

    torch.manual_seed(2)
    loss, _ = policy_loss(policy, Linear(), data.obs, z, temperature=torch.tensor(0.0))
    (gradient,) = torch.autograd.grad(loss, [policy.net.biases[-1]])
    torch.manual_seed(2)
    law = policy(data.obs, z)
    noise = torch.randn(2, 3, 2)
    slope = 1.0 - (law.loc + law.log_std.exp() * noise).tanh() ** 2
    torch.testing.assert_close(gradient[0, :2], (-3.0 * slope).mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_polyak(parts):
    _, critics, _, _ = parts
    torch.manual_seed(5)
    other = Critics(4, 2, 3, (8,))
    expected = [0.75 * t + 0.25 * o for t, o in zip(other.parameters(), critics.parameters(), strict=True)]
    polyak(other, critics, 0.25)
    for ours, theirs in zip(other.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach())


def test_descend_applies_a_transposed_gradient_in_the_right_places():
    """torch's fused CPU Adam reads gradients in memory order whatever their strides."""
    weight = nn.Parameter(torch.zeros(3, 4))
    direction = torch.randn(4, 3)
    descend(torch.optim.Adam([weight], lr=0.1, fused=True), (weight.t() * direction).sum(), [weight])
    torch.testing.assert_close(weight.detach(), -0.1 * direction.t().sign(), rtol=1e-4, atol=1e-5)


def test_descend_touches_nothing_but_its_parameters(parts):
    policy, critics, z, data = parts
    loss, _ = policy_loss(policy, critics, data.obs, z, temperature=torch.tensor(0.1))
    descend(torch.optim.Adam(policy.parameters(), fused=True), loss, policy.parameters())
    assert all(p.grad is None for p in critics.parameters())
