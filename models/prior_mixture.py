"""A network whose weights have one of several learned Gaussian priors: what a hyper-posterior of particles predicts."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from bayesmeta.models.network_model import NetworkModel, mixes_rows
from bayesmeta.models.outputs import Output
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class EqualMixture(TorchDistribution):
    """One of ``K`` diagonal Gaussians with equal odds: ``loc [K, D]``, ``scale [K, D]`` > 0, event ``[D]``."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, loc: Float[Tensor, "K D"], scale: Float[Tensor, "K D"], batch_shape: Sequence[int] = ()) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(torch.Size(batch_shape), loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "EqualMixture":
        return EqualMixture(self.loc, self.scale, batch_shape)

    @property
    def mean(self) -> Tensor:
        return self.loc.mean(0).expand(*self.batch_shape, -1)

    @property
    def variance(self) -> Tensor:
        spread = self.scale.square().mean(0) + self.loc.var(0, correction=0)
        return spread.expand(*self.batch_shape, -1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        index = torch.randint(len(self.loc), shape[:-1], device=self.loc.device)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc[index] + self.scale[index] * noise

    def log_prob(self, value: Tensor) -> Tensor:
        # The squares as products: a mixture of many Gaussians over many weights would be too large to write out.
        precision = self.scale.square().reciprocal()
        square = value.square() @ precision.mT - 2.0 * value @ (self.loc * precision).mT
        square = square + (self.loc.square() * precision).sum(-1)
        constant = self.scale.log().sum(-1) + 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)
        return (-0.5 * square - constant).logsumexp(-1) - math.log(len(self.loc))


class PriorMixtureModel(TaskModel):
    r"""``z ~ 1/K \sum_k N(mu_k, diag(sigma_k^2))`` are weights, ``y_n ~ output(f_z(x_n))``.

    ``priors [K, 2 D]`` are ``(mu_k, log sigma_k)``, a parameter: the particles of a hyper-posterior, of which the
    mixture is the predictive prior. The network's own parameters are no part of the model and are frozen.

    Raises ValueError for a network that normalises over rows or cannot be differentiated twice.
    """

    def __init__(self, network: nn.Module, output: Output, priors: Float[Tensor, "K M"]) -> None:
        super().__init__()
        self.weights_model = NetworkModel(network.requires_grad_(False), output)
        if mixes_rows(self.weights_model):
            raise ValueError(
                "PriorMixtureModel: expected a network that predicts each datum by itself, got one with BatchNorm; use "
                "network.norm=false"
            )
        dim = sum(self.weights_model.sizes)
        if priors.shape[-1] != 2 * dim:
            raise ValueError(
                f"PriorMixtureModel: expected priors [K, {2 * dim}], mean and log standard deviation of {dim} weights, "
                f"got {tuple(priors.shape)}"
            )
        self.priors = nn.Parameter(priors.clone())

    def prior(self, batch: int) -> Distribution:
        mean, log_scale = self.priors.chunk(2, -1)
        return EqualMixture(mean, log_scale.exp(), (batch,))

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return self.weights_model.likelihood(z, data)
