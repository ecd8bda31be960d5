"""Beliefs: frozen tensors, each with a posterior over the task latent."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.cells import Cells


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
class FactorsOnly:
    """The published PEARL product: evidence without the prior, read as N(0, I) while there is none.

    ``information [B, D]``, ``precision [B, D]`` >= 0; a precision of exactly 0 means no data yet.
    """

    information: Float[Tensor, "B D"]
    precision: Float[Tensor, "B D"]

    @property
    def posterior(self) -> Distribution:
        precision = torch.where(self.precision > 0, self.precision, torch.ones_like(self.precision))
        return DiagonalGaussian(self.information, precision).posterior


@dataclass(frozen=True)
class FullGaussian:
    """Gaussian with a full precision matrix in natural parameters.

    ``information [B, D]`` is precision times mean, ``precision [B, D, D]`` symmetric positive definite.
    """

    information: Float[Tensor, "B D"]
    precision: Float[Tensor, "B D D"]

    @property
    def posterior(self) -> Distribution:
        # The covariance's Cholesky factor from one of the precision's, read backwards: P = U U^T with U upper
        # triangular, so that cov = U^-T U^-1 with U^-T lower triangular.
        upper = torch.linalg.cholesky(self.precision.flip(-2, -1)).flip(-2, -1)
        eye = torch.eye(self.precision.shape[-1], dtype=upper.dtype, device=upper.device)
        scale_tril = torch.linalg.solve_triangular(upper, eye, upper=True).mT
        mean = (scale_tril @ (scale_tril.mT @ self.information.unsqueeze(-1))).squeeze(-1)
        return dist.MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)


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
