"""Humanoid that must run in a hidden direction."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.tasks.bodies import HUMANOID
from bayesmeta.tasks.mujoco import MujocoTaskEnv, checked_inside, task_array
from bayesmeta.tasks.references import zero_torque_returns
from bayesmeta.types import Spec


@dataclass(frozen=True, kw_only=True)
class HumanoidDir:
    """``humanoid_dir-v1``: run in the direction ``g``::

        r = 1.25 v_xy . (cos g, sin g) - 0.1 ||0.4 a||^2 + 5,    g ~ U(0, 2 pi) (train, test)

    ``v_xy`` is the displacement of the centre of mass over a control step of 0.015 s; 1.25 is the published
    ``0.25 * displacement / (simulator step)``, five of which make a control step. The motors take [-0.4, 0.4], so an
    action in [-1, 1] is scaled by 0.4, and the control cost is that of the motors. Terminates where the torso's height
    leaves (1, 2). Observations: positions but x and y, velocities, body inertias and velocities, joint torques (270).
    ``threads`` simulator threads, 0 for all CPUs. The directions cover the circle, hence there is no ``ood``.

    Against the published variants: PEARL's 376 observations hold also 84 contact forces, which a batch step does not
    compute, and 22 entries that are always zero; the contact cost (at most 10 per step) is left out with them; the body
    is gymnasium's v5 model on MuJoCo 4, theirs mujoco-py's. Source: Rakelly et al. 2019, appendix A, and its released
    code.
    """

    horizon: int = 200
    threads: int = 2

    @property
    def spec(self) -> Spec:
        """A datum is ``(s, a) -> r``: the dynamics are the same in all tasks."""
        return HUMANOID.spec("humanoid_dir-v1", self.horizon, ("angle",))

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        """Angles in radians. Raises ValueError for an unknown split and for ``ood``."""
        checked_inside(self.spec, split, "its directions already cover the circle")
        return 2.0 * math.pi * torch.rand(n, 1, generator=generator)

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> MujocoTaskEnv:
        """The tasks as one vector environment. Raises ValueError unless ``params`` is ``[B, 1]``."""
        angles = task_array(params, self.spec)
        directions = np.concatenate([np.cos(angles), np.sin(angles)], 1)

        def reward(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
            return 1.25 * (velocity * directions).sum(1) - 0.1 * np.square(0.4 * action).sum(1) + 5.0

        return MujocoTaskEnv(HUMANOID, reward, angles, horizon=self.horizon, threads=self.threads, device=device)

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """``still``: simulated without torque, which makes the body fall. The best possible return is not known."""
        return {"still": zero_torque_returns(self.env(params)).to(params.device)}
