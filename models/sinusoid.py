"""A sinusoid with unknown amplitude and phase: nonlinear, multi-modal for few data, and exact on a grid."""

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class SinusoidModel(TaskModel):
    """``y = a sin(x - phi) + eps``, ``eps ~ N(0, noise^2)``, with ``z = (a, phi)`` uniform on a box.

    ``x [B, N, 1]`` in radians, ``y [B, N, 1]``; ``noise`` is a standard deviation > 0. The default box,
    ``a ~ U[0.1, 5]`` and ``phi ~ U[0, pi]``, is that of Finn, Abbeel and Levine 2017 (section 5.1).
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, math.pi),
        *,
        noise: float,
    ) -> None:
        super().__init__()
        if not noise > 0:
            raise ValueError(f"SinusoidModel: noise is a standard deviation, expected > 0, got {noise}")
        for name, (low, high) in (("amplitude", amplitude), ("phase", phase)):
            if not low < high:
                raise ValueError(f"SinusoidModel: expected {name} = (low, high) with low < high, got {(low, high)}")
        self.register_buffer("low", torch.tensor([amplitude[0], phase[0]]))
        self.register_buffer("high", torch.tensor([amplitude[1], phase[1]]))
        self.noise = noise

    def prior(self, batch: int) -> Distribution:
        low, high = self.low.expand(batch, -1), self.high.expand(batch, -1)
        # Unvalidated: outside the box the log-density is -inf, not an error.
        return dist.Uniform(low, high, validate_args=False).to_event(1)

    def likelihood(self, z: Float[Tensor, "*S B 1 2"], data: Context) -> Distribution:
        return dist.Normal(sinusoid(z, data.x), self.noise).to_event(1)


def sinusoid(z: Float[Tensor, "*S B 1 2"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "*S B N 1"]:
    """``a sin(x - phi)`` for ``z = (a, phi)``: the mean of a datum."""
    return z[..., :1] * (x - z[..., 1:]).sin()
