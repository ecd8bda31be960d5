"""The yardstick of the collection benchmark: one environment, one step at a time, as published PEARL samples.

NumPy in and out of the environment, a torch policy on a single row, one latent per episode, no posterior. Own code.
"""

from collections.abc import Callable
from typing import Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from benchmarks._looped_pearl import LOG_STD_MAX, LOG_STD_MIN, mlp

Path = dict[str, np.ndarray]


class OneTask(Protocol):
    """An environment of one task."""

    def reset(self) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]: ...


class PointRobot:
    """Dense point-robot: reward is minus the distance to the goal."""

    obs_dim, action_dim, horizon = 2, 2, 20

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._goal = generator.uniform(-1.0, 1.0, 2)

    def reset(self) -> np.ndarray:
        self._state = self._generator.uniform(-1.0, 1.0, 2)
        return self._state.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        self._state = self._state + 0.1 * np.clip(action, -1.0, 1.0)
        x, y = self._state - self._goal
        return self._state.copy(), -float(np.sqrt(x**2 + y**2))


class Cheetah:
    """HalfCheetah at a target velocity, on gymnasium's own environment without its wrappers."""

    obs_dim, action_dim, horizon = 20, 6, 200

    def __init__(self, generator: np.random.Generator) -> None:
        self._env = gymnasium.make("HalfCheetah-v5").unwrapped
        self._goal = generator.uniform(0.0, 3.0)

    def reset(self) -> np.ndarray:
        return self._observation(self._env.reset()[0])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        obs, _, _, _, info = self._env.step(action)
        reward = -abs(info["x_velocity"] - self._goal) - 0.05 * float(np.square(action).sum())
        return self._observation(obs), reward

    def _observation(self, obs: np.ndarray) -> np.ndarray:
        return np.concatenate([obs, self._env.data.xpos[1]])  # type: ignore[attr-defined]


class LoopedSampler:
    """Episodes of ``tasks`` one after the other."""

    def __init__(
        self, task: Callable[[np.random.Generator], OneTask], obs_dim: int, action_dim: int, latent_dim: int, width: int
    ) -> None:
        self._env = task(np.random.default_rng(0))
        self._policy = mlp([obs_dim + latent_dim, *[width] * 3, 2 * action_dim])
        self._latent_dim = latent_dim

    @torch.no_grad()
    def episode(self, horizon: int) -> Path:
        """One episode of ``horizon`` steps."""
        z = torch.randn(1, self._latent_dim)
        columns: dict[str, list] = {"obs": [], "action": [], "reward": [], "next_obs": [], "terminal": []}
        obs = self._env.reset()
        for _ in range(horizon):
            action = act(self._policy, obs, z)
            next_obs, reward = self._env.step(action)
            for name, value in zip(columns, (obs, action, reward, next_obs, False), strict=True):
                columns[name].append(value)
            obs = next_obs
        return {name: np.array(values) for name, values in columns.items()}


def act(policy: nn.Module, obs: np.ndarray, z: Tensor) -> np.ndarray:
    """A tanh-Gaussian action for one observation."""
    row = torch.cat([torch.from_numpy(obs[None]).float(), z], 1)
    loc, log_std = policy(row).chunk(2, 1)
    return Normal(loc, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()).sample().tanh().numpy()[0]
