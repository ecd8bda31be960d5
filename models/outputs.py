"""What a network's output says of a target: the likelihoods that networks are given."""

import math

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.types import Spec


class GaussianOutput(nn.Module):
    """``y ~ N(output, noise^2)``, one ``noise`` for all coordinates and data: a standard deviation > 0.

    With ``learn`` its logarithm is a parameter. ``noise = sqrt(1/2)`` makes the negative log-likelihood the squared
    error, up to a constant.
    """

    def __init__(self, y_dim: int, *, noise: float = 1.0, learn: bool = False) -> None:
        super().__init__()
        if not noise > 0:
            raise ValueError(f"GaussianOutput: noise is a standard deviation, expected > 0, got {noise}")
        self.width = y_dim
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise)), requires_grad=learn)

    def forward(self, out: Float[Tensor, "*b O"]) -> Distribution:
        return dist.Normal(out, self.log_noise.exp(), validate_args=False).to_event(1)


class SpreadOutput(nn.Module):
    """``y ~ N(m, s^2)`` with both from the network: ``s = least + softplus(raw)``, in units of the target.

    Networks with this output have two numbers per coordinate. ``least`` > 0 is the smallest noise that can be said;
    0.1 is the published neural process's, which cannot be calibrated where the truth is less noisy.
    """

    def __init__(self, y_dim: int, *, least: float = 1e-3) -> None:
        super().__init__()
        if not least > 0:
            raise ValueError(f"SpreadOutput: least is the smallest standard deviation, expected > 0, got {least}")
        self.width, self.least = 2 * y_dim, least

    def forward(self, out: Float[Tensor, "*b O"]) -> Distribution:
        mean, raw = out.chunk(2, -1)
        return dist.Normal(mean, self.least + F.softplus(raw), validate_args=False).to_event(1)


class ClassOutput(nn.Module):
    """``y`` is the one-hot code of a class, and the outputs are the classes' logits."""

    def __init__(self, y_dim: int) -> None:
        super().__init__()
        self.width = y_dim

    def forward(self, out: Float[Tensor, "*b O"]) -> Distribution:
        return dist.OneHotCategorical(logits=out, validate_args=False)


Output = GaussianOutput | SpreadOutput | ClassOutput


def output_for(spec: Spec, *, noise: float = 1.0, learn_noise: bool = False) -> Output:
    """The likelihood that fits a family's targets: classes, or numbers with Gaussian noise."""
    return ClassOutput(spec.y_dim) if spec.classes else GaussianOutput(spec.y_dim, noise=noise, learn=learn_noise)
