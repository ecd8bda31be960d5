"""Distributions that torch and Pyro lack, and the numerics that need care."""

import copy
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
    kl_divergence,
    register_kl,
)


class OneRow(TorchDistribution):
    """The same distribution with batch ``[*S, B, 1]`` instead of ``[*S, B]``: a task latent beside a datum axis.

    torch distributions cannot grow a batch axis on the right; this one delegates and moves the axis in and out.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, base: Distribution) -> None:
        self.base = base
        super().__init__(torch.Size((*base.batch_shape, 1)), base.event_shape, validate_args=False)

    @property
    def _axis(self) -> int:
        return -1 - len(self.event_shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return _with_row(self.base.support, self._axis)  # type: ignore[arg-type]

    @property
    def mean(self) -> Tensor:
        return self.base.mean.unsqueeze(self._axis)

    @property
    def variance(self) -> Tensor:
        return self.base.variance.unsqueeze(self._axis)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "OneRow":
        batch_shape = torch.Size(batch_shape)
        if batch_shape[-1:] != (1,):
            raise ValueError(f"OneRow: the last batch axis is a single row, got {tuple(batch_shape)}")
        return OneRow(self.base.expand(batch_shape[:-1]))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape)).unsqueeze(self._axis)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape)).unsqueeze(self._axis)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value.squeeze(self._axis)).unsqueeze(-1)


class _WithoutRow(TorchDistribution):
    """The same distribution with batch ``[*S, B]`` instead of ``[*S, B, 1]``."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, base: Distribution) -> None:
        self.base = base
        super().__init__(base.batch_shape[:-1], base.event_shape, validate_args=False)

    @property
    def _axis(self) -> int:
        return -1 - len(self.event_shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.base.mean.squeeze(self._axis)

    @property
    def variance(self) -> Tensor:
        return self.base.variance.squeeze(self._axis)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape)).squeeze(self._axis)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape)).squeeze(self._axis)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value.unsqueeze(self._axis)).squeeze(-1)


def without_row(law: Distribution) -> Distribution:
    """The inverse of :class:`OneRow`: batch ``[B]`` from ``[B, 1]``. Normals stay what they are."""
    if isinstance(law, OneRow):
        return law.base
    if isinstance(law, MultivariateNormal):
        scale_tril = law.scale_tril.squeeze(-3)
        return MultivariateNormal(law.loc.squeeze(-2), scale_tril=scale_tril, validate_args=False)
    if isinstance(law, Independent) and isinstance(law.base_dist, Normal):
        base = Normal(law.base_dist.loc.squeeze(-2), law.base_dist.scale.squeeze(-2), validate_args=False)
        return Independent(base, law.reinterpreted_batch_ndims)
    return _WithoutRow(law)


def _with_row(support: constraints.Constraint, axis: int) -> constraints.Constraint:
    """A support whose bounds may differ between tasks, as those of a uniform do: they get the row axis too."""
    support = copy.copy(support)
    for name, value in vars(support).items():
        if isinstance(value, Tensor) and value.ndim >= -axis:
            setattr(support, name, value.unsqueeze(axis))
        if isinstance(value, constraints.Constraint):
            setattr(support, name, _with_row(value, axis))
    return support


@register_kl(OneRow, OneRow)
def _kl_one_row(p: OneRow, q: OneRow) -> Tensor:
    return kl_divergence(p.base, q.base).unsqueeze(-1)


class TanhNormal(TorchDistribution):
    """``tanh(u)`` with ``u`` diagonal normal: actions in (-1, 1), event ``[A]``.

    The log-determinant is ``log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))``, stable for any ``u`` (the form of
    the reference implementations, ``log(1 - a^2 + 1e-6)``, is biased near the bounds).
    """

    arg_constraints: ClassVar[dict] = {"loc": constraints.real_vector, "log_std": constraints.real_vector}
    support = constraints.independent(constraints.interval(-1.0, 1.0), 1)
    has_rsample = True

    def __init__(self, loc: Float[Tensor, "*b A"], log_std: Float[Tensor, "*b A"]) -> None:
        self.loc, self.log_std = torch.broadcast_tensors(loc, log_std)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """``tanh`` of the mean: the deterministic action (the mode of ``u``, not of ``tanh(u)``)."""
        return self.loc.tanh()

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "TanhNormal":
        shape = (*batch_shape, *self.event_shape)
        return TanhNormal(self.loc.expand(shape), self.log_std.expand(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._draw(sample_shape).tanh()

    def rsample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """A reparameterised action and its log-probability, without inverting ``tanh``."""
        noise = torch.randn_like(self.loc)
        u = self.loc + self.log_std.exp() * noise
        normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return u.tanh(), (normal - tanh_log_det(u)).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        eps = torch.finfo(value.dtype).eps
        u = value.clamp(-1 + eps, 1 - eps).atanh()
        z = (u - self.loc) * (-self.log_std).exp()
        normal = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return (normal - tanh_log_det(u)).sum(-1)

    def _draw(self, sample_shape: Sequence[int]) -> Tensor:
        noise = torch.randn(
            self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device
        )
        return self.loc + self.log_std.exp() * noise


def tanh_log_det(u: Tensor) -> Tensor:
    """``log d tanh(u)/du``, elementwise and finite for every finite ``u``."""
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
