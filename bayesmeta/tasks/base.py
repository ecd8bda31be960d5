"""What every control family's environment is: one vector environment whose rows are tasks."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor


class TaskVectorEnv(gymnasium.vector.VectorEnv):
    """A ``gymnasium.vector.VectorEnv`` of ``B`` tasks in lockstep, without autoreset.

    Tensors in, tensors out: ``reset(seed=)`` returns ``obs [B, S] float32, info``; ``step(action [B, A])`` returns
    ``obs, reward [B] float32, terminated [B] bool, truncated [B] bool, info`` on ``device``. Actions are in [-1, 1] and
    are clipped to it. All rows start an episode together; a row that has terminated, or reached the horizon, keeps its
    last observation and gives zero reward until the next ``reset``. Autoreset is disabled because the dummy step of
    gymnasium's default would enter the context of multi-episode trials.

    ``reset(seed=None)`` continues the environment's own random stream; ``reset(seed=s)`` restarts it. No global random
    state is read or written.
    """

    def __init__(self, num_envs: int, obs_dim: int, action_dim: int, horizon: int, device: torch.device | str) -> None:
        self.num_envs = num_envs
        self.horizon = horizon
        self.device = torch.device(device)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)

    def checked_action(self, action: Any) -> Tensor:
        """The action as a clipped ``[B, A]`` float32 tensor on the device."""
        action = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        expected = self.action_space.shape
        if action.shape != expected:
            raise ValueError(
                f"{type(self).__name__}.step: expected actions {expected}, got {tuple(action.shape)}; "
                "give every task one action in [-1, 1], finished ones too"
            )
        return action.clamp(-1.0, 1.0)
