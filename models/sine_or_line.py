"""A function that is either a sinusoid or a line: which of the two is the first thing to infer."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.kinds import OneOfKinds
from bayesmeta.models.sinusoid import SinusoidModel, sinusoid
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class LineModel(TaskModel):
    """``y = slope x + intercept + eps``, ``eps ~ N(0, noise^2)``, with ``z = (slope, intercept)`` uniform on a box.

    ``x [B, N, 1]``, ``y [B, N, 1]``; ``noise`` is a standard deviation > 0. Both lie in ``[-limit, limit]``.
    """

    low: Tensor
    high: Tensor

    def __init__(self, limit: float = 3.0, *, noise: float) -> None:
        super().__init__()
        if not (noise > 0 and limit > 0):
            raise ValueError(f"LineModel: expected noise, a standard deviation, and limit > 0, got {noise} and {limit}")
        self.register_buffer("low", torch.full((2,), -limit))
        self.register_buffer("high", torch.full((2,), limit))
        self.noise = noise

    def prior(self, batch: int) -> Distribution:
        low, high = self.low.expand(batch, -1), self.high.expand(batch, -1)
        # Unvalidated: outside the box the log-density is -inf, not an error.
        return dist.Uniform(low, high, validate_args=False).to_event(1)

    def likelihood(self, z: Float[Tensor, "*S B 1 2"], data: Context) -> Distribution:
        return dist.Normal(line(z, data.x), self.noise).to_event(1)


class SineOrLineModel(TaskModel):
    """With equal odds the data are those of a :class:`SinusoidModel` or of a :class:`LineModel`.

    ``z = (is_line, first, second)``: 0, amplitude and phase, or 1, slope and intercept. ``noise`` is the standard
    deviation of both, > 0. The first coordinate is discrete: NUTS does not apply.
    """

    def __init__(self, *, noise: float) -> None:
        super().__init__()
        self.sine, self.line, self.noise = SinusoidModel(noise=noise), LineModel(noise=noise), noise

    def prior(self, batch: int) -> Distribution:
        return OneOfKinds(self.line.low.new_zeros(batch, 2), [self.sine.prior(batch), self.line.prior(batch)])

    def likelihood(self, z: Float[Tensor, "*S B 1 3"], data: Context) -> Distribution:
        return dist.Normal(sine_or_line(z, data.x), self.noise).to_event(1)


def line(z: Float[Tensor, "*S B 1 2"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "*S B N 1"]:
    """``slope x + intercept`` for ``z = (slope, intercept)``."""
    return z[..., :1] * x + z[..., 1:]


def sine_or_line(z: Float[Tensor, "*S B 1 3"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "*S B N 1"]:
    """The mean of a datum for ``z = (is_line, first, second)``."""
    return torch.where(z[..., :1] > 0.5, line(z[..., 1:], x), sinusoid(z[..., 1:], x))
