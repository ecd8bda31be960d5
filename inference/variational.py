r"""Variational inference by gradient descent from the prior: adaptation in amortised Bayesian meta-learning.

Ravi and Beatson 2019 (section 3): few steps of Bayes by backprop (Blundell et al. 2015) on a task's data, begun at the
prior, so that what is learned is one pair of mean and scale that is both prior and start. Unlike descent on the
likelihood alone, which leaves the prior behind as steps are added, this converges to a posterior.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from bayesmeta.inference.descent import SGD, InnerOptimizer, descend
from bayesmeta.inference.evidence import checked
from bayesmeta.inference.gradient import refuse_padding, require_real
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, concat


@dataclass(frozen=True)
class MeanField:
    """A Gaussian with independent coordinates, ``mean [B, D]`` and ``log_sd [B, D]``, and the data it was fitted to.

    The data are kept because descent depends on its path: with more data it begins anew from the prior.
    """

    mean: Float[Tensor, "B D"]
    log_sd: Float[Tensor, "B D"]
    data: Context

    @property
    def posterior(self) -> Distribution:
        return dist.Normal(self.mean, self.log_sd.exp(), validate_args=False).to_event(1)

    def place(self, noise: Float[Tensor, "S b D"]) -> Float[Tensor, "S B D"]:
        """Standard draws, of each task or of all (``b = 1``), as draws of the posterior."""
        return self.mean + self.log_sd.exp() * noise


@dataclass(frozen=True)
class FullRank:
    """A Gaussian with covariance ``L L^T``, ``L = scale_tril [B, D, D]``, and the data it was fitted to."""

    mean: Float[Tensor, "B D"]
    scale_tril: Float[Tensor, "B D D"]
    data: Context

    @property
    def posterior(self) -> Distribution:
        return dist.MultivariateNormal(self.mean, scale_tril=self.scale_tril, validate_args=False)

    def place(self, noise: Float[Tensor, "S b D"]) -> Float[Tensor, "S B D"]:
        """Standard draws, of each task or of all (``b = 1``), as draws of the posterior."""
        return self.mean + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


Fitted = MeanField | FullRank


class VariationalDescent(nn.Module):
    r"""``q`` begins at the prior's mean and scale and takes ``steps`` gradient steps on minus the task's ELBO,

    .. math:: -E_q[log p(y | x, z)] + kl\_weight \cdot KL(q || p(z)),

    summed over the data. ``q`` is Gaussian, in the coordinates ``(mean, log sd)`` or, with ``covariance="full"``,
    ``(mean, L)`` with the logarithms of ``L``'s diagonal. With ``whitened`` they are those of the latent in units of
    the prior, ``mean = prior mean + prior sd u``, in which the prior has curvature 1 whatever its scale; without it
    steps diverge at a ``rate`` above ``2 sd^2 / kl_weight`` of the smallest prior ``sd``. The scale moves at
    ``scale_rate`` times the optimiser's rate: its gradient is the noisier one, and a standard deviation that grows too
    far in one step never comes back.

    The expectation is over ``draws`` reparameterised draws, new in every step from torch's global stream, in pairs
    ``mean +- e`` with ``antithetic``: without them the log-likelihood's slope is noise in the gradient of the log sd,
    which unlucky draws inflate until the descent diverges. Or it is over the ``2 D`` symmetric points
    ``mean +- sqrt(D) scale e_d`` with ``draws="sigma"``, which has no noise, is exact where the log-likelihood is
    quadratic, and is for small ``D``. ``kl_weight`` < 1 counts the prior less than Bayes' rule does.

    Works on any :class:`TaskModel` whose prior has finite variances and ranges over all of R^D. The divergence from a
    prior that is not Gaussian is estimated with the same draws. Gradients flow through all steps into the model and the
    optimiser, unless ``first_order`` holds the inner gradients constant. Obeys the filter law, with ``draws="sigma"``
    to round-off, because it starts anew from all data.

    Raises ValueError for other values, and for a prior over less than R^D.
    """

    def __init__(
        self,
        model: TaskModel,
        *,
        x_dim: int,
        y_dim: int,
        steps: int = 5,
        optimizer: InnerOptimizer | None = None,
        draws: int | Literal["sigma"] = 4,
        antithetic: bool = True,
        covariance: Literal["diagonal", "full"] = "diagonal",
        whitened: bool = False,
        scale_rate: float = 1.0,
        kl_weight: float = 1.0,
        first_order: bool = False,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        require_real("VariationalDescent", model)
        if covariance not in ("diagonal", "full") or steps < 0 or not (kl_weight >= 0 and scale_rate > 0):
            raise ValueError(
                f"VariationalDescent: expected covariance diagonal or full, steps >= 0, kl_weight >= 0 and scale_rate "
                f"> 0, got {covariance!r}, {steps}, {kl_weight} and {scale_rate}"
            )
        self.model, self.optimizer = model, SGD() if optimizer is None else optimizer
        self.x_dim, self.y_dim, self.steps = x_dim, y_dim, steps
        self.draws, self.antithetic = _checked_draws(draws, antithetic), antithetic
        self.covariance, self.whitened, self.scale_rate, self.kl_weight = covariance, whitened, scale_rate, kl_weight
        self.first_order, self.checkpointed = first_order, checkpointed

    def init(self, batch: int) -> Fitted:
        """The Gaussian with the prior's mean and standard deviations, or with its covariance if ``q`` has one."""
        start = self._start(batch)
        return self._belief(start, Context.empty(batch, self.x_dim, self.y_dim, start.device))

    def update(self, belief: Fitted, data: Context) -> Fitted:
        """Descent on the belief's data and ``data`` together, from the prior.

        Raises ValueError on data of a wrong shape or not finite, and on padding where a network mixes rows.
        """
        data = checked("VariationalDescent", data, batch=len(belief.mean), x_dim=self.x_dim, y_dim=self.y_dim)
        refuse_padding("VariationalDescent", self.model, data)
        seen = concat([belief.data, data])
        fitted = descend(
            lambda parameters: -self.elbo(self._belief(parameters, seen)),
            self._start(seen.batch),
            self.optimizer,
            self.steps if seen.size else 0,
            first_order=self.first_order,
            checkpointed=self.checkpointed,
        )
        return self._belief(fitted, seen)

    def at(self, *, steps: int | None = None, draws: int | Literal["sigma"] | None = None) -> "VariationalDescent":
        """The same procedure, parameters shared, with another number of steps or draws."""
        other = copy.copy(self)
        other.steps = self.steps if steps is None else steps
        other.draws = self.draws if draws is None else _checked_draws(draws, self.antithetic)
        return other

    def elbo(self, belief: Fitted) -> Float[Tensor, "B"]:
        """The ELBO of each task at its belief and its data: Pyro's ``TraceMeanField_ELBO`` with these draws."""
        z = belief.place(self._noise(belief.mean))
        fit = self.model.log_likelihood(z, belief.data).mean(0)
        return fit - self.kl_weight * self._divergence(belief.posterior, z)

    def _divergence(self, q: Distribution, z: Float[Tensor, "S B D"]) -> Float[Tensor, "B"]:
        prior = self.model.prior(z.shape[-2])
        if isinstance(q, MultivariateNormal) and isinstance(prior, Independent) and isinstance(prior.base_dist, Normal):
            prior = MultivariateNormal(prior.mean, scale_tril=torch.diag_embed(prior.stddev), validate_args=False)
        try:
            return kl_divergence(q, prior)
        except NotImplementedError:
            return -q.entropy() - prior.log_prob(z).mean(0)

    def _noise(self, like: Float[Tensor, "B D"]) -> Float[Tensor, "S b D"]:
        """Standard draws or points, of which the tasks have their own or, ``b = 1``, the same."""
        if self.draws == "sigma":
            axes = math.sqrt(like.shape[-1]) * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
            return torch.cat([axes, -axes]).unsqueeze(1)
        count = self.draws // 2 if self.antithetic else self.draws
        noise = torch.randn(count, *like.shape, dtype=like.dtype, device=like.device)
        return torch.cat([noise, -noise]) if self.antithetic else noise

    def _start(self, batch: int) -> Float[Tensor, "B P"]:
        prior = self.model.prior(batch)
        if self.covariance == "diagonal":
            rest = prior.stddev.log()
        else:
            scale = _scale_tril(prior)
            raw = scale.tril(-1) + torch.diag_embed(scale.diagonal(dim1=-2, dim2=-1).log())
            rows, columns = torch.tril_indices(*scale.shape[-2:], device=scale.device)
            rest = raw[:, rows, columns]
        start = torch.cat([prior.mean, rest / math.sqrt(self.scale_rate)], -1)
        return torch.zeros_like(start) if self.whitened else start

    def _belief(self, coordinates: Float[Tensor, "B P"], data: Context) -> Fitted:
        """The Gaussian at the coordinates in which it is descended."""
        prior = self.model.prior(len(coordinates))
        mean, rest = coordinates.tensor_split([prior.event_shape[0]], -1)
        rest = math.sqrt(self.scale_rate) * rest  # so that a step in it is scale_rate times as long
        if self.covariance == "diagonal":
            if self.whitened:
                mean, rest = prior.mean + prior.stddev * mean, prior.stddev.log() + rest
            return MeanField(mean, rest, data)
        rows, columns = torch.tril_indices(mean.shape[-1], mean.shape[-1], device=mean.device)
        raw = mean.new_zeros(*mean.shape, mean.shape[-1])
        raw[:, rows, columns] = rest
        scale_tril = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
        if self.whitened:
            outer = _scale_tril(prior)
            mean, scale_tril = prior.mean + (outer @ mean.unsqueeze(-1)).squeeze(-1), outer @ scale_tril
        return FullRank(mean, scale_tril, data)


def _scale_tril(prior: Distribution) -> Float[Tensor, "B D D"]:
    """A root of the prior's covariance, or of its variances where it does not tell."""
    return prior.scale_tril if isinstance(prior, MultivariateNormal) else torch.diag_embed(prior.stddev)


def _checked_draws(draws: int | Literal["sigma"], antithetic: bool) -> int | Literal["sigma"]:
    valid = draws == "sigma" if isinstance(draws, str) else draws >= 1 and not (antithetic and draws % 2)
    if not valid:
        raise ValueError(
            f"VariationalDescent: expected draws = sigma or draws >= 1, and an even number of them with antithetic, "
            f"got draws = {draws} and antithetic = {antithetic}"
        )
    return draws
