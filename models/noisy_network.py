"""A network whose noise and whose weights' spread belong to the task and are inferred with the weights."""

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Gamma, constraints

from bayesmeta.models.network_model import NetworkModel, mixes_rows
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class WeightsAndPrecisions(TorchDistribution):
    r"""``gamma ~ Gamma(noise)``, ``lambda ~ Gamma(spread)``, ``w ~ N(0, I / lambda)``; ``(w, log gamma, log lambda)``.

    Event ``[D + 2]``; ``noise`` and ``spread`` are shape and rate, both > 0, of shape ``[2]``. The density is that of
    the logarithms, ``p(log gamma) = Gamma(gamma) gamma``, so that the event ranges over all of R^(D+2).
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, dim: int, noise: Float[Tensor, "2"], spread: Float[Tensor, "2"], batch_shape: Sequence[int] = ()
    ) -> None:
        self.dim, self.noise, self.spread = dim, noise, spread
        super().__init__(torch.Size(batch_shape), torch.Size((dim + 2,)), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "WeightsAndPrecisions":
        return WeightsAndPrecisions(self.dim, self.noise, self.spread, batch_shape)

    @property
    def mean(self) -> Tensor:
        logs = [torch.digamma(shape) - rate.log() for shape, rate in (self.noise, self.spread)]
        return self._event(self.noise.new_zeros(()), logs)

    @property
    def variance(self) -> Tensor:
        """Of the weights infinite where it does not exist, for a shape of ``lambda`` of at most 1."""
        shape, rate = self.spread
        weights = rate / (shape - 1.0).clamp_min(0.0)
        return self._event(weights, [torch.polygamma(1, self.noise[0]), torch.polygamma(1, shape)])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        logs = [Gamma(a, b, validate_args=False).rsample(shape).log() for a, b in (self.noise, self.spread)]
        weights = torch.randn(*shape, self.dim, dtype=self.noise.dtype, device=self.noise.device)
        return torch.cat([weights * (-0.5 * logs[1]).exp().unsqueeze(-1), torch.stack(logs, -1)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        weights, logs = value[..., : self.dim], value[..., self.dim :].unbind(-1)
        square = weights.square().sum(-1)
        normal = 0.5 * (self.dim * (logs[1] - math.log(2 * math.pi)) - logs[1].exp() * square)
        return normal + sum(_log_gamma(log, *law) for log, law in zip(logs, (self.noise, self.spread), strict=True))

    def _event(self, weights: Tensor, logs: list[Tensor]) -> Tensor:
        return torch.cat([weights.expand(self.dim), torch.stack(logs)]).expand(*self.batch_shape, -1)


def _log_gamma(log: Tensor, shape: Tensor, rate: Tensor) -> Tensor:
    """The log density of the logarithm of what is ``Gamma(shape, rate)``."""
    return shape * (rate.log() + log) - torch.lgamma(shape) - rate * log.exp()


class NoisyNetworkModel(TaskModel):
    r"""``z = (w, log gamma, log lambda)``: ``y_n ~ N(f_w(x_n), 1 / gamma)`` and ``w ~ N(0, I / lambda)``.

    The model of BMAML for numbers (Yoon et al. 2018, section 5.1): each task has its own noise precision ``gamma`` and
    weight precision ``lambda`` with Gamma priors of shape and rate ``noise`` and ``spread``. The network's own
    parameters are no part of it and are frozen; ``weights`` is ``D``, the number of those that ``z`` begins with.

    Raises ValueError for a network that normalises over rows or cannot be differentiated twice.
    """

    noise: Tensor
    spread: Tensor

    def __init__(
        self,
        network: nn.Module,
        y_dim: int,
        *,
        noise: tuple[float, float] = (2.0, 0.2),
        spread: tuple[float, float] = (2.0, 2.0),
    ) -> None:
        super().__init__()
        if not min(*noise, *spread) > 0:
            raise ValueError(f"NoisyNetworkModel: expected shapes and rates > 0, got {noise} and {spread}")
        self.mean_model = NetworkModel(network.requires_grad_(False), GaussianOutput(y_dim))
        if mixes_rows(self.mean_model):
            raise ValueError(
                "NoisyNetworkModel: expected a network that predicts each datum by itself, got one with BatchNorm; use "
                "network.norm=false, or a NetworkModel, whose noise is no part of the latent"
            )
        self.weights = sum(self.mean_model.sizes)
        dtype = next(network.parameters()).dtype
        self.register_buffer("noise", torch.tensor(noise, dtype=dtype))
        self.register_buffer("spread", torch.tensor(spread, dtype=dtype))

    def prior(self, batch: int) -> Distribution:
        return WeightsAndPrecisions(self.weights, self.noise, self.spread, (batch,))

    def likelihood(self, z: Float[Tensor, "*S B 1 M"], data: Context) -> Distribution:
        scale = (-0.5 * z[..., self.weights, None]).exp()
        return dist.Normal(
            self.mean_model.outputs(z[..., : self.weights], data.x), scale, validate_args=False
        ).to_event(1)
