"""A sinusoid on a sloping line: two of its four parameters are linear."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.concatenated import Concatenated
from bayesmeta.models.partly_linear import PartlyLinearModel

FREQUENCY = 1.5  # radians per unit of x


class TiltedSinusoidModel(PartlyLinearModel):
    """``y = a sin(1.5 (x - x_shift)) + y_shift + slope x + eps``, ``z = (a, x_shift, y_shift, slope)``.

    ``a ~ U[0.7, 1.3]``, ``x_shift ~ N(0, 0.1^2)``, ``y_shift ~ N(5, 0.1^2)``, ``slope ~ N(0.5, 0.2^2)``, ``eps ~ N(0,
    noise^2)``: the environment of Rothfuss et al. 2021. ``x [B, N, 1]``, ``y [B, N, 1]``; ``noise`` > 0.
    """

    amplitude: Tensor
    shift_scale: Tensor

    def __init__(self, *, noise: float) -> None:
        super().__init__(torch.tensor([5.0, 0.5]), torch.tensor([0.1, 0.2]), noise)
        self.register_buffer("amplitude", torch.tensor([0.7, 1.3]))
        self.register_buffer("shift_scale", torch.tensor([0.1]))

    def outer(self, batch: int) -> Distribution:
        low, high = (side.expand(batch, 1) for side in self.amplitude)
        scale = self.shift_scale.expand(batch, 1)
        shift = dist.Normal(torch.zeros_like(scale), scale, validate_args=False)
        # Unvalidated: outside the box the log-density is -inf, not an error.
        return Concatenated([dist.Uniform(low, high, validate_args=False).to_event(1), shift.to_event(1)])

    def curve(self, u: Float[Tensor, "*S B n 2"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "*S B N 1"]:
        return u[..., :1] * (FREQUENCY * (x - u[..., 1:])).sin()

    def basis(self, x: Float[Tensor, "B N 1"]) -> Float[Tensor, "B N 2"]:
        return torch.cat([torch.ones_like(x), x], -1)
