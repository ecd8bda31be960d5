"""Regression on transitions: the data are what the simulator does, normalised, and drawn without replacement."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesmeta.tasks.cheetah_vel import CheetahVel
from bayesmeta.tasks.dynamics import Dynamics
from bayesmeta.tasks.hopper_params import HopperParams
from bayesmeta.tasks.mujoco import MujocoTaskEnv
from bayesmeta.tasks.walker_params import WalkerParams
from bayesmeta.types import Context, SupervisedFamily
from tests.tasks.test_families import pendulum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def hoppers() -> Dynamics:
    return Dynamics(HopperParams(threads=1), steps=60)


def raw(family: Dynamics, data: Context) -> tuple[Tensor, Tensor, Tensor]:
    """State, action and change, in the body's units."""
    mean, std, _, _ = family.statistics
    size = family.spec.y_dim
    return *(mean + std * data.x).split([size, family.spec.x_dim - size], -1), family.change(data.y)


def simulated(env: MujocoTaskEnv, state: Tensor, action: Tensor) -> Tensor:
    """The change of state of hoppers put into ``state``: what no observation shows, their place on the x axis, is 0."""
    qpos = np.concatenate([np.zeros((len(state), 1)), state[:, :5].numpy()], 1)
    obs, _ = env.reset(options={"qpos": qpos, "qvel": state[:, 5:].numpy()})
    assert torch.allclose(obs, state, atol=1e-6)
    return env.step(action)[0] - obs


def test_targets_are_what_the_simulator_does(hoppers):
    """State, action and change of every datum, simulated anew from that state; another task's body moves otherwise.

    float32 observations leave 1e-6 of the state unknown, which a contact of stiffness up to 1e5 amplifies within a
    control step. Where a velocity is clipped to 10, the state is not known.
    """
    params = hoppers.sample(8, "train", seeded())
    data = hoppers.context(params, 20, seeded(1))
    envs = [hoppers.control.env(p) for p in (params, params.roll(1, 0))]
    state, action, change = raw(hoppers, data)
    assert (action.abs() <= 1 + 1e-5).all() and action.abs().max() > 0.95
    mine, others = [], []
    for k in range(20):
        known = (state[:, k, 5:].abs() < 9.99).all(1)
        error = [simulated(env, state[:, k], action[:, k]) - change[:, k] for env in envs]
        mine.append(error[0][known])
        others.append(error[1][known])
    scale = hoppers.statistics[3]
    mine_scaled, others_scaled = (torch.cat(e).abs() / scale for e in (mine, others))
    assert len(mine_scaled) > 130 and float(mine_scaled.max()) < 0.01 < float(others_scaled.median())


def test_shots_are_a_random_order_of_the_transitions_of_whole_episodes(hoppers):
    """All 60 transitions of a task make episodes that begin at the reset; fewer shots are a part of them, shuffled."""
    params = hoppers.sample(5, "test", seeded())
    state, _, change = raw(hoppers, hoppers.context(params, 60, seeded(1)))
    assert len(torch.unique(state.flatten(0, 1), dim=0)) == 300, "a transition twice"
    # A transition follows another where its state is the one that the other leads to.
    gap = torch.cdist(state, state + change, compute_mode="donot_use_mm_for_euclid_dist").min(-1).values
    first = gap > 1e-4
    assert (first.sum(1) >= 2).all(), "60 steps are several episodes of a falling hopper"
    height = state[..., 0]
    assert ((height[first] - 1.25).abs() < 0.006).all(), "an episode begins somewhere else"
    part, _, _ = raw(hoppers, hoppers.context(params, 7, seeded(1)))
    assert torch.cdist(part, state, compute_mode="donot_use_mm_for_euclid_dist").min(-1).values.max() < 1e-4
    # In the order of time nearly every row would lead to the next, in a random order 1 in 60 does.
    leads = ((state + change)[:, :-1] - state[:, 1:]).norm(dim=-1) < 1e-4
    assert float(leads.float().mean()) < 0.1


def test_numbers_have_mean_zero_and_variance_one_over_training_tasks(hoppers):
    """32 other tasks than the 32 of the statistics. Whole tasks differ, so the errors are those of means of tasks."""
    data = hoppers.context(hoppers.sample(32, "train", seeded(5)), 60, seeded(6))
    for v in (data.x, data.y):
        error = v.mean(1).std(0) * math.sqrt(2 / 32)  # of the difference between two such means
        assert (v.mean((0, 1)).abs() < 5 * error + 1e-3).all()
        assert ((v.std((0, 1)) > 0.5) & (v.std((0, 1)) < 2)).all()
    outside = hoppers.context(hoppers.sample(32, "ood", seeded(5)), 60, seeded(6))
    assert float((outside.y.std((0, 1)) - 1).abs().max()) > float((data.y.std((0, 1)) - 1).abs().max())


@pytest.mark.parametrize("control", [WalkerParams(threads=1), pendulum(horizon=10)], ids=lambda c: c.spec.name)
def test_any_family_whose_dynamics_vary_will_do(control):
    family = Dynamics(control, steps=12)
    assert isinstance(family, SupervisedFamily) and not family.spec.is_control
    params = family.sample(3, "train", seeded())
    data = family.context(params, 12, seeded(1))
    assert data.x.shape == (3, 12, control.spec.obs_dim + control.spec.action_dim) == (3, 12, family.spec.x_dim)
    assert data.y.shape == (3, 12, control.spec.obs_dim) and data.y.isfinite().all()
    assert torch.equal(family.context(params, 12, seeded(1)).y, data.y)


def test_the_generator_decides_and_is_moved_on(hoppers):
    params = hoppers.sample(3, "train", seeded())
    generator = seeded(1)
    first, second = hoppers.context(params, 5, generator), hoppers.context(params, 5, generator)
    assert torch.equal(hoppers.context(params, 5, seeded(1)).x, first.x) and not torch.equal(first.x, second.x)


def test_what_does_not_do_is_refused(hoppers):
    with pytest.raises(ValueError, match=r"control family whose dynamics vary.*got steps = 100 and cheetah_vel-v1"):
        Dynamics(CheetahVel())
    with pytest.raises(ValueError, match=r"expected steps >= 2 .* got steps = 1"):
        Dynamics(steps=1)
    with pytest.raises(ValueError, match=r"dynamics-v1: expected at most steps = 60 shots, got 61; make steps larger"):
        hoppers.context(hoppers.sample(1, "train", seeded()), 61, seeded())
    with pytest.raises(ValueError, match=r"dynamics-v1: expected params \[B, 34\]"):
        hoppers.context(torch.zeros(2, 3), 5, seeded())
    with pytest.raises(ValueError, match=r"dynamics-v1: expected a split of train, test, ood; got 'val'"):
        hoppers.sample(1, "val", seeded())


@pytest.mark.gpu
def test_device(hoppers):
    params = hoppers.sample(3, "train", generator := torch.Generator("cuda").manual_seed(0))
    data = hoppers.context(params, 5, generator)
    assert all(tensor.device.type == "cuda" for tensor in (params, data.x, data.y, data.mask, hoppers.change(data.y)))
