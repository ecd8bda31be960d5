"""Ant that must run in a hidden direction."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.tasks.bodies import ANT
from bayesmeta.tasks.mujoco import MujocoTaskEnv, checked_inside, task_array
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Spec


@dataclass(frozen=True, kw_only=True)
class AntDir:
    """``ant_dir-v1``: run in the direction ``g``::

        r = v_xy . (cos g, sin g) - 0.5 ||a||^2 + 1,    g ~ U(0, 2 pi) (train, test)

    ``v_xy`` is the displacement of the torso over a control step of 0.05 s. Terminates where the torso's height leaves
    [0.2, 1]. Observations: positions but x and y, and velocities (27). ``threads`` simulator threads, 0 for all CPUs.

    ``forward_backward`` is the published two-task version (``ant_dir_forward_backward-v1``): ``g`` in {0, pi}, and
    every pair of sampled tasks holds both. Its ``ood`` directions are sideways, within 45 degrees of +-pi/2. The full
    circle leaves no direction out, hence has no ``ood``.

    Against the published variants: the contact cost (at most 0.042 per step) is left out because a batch step does not
    compute contact forces; the body is gymnasium's v5 model on MuJoCo 4, whose fourth-order integrator differs on the
    free joint, theirs mujoco-py's. PEARL's released configuration trains and tests on two random directions; VariBAD's
    ``AntDir`` uses +-1 as angles in radians, about 115 degrees apart, and is not comparable. Source: Rakelly et al.
    2019, appendix A, and its released code.
    """

    forward_backward: bool = False
    horizon: int = 200
    threads: int = 2

    @property
    def spec(self) -> Spec:
        """A datum is ``(s, a) -> r``: the dynamics are the same in all tasks."""
        name = "ant_dir_forward_backward-v1" if self.forward_backward else "ant_dir-v1"
        return ANT.spec(name, self.horizon, ("angle",))

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        """Angles in radians. Raises ValueError for an unknown split, and for ``ood`` on the full circle."""
        if not self.forward_backward:
            checked_inside(self.spec, split, "its directions already cover the circle")
            return 2.0 * math.pi * torch.rand(n, 1, generator=generator)
        if is_ood(self.spec, split):
            side = torch.randint(2, (n, 1), generator=generator)
            return math.pi * (side + 0.25 + 0.5 * torch.rand(n, 1, generator=generator))
        first = torch.randint(2, ((n + 1) // 2, 1), generator=generator)
        return math.pi * torch.cat([first, 1 - first], 1).reshape(-1, 1)[:n].float()

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> MujocoTaskEnv:
        """The tasks as one vector environment. Raises ValueError unless ``params`` is ``[B, 1]``."""
        angles = task_array(params, self.spec)
        directions = np.concatenate([np.cos(angles), np.sin(angles)], 1)

        def reward(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
            return (velocity * directions).sum(1) - 0.5 * np.square(action).sum(1) + 1.0

        return MujocoTaskEnv(ANT, reward, angles, horizon=self.horizon, threads=self.threads, device=device)

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """``still``: an ant that stands, 1 per step. The best possible return is not known."""
        return {"still": torch.full_like(params[:, 0], float(self.horizon))}
