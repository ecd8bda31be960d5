"""E-RL^2: a trial is one episode, whose exploration is paid by what follows."""

import pytest
import torch

from bayesmeta.algorithms.e_rl2 import ERL2, joined
from bayesmeta.collect import collect
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.rl.q_learner import Schedule
from bayesmeta.tasks.bus import SmallMap
from bayesmeta.types import Spec

FAMILY = SmallMap()
QUICK = Schedule(trials=16, trials_per_iteration=32, batch=8, execute_after=16, steps_per_update=32)


def agent(**changes) -> ERL2:
    with torch_seeded(0):
        algorithm = ERL2(FAMILY.spec, memory=8, schedule=Schedule(**{**vars(QUICK), **changes}))
    algorithm.setup(FAMILY, 0)
    return algorithm


@pytest.fixture
def trained() -> ERL2:
    algorithm = agent()
    with torch_seeded(1):
        algorithm.step()
    return algorithm


def test_a_joined_trial_goes_on_where_exploration_ended(trained):
    batch = trained.replay.sample(20, torch.Generator().manual_seed(2))
    trial = joined(batch.explore, batch.execute)
    for b in range(20):
        first, second = int(batch.explore.mask[b].sum()), int(batch.execute.mask[b].sum())
        assert trial.mask[b].tolist() == [t < first + second for t in range(trial.mask.shape[1])]
        assert torch.equal(trial.obs[b, :first], batch.explore.obs[b, :first])
        assert torch.equal(trial.obs[b, first : first + second], batch.execute.obs[b, :second])
        assert torch.equal(trial.reward[b, first : first + second], batch.execute.reward[b, :second])
        assert not trial.reward[b, :first].any()


def test_values_of_a_trial_are_those_that_act_in_it(trained):
    """Along a greedy trial, the values that learning sees choose the very actions that were taken."""
    rollout = collect(
        FAMILY.env(FAMILY.identifiers("train")), trained.explorer, trained.inference, FAMILY.spec, episodes=2, seed=0
    )
    trial = joined(*rollout.episodes)
    with torch.no_grad():
        values = trained.learner.q(trial)
    best = values[:, :-1].argmax(-1)
    assert torch.equal(best[trial.mask], trial.action.argmax(-1)[trial.mask])


def test_the_loss_is_that_of_a_loop(trained):
    batch = trained.replay.sample(6, torch.Generator().manual_seed(2))
    trial = joined(batch.explore, batch.execute)
    online, target = trained.learner.q(trial), trained.learner.target(trial)
    errors = []
    for b in range(6):
        steps = int(trial.mask[b].sum())
        for t in range(steps):
            y = trial.reward[b, t]
            if t + 1 < steps:
                y = y + 0.99 * target[b, t + 1, online[b, t + 1].argmax()]
            errors.append((online[b, t, trial.action[b, t].argmax()] - y).square())
    torch.testing.assert_close(trained.loss(batch), torch.stack(errors).mean())


def test_its_memory_lasts_through_the_trial_and_no_longer(trained):
    rollout = collect(
        FAMILY.env(FAMILY.identifiers("train")), trained.explorer, trained.inference, FAMILY.spec, episodes=2, seed=0
    )
    assert not rollout.latents[:, 0].any() and rollout.latents[:, 1].any()
    assert torch.equal(rollout.latents[:, 1], rollout.beliefs[1].z)


def test_other_families_are_refused():
    spec = Spec.control("line", obs_dim=2, action_dim=1, horizon=3, param_names=("p",))
    with pytest.raises(ValueError, match="ERL2 needs a control family with discrete actions and episodes free of"):
        ERL2(spec)
