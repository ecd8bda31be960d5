"""HalfCheetah that must run at a hidden velocity."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.tasks.bodies import CHEETAH
from bayesmeta.tasks.mujoco import MujocoTaskEnv, task_array
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Spec


@dataclass(frozen=True, kw_only=True)
class CheetahVel:
    """``cheetah_vel-v1``: run forward at ``g`` m/s::

        r = -|v_x - g| - 0.05 ||a||^2,    g ~ U(0, 3) (train, test),  U(3, 4) (ood)

    ``v_x`` is the displacement of the root over a control step of 0.05 s. Observations are the 20 numbers of PEARL's
    code: positions but x, velocities, torso xyz (the last as MuJoCo reports it, before the last simulator step).
    Never terminates. ``threads`` simulator threads, 0 for all CPUs.

    Against the published variants: PEARL, VariBAD and AMAGO draw ``g`` from U(0, 3), the original MAML and garage
    from U(0, 2); PEARL fixes 100 train and 30 test goals by resetting numpy's global generator, here they are drawn
    from the caller's; the body is gymnasium's v5 model on MuJoCo 4, theirs mujoco-py's. Source: Rakelly et al. 2019,
    appendix A, and its released code.
    """

    horizon: int = 200
    threads: int = 2

    @property
    def spec(self) -> Spec:
        """A datum is ``(s, a) -> r``: the dynamics are the same in all tasks."""
        return CHEETAH.spec("cheetah_vel-v1", self.horizon, ("velocity",))

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        """Target velocities in m/s. Raises ValueError for an unknown split."""
        u = torch.rand(n, 1, generator=generator)
        return 3.0 + u if is_ood(self.spec, split) else 3.0 * u

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> MujocoTaskEnv:
        """The tasks as one vector environment. Raises ValueError unless ``params`` is ``[B, 1]``."""
        goals = task_array(params, self.spec)

        def reward(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
            return -np.abs(velocity[:, 0] - goals[:, 0]) - 0.05 * np.square(action).sum(1)

        return MujocoTaskEnv(CHEETAH, reward, goals, horizon=self.horizon, threads=self.threads, device=device)

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """``still``: a body that does not move, ``-horizon * g``; ``upper_bound``: every reward is at most 0."""
        goals = params[:, 0]
        return {"still": -self.horizon * goals, "upper_bound": torch.zeros_like(goals)}
