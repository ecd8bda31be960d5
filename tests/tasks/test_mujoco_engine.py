"""The contract of the vector environment: seeds, finished rows, shapes, and errors that say what to do."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from bayesmeta.guards import NonFiniteError
from bayesmeta.tasks.bodies import CHEETAH, HOPPER
from bayesmeta.tasks.cheetah_vel import CheetahVel
from bayesmeta.tasks.hopper_params import HopperParams
from bayesmeta.tasks.mujoco import MujocoTaskEnv
from bayesmeta.tasks.references import random_returns

FAILURE_RATE = 1e-4  # of every statistical test here


def still(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
    return np.zeros(len(action))


def cheetahs(n: int, **options: int) -> MujocoTaskEnv:
    return CheetahVel(**options).env(torch.linspace(0, 3, n).unsqueeze(1))


def test_shapes_types_and_the_time_limit() -> None:
    env = cheetahs(3, horizon=4)
    obs, info = env.reset(seed=0)
    assert obs.shape == (3, 20) and obs.dtype == torch.float32 and info == {}
    for t in range(1, 5):
        obs, reward, terminated, truncated, _ = env.step(torch.zeros(3, 6))
        assert reward.shape == (3,) and reward.dtype == torch.float32
        assert terminated.dtype == truncated.dtype == torch.bool and not terminated.any()
        assert truncated.tolist() == [t == 4] * 3


def test_the_same_seed_gives_the_same_episodes_and_a_new_one_new_episodes() -> None:
    first, second = cheetahs(4), cheetahs(4, threads=1)
    a, b = first.reset(seed=7)[0], second.reset(seed=7)[0]
    assert torch.equal(a, b)
    action = torch.linspace(-1, 1, 24).reshape(4, 6)
    for _ in range(20):
        left, right = first.step(action), second.step(action)
        assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
    again, also = first.reset()[0], second.reset()[0]
    assert torch.equal(again, also) and not torch.equal(again, a)
    assert torch.equal(first.reset(seed=7)[0], a)
    assert not torch.equal(first.reset(seed=8)[0], a)


def test_the_first_rows_of_a_batch_start_as_in_a_smaller_batch() -> None:
    assert torch.equal(cheetahs(5).reset(seed=3)[0][:2], cheetahs(2).reset(seed=3)[0])


def test_reset_noise_has_gymnasiums_distribution() -> None:
    """HalfCheetah: positions +-0.1 uniform, velocities 0.1 N(0, 1). Hopper: both +-0.005 uniform."""
    cheetah = MujocoTaskEnv(CHEETAH, still, np.zeros((2000, 1)), horizon=1).reset(seed=0)[0].double().numpy()
    hopper = MujocoTaskEnv(HOPPER, still, np.zeros((2000, 1)), horizon=1).reset(seed=0)[0].double().numpy()
    uniform, normal = stats.uniform(-1, 2), stats.norm()
    assert stats.kstest(cheetah[:, :8].ravel() / 0.1, uniform.cdf).pvalue > FAILURE_RATE
    assert stats.kstest(cheetah[:, 8:17].ravel() / 0.1, normal.cdf).pvalue > FAILURE_RATE
    assert stats.kstest(hopper[:, 5:].ravel() / 0.005, uniform.cdf).pvalue > FAILURE_RATE
    assert stats.kstest((hopper[:, 0] - 1.25) / 0.005, uniform.cdf).pvalue > FAILURE_RATE
    # Power: the two noises must not pass for each other, nor a scale that is 10 % off.
    assert stats.kstest(cheetah[:, 8:17].ravel() / 0.1 / stats.norm().std(), uniform.cdf).pvalue < FAILURE_RATE
    assert stats.kstest(cheetah[:, 8:17].ravel() / 0.11, normal.cdf).pvalue < FAILURE_RATE
    assert np.abs(np.corrcoef(cheetah[:, :17].T) - np.eye(17)).max() < 5 / np.sqrt(2000)


def test_a_fallen_row_freezes_and_the_others_go_on() -> None:
    family = HopperParams(horizon=120)
    env = family.env(family.sample(4, "train", torch.Generator().manual_seed(0)))
    last, _ = env.reset(seed=0)
    fallen = torch.zeros(4, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    seen, clock = set(), torch.zeros(4, dtype=torch.float64)
    for _ in range(120):
        obs, reward, terminated, truncated, _ = env.step(2.0 * torch.rand(4, 3, generator=generator) - 1.0)
        seen.add(int(fallen.sum()))
        assert torch.equal(obs[fallen], last[fallen]) and (reward[fallen] == 0).all()
        assert terminated[fallen].all() and not truncated[fallen].any()
        assert not (obs[~fallen] == last[~fallen]).all(1).any() and (reward[~fallen] != 0).all()
        now = torch.tensor([env.render_model_data(row)[1].time for row in range(4)], dtype=torch.float64)
        assert torch.equal(now > clock, ~fallen), "a fallen body is not simulated"
        clock = now
        last, fallen = obs, terminated
    assert len(seen) > 2 and fallen.all(), "the rows were meant to fall one after the other"


def test_stepping_past_the_end_changes_nothing() -> None:
    env = cheetahs(2, horizon=3)
    env.reset(seed=0)
    for _ in range(3):
        last = env.step(torch.ones(2, 6))
    beyond = env.step(-torch.ones(2, 6))
    assert torch.equal(beyond[0], last[0]) and (beyond[1] == 0).all() and beyond[3].all()


def test_returned_tensors_are_not_overwritten_by_later_steps() -> None:
    env = cheetahs(2)
    env.reset(seed=0)
    kept = env.step(torch.ones(2, 6))
    copies = [t.clone() for t in kept[:4]]
    env.step(-torch.ones(2, 6))
    assert all(torch.equal(t, c) for t, c in zip(kept[:4], copies, strict=True))


def test_actions_are_clipped_to_the_unit_box() -> None:
    env = cheetahs(2)
    env.reset(seed=0)
    beyond = env.step(torch.full((2, 6), 3.0))
    env.reset(seed=0)
    edge = env.step(torch.ones(2, 6))
    assert torch.equal(beyond[0], edge[0]) and torch.equal(beyond[1], edge[1])


def test_no_global_random_state_is_touched() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # beartype draws from Python's own
    family = HopperParams(horizon=5)
    env = family.env(family.sample(3, "train", torch.Generator().manual_seed(0)))
    env.reset()
    env.reset(seed=1)
    random_returns(env, seed=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])


def test_errors_say_what_was_expected_what_came_and_what_to_do() -> None:
    env = cheetahs(2)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"expected options with the shapes .*\(2, 9\).*got .*\(2, 8\)"):
        env.reset(options={"qpos": np.zeros((2, 8)), "qvel": np.zeros((2, 9))})
    env.reset(seed=0, options={})
    with pytest.raises(ValueError, match=r"expected actions \(2, 6\), got \(2, 5\)"):
        env.step(torch.zeros(2, 5))
    with pytest.raises(NonFiniteError, match=r"`action` \(2, 6\) holds 1 of 12 values .* at index \(1, 1\) \(nan\)"):
        env.step(torch.tensor([[0.0] * 6, [0.0, float("nan"), 0.0, 0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"cheetah_vel-v1: expected params \[B, 1\].*got \(2, 3\); pass what sample"):
        CheetahVel().env(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"hopper_params-v1: expected params \[B, 34\].*got \(0, 34\)"):
        HopperParams().env(torch.zeros(0, 34))
    with pytest.raises(ValueError, match=r"expected finite params, got \[inf\]"):
        CheetahVel().env(torch.tensor([[1.0], [float("inf")]]))


def test_an_unstable_simulation_names_the_row_and_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo alone would put the body back to its initial state and go on."""
    monkeypatch.chdir(tmp_path)  # MuJoCo logs the instability into the working directory
    env = cheetahs(4)
    qpos, qvel = np.zeros((4, 9)), np.zeros((4, 9))
    qpos[2, 3] = 1e9
    env.reset(options={"qpos": qpos, "qvel": qvel})
    with pytest.raises(NonFiniteError, match=r"`next_observation` \(4, 20\) holds 20 of 80") as caught:
        env.step(torch.zeros(4, 6))
    (note,) = caught.value.__notes__
    assert re.search(r"mjWARN_BADQACC in 1 row.*at step 1 \(row 2: params \[2.0\]\); take these tasks out", note)
    assert torch.equal(caught.value.tensors["task_parameters"][:, 0], torch.tensor([0.0, 1.0, 2.0, 3.0]).double())
    env.reset(seed=0)
    assert torch.isfinite(env.step(torch.zeros(4, 6))[0]).all(), "a reset makes the environment usable again"


@pytest.mark.gpu
def test_tensors_live_on_the_device_of_the_caller() -> None:
    params = torch.tensor([[0.5], [2.0]])
    family = CheetahVel(horizon=10)
    host, device = family.env(params), family.env(params.cuda(), device="cuda")
    a, b = host.reset(seed=0)[0], device.reset(seed=0)[0]
    assert b.is_cuda and torch.equal(a, b.cpu())
    for _ in range(10):
        left, right = host.step(torch.ones(2, 6)), device.step(torch.ones(2, 6, device="cuda"))
        assert all(r.is_cuda and torch.equal(le, r.cpu()) for le, r in zip(left[:4], right[:4], strict=True))
