"""HalfCheetah that must run forward or backward."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.tasks.bodies import CHEETAH
from bayesmeta.tasks.mujoco import MujocoTaskEnv, checked_inside, task_array
from bayesmeta.types import Spec


@dataclass(frozen=True, kw_only=True)
class CheetahDir:
    """``cheetah_dir-v1``: run in direction ``d``::

        r = d v_x - 0.05 ||a||^2,    d in {-1, +1} (train and test: the same two tasks)

    ``v_x`` is the displacement of the root over a control step of 0.05 s. Observations are the 20 numbers of PEARL's
    code: positions but x, velocities, torso xyz (the last as MuJoCo reports it, before the last simulator step).
    Never terminates. ``threads`` simulator threads, 0 for all CPUs. There is no third direction, hence no ``ood``.

    Against the published variants: the body is gymnasium's v5 model on MuJoCo 4, theirs mujoco-py's. Source: Rakelly
    et al. 2019, appendix A, and its released code.
    """

    horizon: int = 200
    threads: int = 2

    @property
    def spec(self) -> Spec:
        """A datum is ``(s, a) -> r``: the dynamics are the same in all tasks."""
        return CHEETAH.spec("cheetah_dir-v1", self.horizon, ("direction",))

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        """Directions, every pair holding both. Raises ValueError for an unknown split and for ``ood``."""
        checked_inside(self.spec, split, "both of its directions are in the training set")
        first = 1.0 - 2.0 * torch.randint(2, ((n + 1) // 2, 1), generator=generator)
        return (first * torch.tensor([1.0, -1.0])).reshape(-1, 1)[:n]

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> MujocoTaskEnv:
        """The tasks as one vector environment. Raises ValueError unless ``params`` is ``[B, 1]``."""
        directions = task_array(params, self.spec)

        def reward(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
            return directions[:, 0] * velocity[:, 0] - 0.05 * np.square(action).sum(1)

        return MujocoTaskEnv(CHEETAH, reward, directions, horizon=self.horizon, threads=self.threads, device=device)

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """``still``: a body that does not move, 0. The best possible return is not known."""
        return {"still": torch.zeros_like(params[:, 0])}
