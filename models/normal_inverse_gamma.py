"""Bayesian linear regression with unknown noise, and the distribution that is conjugate to it."""

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Gamma, constraints, kl_divergence, register_kl

from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class NormalInverseGamma(TorchDistribution):
    r"""``v ~ InverseGamma(concentration, rate)`` and, given it, ``w ~ N(loc, v L L^T)``: event ``[D + 1]``, ``(w, v)``.

    ``loc [*b, D]``, ``scale_tril [*b, D, D]`` is ``L``, lower triangular, in units of the standard deviation
    ``sqrt(v)``; ``concentration [*b]`` > 0 (the shape), ``rate [*b]`` > 0 in units of ``v``. By itself ``w`` is Student
    t with ``2 concentration`` degrees of freedom. Parametrised as in Murphy (2007), section 6.
    """

    arg_constraints: ClassVar[dict] = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*b D"],
        scale_tril: Float[Tensor, "*b D D"],
        concentration: Float[Tensor, "*b"],
        rate: Float[Tensor, "*b"],
    ) -> None:
        self.loc, self.scale_tril, self.concentration, self.rate = loc, scale_tril, concentration, rate
        super().__init__(loc.shape[:-1], torch.Size((loc.shape[-1] + 1,)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        parts = [constraints.real, constraints.positive]
        return constraints.independent(constraints.cat(parts, dim=-1, lengths=[self.loc.shape[-1], 1]), 1)

    @property
    def mean(self) -> Tensor:
        """Of ``w`` NaN where it does not exist (concentration <= 1/2), of ``v`` infinite where concentration <= 1."""
        weights = torch.where(self.concentration.unsqueeze(-1) > 0.5, self.loc, torch.nan)
        return torch.cat([weights, self._mean_noise.unsqueeze(-1)], -1)

    @property
    def variance(self) -> Tensor:
        """Infinite where it does not exist: of ``w`` for concentration <= 1, of ``v`` for concentration <= 2."""
        weights = self._mean_noise.unsqueeze(-1) * self.scale_tril.square().sum(-1)
        noise = self._mean_noise.square() / (self.concentration - 2.0).clamp_min(0.0)
        return torch.cat([weights, noise.unsqueeze(-1)], -1)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "NormalInverseGamma":
        batch, dim = torch.Size(batch_shape), self.loc.shape[-1]
        return NormalInverseGamma(
            self.loc.expand(*batch, dim),
            self.scale_tril.expand(*batch, dim, dim),
            self.concentration.expand(batch),
            self.rate.expand(batch),
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        variance = self._precision.rsample(torch.Size(sample_shape)).reciprocal().unsqueeze(-1)
        noise = torch.randn(*variance.shape[:-1], *self.loc.shape[-1:], dtype=self.loc.dtype, device=self.loc.device)
        scaled = (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        return torch.cat([self.loc + variance.sqrt() * scaled, variance], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        weights, variance = value[..., :-1], value[..., -1]
        inside = variance > 0
        variance = torch.where(inside, variance, 1.0)
        a, b, dim = self.concentration, self.rate, self.loc.shape[-1]
        noise = a * b.log() - torch.lgamma(a) - (a + 1.0) * variance.log() - b / variance
        square = self._whiten(weights - self.loc).square().sum(-1) / variance
        normal = -0.5 * (square + dim * (math.log(2 * math.pi) + variance.log())) - self._log_det
        return torch.where(inside, noise + normal, -torch.inf)

    def entropy(self) -> Tensor:
        """Nats."""
        a, b, dim = self.concentration, self.rate, self.loc.shape[-1]
        log_noise = b.log() - torch.digamma(a)  # E[log v]
        noise = a + torch.lgamma(a) - a * b.log() + (1.0 + a) * log_noise
        return noise + 0.5 * dim * (math.log(2 * math.pi) + 1.0 + log_noise) + self._log_det

    @property
    def _precision(self) -> Gamma:
        """Of ``1 / v``."""
        return Gamma(self.concentration, self.rate, validate_args=False)

    @property
    def _mean_noise(self) -> Tensor:
        return self.rate / (self.concentration - 1.0).clamp_min(0.0)

    @property
    def _log_det(self) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _whiten(self, difference: Tensor) -> Tensor:
        """``L^{-1} difference``."""
        return torch.linalg.solve_triangular(self.scale_tril, difference.unsqueeze(-1), upper=False).squeeze(-1)


@register_kl(NormalInverseGamma, NormalInverseGamma)
def _kl_normal_inverse_gamma(p: NormalInverseGamma, q: NormalInverseGamma) -> Tensor:
    """The KL of the noise, which is that of its inverse, and the mean over ``p``'s noise of the KL of the weights."""
    shift = q._whiten(p.loc - q.loc).square().sum(-1) * p.concentration / p.rate
    spread = torch.linalg.solve_triangular(q.scale_tril, p.scale_tril, upper=False).square().sum((-2, -1))
    weights = 0.5 * (shift + spread - p.loc.shape[-1]) + q._log_det - p._log_det
    return kl_divergence(p._precision, q._precision) + weights


class NormalInverseGammaModel(TaskModel):
    """``v ~ InverseGamma(concentration, rate)``, ``w ~ N(mean, v covariance)``, ``y_n ~ N(x_n^T w, v)``.

    ``x [B, N, D]``, ``y [B, N, 1]``; the latent is ``z = (w, v) [B, D + 1]``, the noise *variance* last. ``mean [D]``;
    ``covariance [D, D]`` is in units of the noise variance; ``rate / (concentration - 1)`` is the mean of ``v``. The
    prior has a mean for ``concentration`` > 1 and a variance for ``concentration`` > 2.

    Raises ValueError if ``concentration`` or ``rate`` is not positive or ``covariance`` is not positive definite.
    """

    mean: Tensor
    covariance: Tensor
    scale_tril: Tensor

    def __init__(
        self, mean: Float[Tensor, "D"], covariance: Float[Tensor, "D D"], concentration: float, rate: float
    ) -> None:
        super().__init__()
        if not (concentration > 0 and rate > 0):
            raise ValueError(
                f"NormalInverseGammaModel: expected concentration, rate > 0, got {concentration} and {rate}"
            )
        scale_tril, failed = torch.linalg.cholesky_ex(covariance)
        if failed.item() or not torch.equal(covariance, covariance.mT):
            raise ValueError(
                f"NormalInverseGammaModel: expected a symmetric positive definite covariance, got {covariance}"
            )
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)
        self.register_buffer("scale_tril", scale_tril)
        self.concentration, self.rate = concentration, rate

    @property
    def dim(self) -> int:
        """``D``, the number of weights and the width of ``x``."""
        return self.mean.shape[0]

    def prior(self, batch: int) -> Distribution:
        concentration, rate = (self.mean.new_full((batch,), value) for value in (self.concentration, self.rate))
        return NormalInverseGamma(
            self.mean.expand(batch, -1), self.scale_tril.expand(batch, -1, -1), concentration, rate
        )

    def likelihood(self, z: Float[Tensor, "*S B 1 M"], data: Context) -> Distribution:
        mean = (data.x * z[..., :-1]).sum(-1, keepdim=True)
        return dist.Normal(mean, z[..., -1:].sqrt()).to_event(1)
