"""The single-task forms behind gymnasium's ids: which task they are on, and when it changes."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

import bayesmeta.tasks  # noqa: F401  registers the ids
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.tasks.single_task import SingleTaskEnv


def task_of(env: gymnasium.Env, **reset) -> list[float]:
    return env.reset(**reset)[1]["task"].tolist()


def test_given_task_is_kept():
    env = gymnasium.make("bayesmeta/PointGoal-v1", task=[0.3, 0.4])
    for seed in (0, 1, None):
        assert task_of(env, seed=seed) == pytest.approx([0.3, 0.4])
    obs, _ = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(np.array([1.0, -0.5]))
    assert reward == pytest.approx(-np.hypot(obs[0] - 0.3, obs[1] - 0.4), rel=1e-5)
    assert (type(reward), type(terminated), type(truncated), info) == (float, bool, bool, {})


def test_task_is_drawn_from_the_train_split_with_the_seed():
    env = gymnasium.make("bayesmeta/PointGoalSparse-v1")
    drawn = [task_of(env, seed=s) for s in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert task_of(env) == drawn[0], "the next episode of a trial must be on the same task"
    pool = PointGoal(sparse=True).sample(80, "train", torch.Generator().manual_seed(0))
    for task in drawn:
        assert (pool - torch.tensor(task)).abs().amax(1).min() < 1e-6


def test_task_and_start_are_unrelated():
    env = gymnasium.make("bayesmeta/PointGoal-v1")
    pairs = [env.reset(seed=s) for s in range(300)]
    starts, goals = np.array([obs for obs, _ in pairs]), np.array([info["task"] for _, info in pairs])
    assert abs(np.corrcoef(starts[:, 0], goals[:, 0])[0, 1]) < 5 / 300**0.5
    assert np.abs(goals).max() <= 1 and len(np.unique(goals[:, 0])) == 300


def test_task_is_changed_by_options():
    env = gymnasium.make("bayesmeta/PointGoal-v1", task=[0.0, 0.0])
    env.reset(seed=0)
    first, info = env.reset(options={"task": [0.5, -0.5]})
    assert info["task"].tolist() == [0.5, -0.5] and task_of(env, seed=3) == [0.5, -0.5]
    again, _ = env.reset(options={"task": [0.5, -0.5]})
    assert not np.array_equal(first, again), "every change of the task would begin with the same start"


def test_other_options_reach_the_family():
    env = gymnasium.make("bayesmeta/CheetahVel-v1", task=[1.0])
    state = {"qpos": np.zeros((1, 9)), "qvel": np.full((1, 9), 0.25)}
    obs, _ = env.reset(seed=0, options=state)
    assert (obs[:8] == 0).all() and (obs[8:17] == 0.25).all()
    with pytest.raises(ValueError, match="expected options with the shapes"):
        env.reset(options={"qpos": np.zeros(3)})


def test_horizon_and_variant():
    env = gymnasium.make("bayesmeta/PointGoalSparse-v1", horizon=3)
    obs, _ = env.reset(seed=0)
    assert (obs == 0).all()
    steps = [env.step(env.action_space.sample()) for _ in range(3)]
    assert [truncated for *_, truncated, _ in steps] == [False, False, True]
    assert all("training_reward" in info for *_, info in steps)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match=r"point_goal-v1: expected params \[B, 2\]"):
        gymnasium.make("bayesmeta/PointGoal-v1", task=[0.3])
    env = SingleTaskEnv(PointGoal())
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected actions \(1, 2\), got \(1, 3\)"):
        env.step(np.zeros(3))


def test_what_is_returned_is_the_callers():
    env = SingleTaskEnv(PointGoal(), [0.0, 0.0])
    obs, info = env.reset(seed=0)
    kept = obs.copy()
    obs += 1.0
    info["task"] += 1.0
    moved, *_ = env.step(np.zeros(2))
    assert np.array_equal(moved, kept) and task_of(env) == [0.0, 0.0]


def test_ids_are_there_after_a_light_import():
    code = (
        "import gymnasium, sys, bayesmeta.tasks\n"
        "print(*[i for i in gymnasium.registry if i.startswith('bayesmeta/')])\n"
        "print(*sys.modules)"
    )
    found, loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"bayesmeta/PointGoal-v1", "bayesmeta/CheetahVel-v1", "bayesmeta/HopperParams-v1"} <= set(found.split())
    assert not {"torch", "pyro", "mujoco"} & set(loaded.split())


def test_id_with_its_module_needs_no_import():
    code = "import gymnasium\nprint(gymnasium.make('bayesmeta.tasks:bayesmeta/PointGoal-v1', task=[0.0, 1.0]).spec.id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bayesmeta/PointGoal-v1"
