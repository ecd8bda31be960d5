"""Beliefs: frozen tensors, each with a posterior over the task latent."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.distributions import Cells


@dataclass(frozen=True)
class DiagonalGaussian:
    """Diagonal Gaussian in natural parameters, so that evidence adds.

    ``information [B, D]`` is precision times mean, ``precision [B, D]`` > 0.
    """

    information: Float[Tensor, "B D"]
    precision: Float[Tensor, "B D"]

    @property
    def posterior(self) -> Distribution:
        variance = self.precision.reciprocal()
        return dist.Normal(self.information * variance, variance.sqrt(), validate_args=False).to_event(1)


@dataclass(frozen=True)
class FullGaussian:
    """Gaussian with a full precision matrix in natural parameters.

    ``information [B, D]`` is precision times mean, ``precision [B, D, D]`` symmetric positive definite.
    """

    information: Float[Tensor, "B D"]
    precision: Float[Tensor, "B D D"]

    @property
    def posterior(self) -> Distribution:
        mean = torch.cholesky_solve(self.information.unsqueeze(-1), torch.linalg.cholesky(self.precision)).squeeze(-1)
        return dist.MultivariateNormal(mean, precision_matrix=self.precision, validate_args=False)


@dataclass(frozen=True)
class Beta:
    """Independent Beta beliefs, one per latent dimension: ``alpha [B, D]``, ``beta [B, D]`` > 0."""

    alpha: Float[Tensor, "B D"]
    beta: Float[Tensor, "B D"]

    @property
    def posterior(self) -> Distribution:
        return dist.Beta(self.alpha, self.beta).to_event(1)


@dataclass(frozen=True)
class Weighted:
    """Finitely many hypotheses or particles with log weights.

    ``points [B, G, D]``, ``log_weights [B, G]`` (any constant may be added). ``cell [D]`` is the side of the box around
    each point over which its mass is spread: 0 for true point masses, the spacing for a regular grid.
    """

    points: Float[Tensor, "B G D"]
    log_weights: Float[Tensor, "B G"]
    cell: Float[Tensor, "D"]

    @property
    def posterior(self) -> Distribution:
        return Cells(self.points, self.log_weights, self.cell)


@dataclass(frozen=True)
class Point:
    """All mass on one value: ``z [B, D]``."""

    z: Float[Tensor, "B D"]

    @property
    def posterior(self) -> Distribution:
        return dist.Delta(self.z, event_dim=1)
