r"""The Gaussian prior that a few gradient steps stand for (Santos 1996; Grant et al. 2018, section 3).

On a quadratic loss with Hessian ``H`` and minimum ``z*``, the steps ``z <- z - rate_j B grad`` from ``theta`` lead to

    z_k = M theta + (I - M) z*,    M = \prod_j (I - rate_j B H),

and that is exactly the minimum of ``loss + (z - theta)^T Q^{-1} (z - theta) / 2``: the posterior mode under the prior
``N(theta, Q)`` of a model whose negative log-likelihood is the loss. The matrices ``M``, ``Q`` and the covariance
``P = (H + Q^{-1})^{-1}`` of that posterior share their directions, those of the eigenvalues ``c`` of
``B^{1/2} H B^{1/2}``, along which

    kept = \prod_j (1 - rate_j c),    q = (1 / kept - 1) / c,    p = (1 - kept) / c,

with the limit ``q = p = \sum_j rate_j`` where ``c = 0``: what no datum speaks of has the prior as its posterior.

``Q`` depends on ``H`` and so on the task's inputs: a prior that has seen the design. It is nearly the same for all
tasks only where ``rate c`` is small, ``Q = \sum_j rate_j B``. ``P`` is implied, not computed by descent, whose belief
is a point; nothing makes it calibrated.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Implied:
    """What ``steps`` do along directions of ``curvature``, each by itself. All fields have its shape.

    ``kept`` is the share of the way from the start to the minimum that is left to go; ``prior`` and ``posterior`` are
    the variances ``q`` and ``p``, NaN where the steps are those of no prior.
    """

    curvature: Float[Tensor, "*b D"]
    kept: Float[Tensor, "*b D"]
    prior: Float[Tensor, "*b D"]
    posterior: Float[Tensor, "*b D"]

    @property
    def valid(self) -> Bool[Tensor, "*b D"]:
        """Whether there is a prior along each direction."""
        return ~self.prior.isnan()


def implied(curvature: Float[Tensor, "*b D"], rate: float | Tensor, steps: int) -> Implied:
    """The prior and posterior variances that ``steps`` steps imply along directions of the given curvature.

    ``rate`` is a number, or ``[steps]`` of them. With positive rates there is a prior where ``rate * curvature < 1``,
    and for an even number of equal steps also between 1 and 2. From 2 on descent diverges; an odd number of steps
    beyond 1 overshoots the minimum, which no prior does. Negative curvature is no obstacle to the algebra: the point
    is the mode still, and the posterior wider than the prior. Raises ValueError for ``steps < 1``, a prior without
    width, and for a number of rates that is not that of the steps.
    """
    rates = torch.as_tensor(rate, dtype=curvature.dtype, device=curvature.device)
    if steps < 1 or rates.shape not in ((), (steps,)):
        raise ValueError(
            f"expected steps >= 1 and a rate that is a number or has one for each step, got {steps} steps and "
            f"{tuple(rates.shape)} rates"
        )
    groups = [(rates, steps)] if not rates.ndim else [(one, 1) for one in rates]
    sign, log_kept = torch.ones_like(curvature), torch.zeros_like(curvature)
    for one, count in groups:
        scaled = one * curvature
        sign = sign * (1 - scaled).sign() ** count
        log_kept = log_kept + count * torch.where(scaled < 1, torch.log1p(-scaled), torch.log(scaled - 1))
    flat = curvature == 0
    divisor = torch.where(flat, 1.0, curvature)
    total = sum(one * count for one, count in groups)
    # 1/kept - 1 and 1 - kept without cancellation, since curvatures that should be 0 are 1e-16.
    prior = torch.where(flat, total, torch.expm1(-log_kept) / divisor)
    posterior = torch.where(flat, total, -torch.expm1(log_kept) / divisor)
    valid = (sign > 0) & (prior > 0) & prior.isfinite()
    prior, posterior = (torch.where(valid, v, torch.nan) for v in (prior, posterior))
    return Implied(curvature, sign * log_kept.exp(), prior, posterior)


def implied_prior(
    hessian: Float[Tensor, "*b D D"],
    rate: float | Tensor,
    steps: int,
    preconditioner: Float[Tensor, "*p D D"] | None = None,
) -> Float[Tensor, "*b D D"]:
    """The covariance ``Q`` of the prior ``N(theta, Q)`` under which ``steps`` steps from ``theta`` find the mode.

    ``hessian`` is that of the actual inner loss, symmetric: ``X^T X / noise^2`` for a summed negative log-likelihood,
    ``2 X^T X / n`` for a mean squared error. ``preconditioner`` is ``B``, symmetric and positive semi-definite, the
    identity if None. One step implies ``Q^{-1} = B^{-1} / rate - H``.

    Raises ValueError where there is no such prior (:func:`has_prior`) and for a preconditioner that is not as said.
    """
    axes, found = _required(hessian, rate, steps, preconditioner)
    return _covariance(axes, found.prior)


def implied_posterior(
    hessian: Float[Tensor, "*b D D"],
    rate: float | Tensor,
    steps: int,
    preconditioner: Float[Tensor, "*p D D"] | None = None,
) -> Float[Tensor, "*b D D"]:
    """The covariance ``P = (H + Q^{-1})^{-1}`` of the posterior that goes with :func:`implied_prior`. Raises as it."""
    axes, found = _required(hessian, rate, steps, preconditioner)
    return _covariance(axes, found.posterior)


def has_prior(
    hessian: Float[Tensor, "*b D D"],
    rate: float | Tensor,
    steps: int,
    preconditioner: Float[Tensor, "*p D D"] | None = None,
) -> Bool[Tensor, "*b"]:
    """Whether the steps are those of a prior: ``rate`` times the largest curvature is below 1 (see :func:`implied`)."""
    return _directions(hessian, rate, steps, preconditioner)[1].valid.all(-1)


def adaptation(
    hessian: Float[Tensor, "*b D D"],
    rate: float | Tensor,
    steps: int,
    preconditioner: Float[Tensor, "*p D D"] | None = None,
) -> Float[Tensor, "*b D D"]:
    """``M``, the share of the start in the point that ``steps`` steps reach; it exists for any rates."""
    scaled = hessian if preconditioner is None else preconditioner @ hessian
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    rates = torch.as_tensor(rate, dtype=hessian.dtype, device=hessian.device)
    if not rates.ndim:
        return torch.linalg.matrix_power(eye - rates * scaled, steps)
    kept = eye.expand_as(scaled)
    for one in rates:
        kept = (eye - one * scaled) @ kept
    return kept


def root(matrix: Float[Tensor, "*b D D"]) -> Float[Tensor, "*b D D"]:
    """The symmetric root of a symmetric positive semi-definite matrix. Raises ValueError for any other."""
    values, vectors = torch.linalg.eigh(matrix)
    size = values.abs().amax(-1, keepdim=True)
    slack = 100 * torch.finfo(matrix.dtype).eps * size
    if bool((values < -slack).any()) or bool(((matrix - matrix.mT).abs() > slack.unsqueeze(-1)).any()):
        raise ValueError(
            f"expected a symmetric positive semi-definite preconditioner, got one with eigenvalues from "
            f"{values.min().item():.3g} to {values.max().item():.3g} and an asymmetry of "
            f"{(matrix - matrix.mT).abs().max().item():.3g}; steps along others are those of no prior"
        )
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


def _directions(
    hessian: Tensor, rate: float | Tensor, steps: int, preconditioner: Tensor | None
) -> tuple[Tensor, Implied]:
    """The directions, as columns, that the steps treat each by itself, and what they do along them."""
    half = None if preconditioner is None else root(preconditioner)
    curvature, axes = torch.linalg.eigh(hessian if half is None else half @ hessian @ half)
    return axes if half is None else half @ axes, implied(curvature, rate, steps)


def _required(
    hessian: Tensor, rate: float | Tensor, steps: int, preconditioner: Tensor | None
) -> tuple[Tensor, Implied]:
    axes, found = _directions(hessian, rate, steps, preconditioner)
    if not bool(found.valid.all()):
        largest = found.curvature.amax() * torch.as_tensor(rate).abs().max()
        raise ValueError(
            f"no Gaussian prior is implied for {int((~found.valid.all(-1)).sum())} of {found.valid[..., 0].numel()} "
            f"Hessians: expected positive rates with rate * largest curvature < 1 (for an even number of equal steps "
            f"also between 1 and 2), got {largest.item():.3g} with {steps} steps; lower the rate"
        )
    return axes, found


def _covariance(axes: Tensor, variance: Tensor) -> Tensor:
    covariance = (axes * variance.unsqueeze(-2)) @ axes.mT
    return (covariance + covariance.mT) / 2
