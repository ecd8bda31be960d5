r"""What data did to a belief: contraction and information gained, in nats, per latent dimension.

For a posterior ``q`` and the prior ``p`` of the same procedure, per task:

    contraction_d = 1 - Var_q[z_d] / Var_p[z_d]
    kl_d          = KL(q(z_d) || p(z_d))
    kl_total      = KL(q(z) || p(z))

A contraction of 1 means that the dimension is known, 0 that nothing was learned of it, and below 0 that the belief is
wider than the prior: a symptom, so it is never clipped. The marginal KLs add up to the total where both laws factorise.
A dimension is active if its mean KL over tasks exceeds 0.01 nat (Burda, Grosse and Salakhutdinov 2016 use a variance;
the KL has a unit).
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from bayesmeta.diagnostics.distances import is_discrete
from bayesmeta.models.cells import Cells

ACTIVE_NATS = 0.01
_PAIRS = 1 << 20  # densities of one draw under one task's law at a time


def contraction(posterior: Distribution, prior: Distribution) -> Float[Tensor, "B D"]:
    """``1 - Var_q / Var_p`` of every coordinate, with the prior's exact variance."""
    return 1.0 - posterior.variance / prior.variance


def total_kl(posterior: Distribution, prior: Distribution, draws: Float[Tensor, "S B D"]) -> Float[Tensor, "B"]:
    """``KL(q || p)``: in closed form where there is one, else the mean of ``log q - log p`` over draws of ``q``.

    NaN where either has no density, so that the divergence is not defined: point masses and particles.
    """
    undefined = draws.new_full(draws.shape[1:2], torch.nan)
    if isinstance(posterior, Cells) and isinstance(prior, Cells):
        if not torch.equal(posterior.points, prior.points):
            return undefined
        return discrete_kl(posterior.log_weights, prior.log_weights)
    if is_discrete(posterior) or is_discrete(prior):
        return undefined
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        estimate = (posterior.log_prob(draws) - prior.log_prob(draws)).mean(0)
        return torch.where(estimate.isfinite(), estimate, torch.nan)


def marginal_kl(posterior: Distribution, prior: Distribution) -> Float[Tensor, "B D"]:
    """``KL`` of every coordinate's marginal; NaN where the marginals are not known in closed form."""
    if isinstance(posterior, Cells) and isinstance(prior, Cells):
        return _cells_marginal_kl(posterior, prior)
    q, p = marginals(posterior), marginals(prior)
    if q is not None and p is not None:
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            pass
    return torch.full((*posterior.batch_shape, *posterior.event_shape), torch.nan)


def marginals(distribution: Distribution) -> Distribution | None:
    """The law of each coordinate, batch ``[B, D]`` and no event, or None where it has no closed form here."""
    if isinstance(distribution, MultivariateNormal):
        return Normal(distribution.mean, distribution.stddev, validate_args=False)
    if isinstance(distribution, Independent) and not distribution.base_dist.event_shape:
        return distribution.base_dist
    return None


def active_dimensions(kl: Float[np.ndarray, "B D"], threshold: float = ACTIVE_NATS) -> Bool[np.ndarray, "D"]:
    """Which dimensions the data move: mean KL over tasks above ``threshold`` nats. A NaN is not active."""
    return kl.mean(0) > threshold


@torch.no_grad()
def mixture_information(code: Distribution, draws: int = 50) -> Float[Tensor, "B"]:
    r"""Nats that a draw of ``code`` tells of which of its ``B`` tasks it was drawn for: from 0 to ``log B`` on average.

    ``I(z; m) = E_m E_{z ~ F_m}[log F_m(z) - log p(z)]`` with the mixture ``p(z) = mean_m F_m(z)``, whose exact density
    it takes: against the prior in its place the result would be too large by ``KL(p || prior)`` and could exceed the
    ceiling. For beliefs, each about its own task, it is 0 before any data. z is drawn from the global random state.
    """
    z = code.sample(torch.Size((draws,)))
    return (code.log_prob(z) - _log_mixture(code, z)).mean(0)


@torch.no_grad()
def recovered_information(belief: Distribution, code: Distribution, draws: int = 50) -> Float[Tensor, "B"]:
    r"""Nats of a task's code that a belief about it has recovered: ``E_{z ~ F_m}[log q_m(z) - log p(z)]``.

    ``code`` is the law ``F_m`` of the code of each task from an encoder that is told the task, ``belief`` what is
    inferred of it from data. On average over tasks at most ``I(z; data) <= I(z; task)``, which is
    :func:`mixture_information` of the code, ``<= log B`` (Barber and Agakov 2003).
    """
    z = code.sample(torch.Size((draws,)))
    return (belief.log_prob(z) - _log_mixture(code, z)).mean(0)


def _log_mixture(code: Distribution, z: Float[Tensor, "S B D"]) -> Float[Tensor, "S B"]:
    """``log mean_m F_m(z)`` of every draw, a few at a time under every task's law."""
    tasks = z.shape[1]
    rows = z.flatten(0, 1).unsqueeze(1)
    parts = [code.log_prob(part).logsumexp(-1) for part in rows.split(max(1, _PAIRS // tasks))]
    return torch.cat(parts).reshape(z.shape[:2]) - math.log(tasks)


def discrete_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """``sum_g q_g (log q_g - log p_g)`` over the last axis; a weight of zero contributes nothing."""
    return torch.where(log_q > -torch.inf, log_q.exp() * (log_q - log_p), 0.0).sum(-1)


def _cells_marginal_kl(posterior: Cells, prior: Cells) -> Float[Tensor, "B D"]:
    """Marginals of a common set of cells: the weights of equal coordinates added up."""
    points = posterior.points
    if not torch.equal(points, prior.points):
        return points.new_full((len(points), points.shape[-1]), torch.nan)
    shared = points[:1] if points.stride(0) == 0 else points  # the cells of a grid are the same in every task
    columns = []
    for d in range(points.shape[-1]):
        _, index = shared[..., d].unique(return_inverse=True)
        empty = posterior.log_weights.new_zeros(len(points), int(index.max()) + 1)
        q, p = (
            empty.scatter_add(-1, index.expand(len(points), -1), log_weights.exp().expand(len(points), -1)).log()
            for log_weights in (posterior.log_weights, prior.log_weights)
        )
        columns.append(discrete_kl(q, p))
    return torch.stack(columns, -1)
