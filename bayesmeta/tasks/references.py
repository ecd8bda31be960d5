"""What policies that know nothing are worth on a batch of tasks: the lower anchors of every result."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.tasks.base import TaskVectorEnv


def episode_returns(env: TaskVectorEnv, act: Callable[[Tensor], Tensor], seed: int | None = None) -> Float[Tensor, "B"]:
    """The return of one episode of every row under ``act(obs [B, S]) -> action [B, A]``."""
    obs, _ = env.reset(seed=seed)
    total = torch.zeros(env.num_envs, device=env.device)
    over = torch.zeros(env.num_envs, dtype=torch.bool)
    while not bool(over.all()):
        obs, reward, terminated, truncated, _ = env.step(act(obs))
        total = total + reward
        over = terminated | truncated
    return total


def zero_torque_returns(env: TaskVectorEnv, episodes: int = 4) -> Float[Tensor, "B"]:
    """Mean return of a limp body over the first ``episodes`` starts of seed 0.

    This is what doing nothing is worth to a body that falls over without torque.
    """
    action = torch.zeros(_action_shape(env), device=env.device)
    returns = [episode_returns(env, lambda obs: action, seed=0 if i == 0 else None) for i in range(episodes)]
    return torch.stack(returns).mean(0)


def random_returns(env: TaskVectorEnv, seed: int) -> Float[Tensor, "B"]:
    """The return of one episode of every row under actions uniform on [-1, 1]; ``seed`` draws actions and starts."""
    generator = torch.Generator().manual_seed(seed)
    return episode_returns(env, lambda obs: 2.0 * torch.rand(_action_shape(env), generator=generator) - 1.0, seed)


def _action_shape(env: TaskVectorEnv) -> tuple[int, ...]:
    shape = env.action_space.shape
    assert shape is not None  # a Box always has one
    return shape
