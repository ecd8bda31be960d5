"""Hopper whose masses, inertias, frictions and dampings differ from task to task."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.tasks.bodies import HOPPER
from bayesmeta.tasks.mujoco import MujocoTaskEnv, task_array
from bayesmeta.tasks.multipliers import multiplied_fields, multiplier_names, sample_multipliers
from bayesmeta.tasks.references import zero_torque_returns
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Spec


@dataclass(frozen=True, kw_only=True)
class HopperParams:
    """``hopper_params-v1``: run forward with a body whose dynamics are hidden::

        r = v_x + 1 - 0.001 ||a||^2,    value = model value * base^u,    u ~ U(-3, 3) per element (train, test)

    34 multipliers: 4 masses, 12 inertias, 15 frictions, 3 dampings (base 1.5, of the dampings 1.3; see
    :mod:`bayesmeta.tasks.multipliers`); ``ood`` has every ``|u|`` in [3, 4]. ``v_x`` is the displacement of the root
    over a control step of 0.008 s. Terminates where the torso's height falls below 0.7, its angle leaves (-0.2, 0.2)
    rad, or any angle or velocity leaves (-100, 100). Observations: positions but x, and velocities clipped to
    [-10, 10] (11). ``threads`` simulator threads, 0 for all CPUs.

    This is a new family in the published one's form: the published tasks ran on a fork of MuJoCo 1.31 that nobody can
    install. The body is gymnasium's v5 model on MuJoCo 4; all constants that MuJoCo derives from the multiplied arrays
    are recomputed (``mj_setConst``); multipliers of zeros are left out. Tasks are drawn from the caller's generator,
    not from a fixed list of 40 and 10. Source: Rakelly et al. 2019, appendix A, and the code it uses.
    """

    horizon: int = 200
    threads: int = 2

    @property
    def spec(self) -> Spec:
        """A datum is ``(s, a) -> (r, s')``: only the dynamics tell the tasks apart."""
        return HOPPER.spec("hopper_params-v1", self.horizon, multiplier_names(HOPPER.xml), dynamics_vary=True)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Log-scale multipliers ``u``. Raises ValueError for an unknown split."""
        return sample_multipliers(n, self.spec.param_dim, is_ood(self.spec, split), generator)

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> MujocoTaskEnv:
        """The tasks as one vector environment. Raises ValueError unless ``params`` has a column per multiplier."""
        u = task_array(params, self.spec)

        def reward(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
            return velocity[:, 0] + 1.0 - 1e-3 * np.square(action).sum(1)

        fields = multiplied_fields(HOPPER.xml, u)
        return MujocoTaskEnv(
            HOPPER, reward, u, horizon=self.horizon, threads=self.threads, device=device, fields=fields
        )

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """``still``: simulated without torque, which makes the body fall. The best possible return is not known."""
        return {"still": zero_torque_returns(self.env(params)).to(params.device)}
