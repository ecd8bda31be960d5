"""Recurrent double Q-learning: against a loop over episodes and steps."""

import pytest
import torch

from bayesmeta.rl.dqn import double_q_target, previous_actions, td_error
from bayesmeta.rl.q_learner import QLearner, Schedule


@pytest.fixture
def episodes():
    generator = torch.Generator().manual_seed(0)
    online, target = torch.randn(2, 5, 7, 3, generator=generator)
    length = torch.tensor([6, 1, 4, 2, 6])
    steps = torch.arange(6)
    mask = steps < length.unsqueeze(1)
    last = steps == length.unsqueeze(1) - 1
    reward = torch.randn(5, 6, generator=generator)
    action = torch.nn.functional.one_hot(torch.randint(3, (5, 6), generator=generator), 3).float()
    return online, target, reward, action, mask, last


def test_targets_are_those_of_a_loop(episodes):
    online, target, reward, _, mask, last = episodes
    found = double_q_target(online, target, reward, last, 0.9)
    for b, t in mask.nonzero().tolist():
        best = int(online[b, t + 1].argmax())  # chosen by one network, valued by the other
        following = 0.0 if last[b, t] else 0.9 * float(target[b, t + 1, best])
        assert float(found[b, t]) == pytest.approx(float(reward[b, t]) + following, abs=1e-6)


def test_the_errors_mean_is_over_all_real_steps_and_padding_is_never_read(episodes):
    online, _, reward, action, mask, _ = episodes
    errors = td_error(online[:, :-1], action, reward, mask)
    each = [(float(online[b, t][action[b, t].bool()] - reward[b, t])) ** 2 for b, t in mask.nonzero().tolist()]
    assert float(errors.mean()) == pytest.approx(sum(each) / len(each), rel=1e-5)
    poisoned = td_error(online[:, :-1], action, reward.masked_fill(~mask, torch.nan), mask)
    assert torch.equal(errors, poisoned)


def test_no_gradient_flows_into_a_target(episodes):
    online, target, reward, _, _, last = episodes
    for network in (online, target):
        network.requires_grad_()
    assert not double_q_target(online, target, reward, last, 0.9).requires_grad


def test_the_action_before_the_first_observation_is_none(episodes):
    action = episodes[3]
    previous = previous_actions(action)
    assert previous.shape == (5, 7, 3) and not previous[:, 0].any() and torch.equal(previous[:, 1:], action)


def test_random_actions_become_rarer_and_stay():
    schedule = Schedule(epsilon_steps=100)
    assert schedule.epsilon(0) == 1.0
    assert schedule.epsilon(50) == pytest.approx(0.505)
    assert schedule.epsilon(100) == pytest.approx(0.01)
    assert schedule.epsilon(10**6) == 0.01
    schedule = Schedule(epsilon_steps=100, final_epsilon=0.2)
    assert schedule.epsilon(50) == pytest.approx(0.6)
    assert schedule.epsilon(10**6) == 0.2
    with pytest.raises(ValueError, match="final_epsilon"):
        Schedule(final_epsilon=1.5)


def test_actions_are_random_until_learning_begins():
    q = torch.nn.Linear(1, 1)
    learner = QLearner(q, Schedule(epsilon_steps=100, steps_per_update=10), torch.device("cpu"))
    learner.steps = 5000
    assert learner.due(begun=False) == 0 and learner.epsilon == 1.0
    learner.steps += 50
    assert learner.due(begun=True) == 5 and learner.epsilon == pytest.approx(0.505)
    again = QLearner(q, learner.schedule, torch.device("cpu"))
    again.load_state_dict(learner.state_dict())
    assert again.epsilon == learner.epsilon


def test_weights_decay_apart_from_the_gradient_and_only_those_named():
    q, kept, decayed = (torch.nn.Linear(2, 1) for _ in range(3))
    learner = QLearner(q, Schedule(lr=0.02), torch.device("cpu"), (kept, decayed), weight_decay=5.0, decayed=(decayed,))
    before = [module.weight.detach().clone() for module in (q, kept, decayed)]
    learner.descend(sum((module.weight * torch.ones(1, 2)).sum() for module in (q, kept, decayed)))
    for module, weight, share in zip((q, kept, decayed), before, (0.9, 1.0, 0.9), strict=True):
        torch.testing.assert_close(module.weight, share * weight - 0.02, atol=1e-6, rtol=0)  # Adam's first step: lr
    assert torch.equal(learner.target.weight, before[0])


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"execute_after": 31}, {"capacity": 499}, {"trials": 513}])
def test_schedules_that_cannot_be_kept_are_refused(wrong):
    with pytest.raises(ValueError, match=r"Schedule: expected 1 <= batch <= execute_after <= capacity and trials"):
        Schedule(**wrong)
