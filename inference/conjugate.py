"""Exact posteriors in closed form: linear-Gaussian and Beta-Bernoulli."""

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.beliefs import Beta, FullGaussian
from bayesmeta.inference.evidence import checked, prefix_sums
from bayesmeta.models.beta_bernoulli import BetaBernoulliModel
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.types import Context


class ConjugateGaussian(nn.Module):
    r"""The posterior of :class:`LinearGaussianModel`: evidence adds in natural parameters.

    ``\Lambda_N = \Lambda_0 + \sum_n x_n x_n^T / noise^2`` and ``\Lambda_N \mu_N = \Lambda_0 \mu_0 + \sum_n x_n y_n /
    noise^2`` (Bishop 2006, equations 3.50 and 3.51). Works in the model's dtype.
    """

    def __init__(self, model: LinearGaussianModel) -> None:
        super().__init__()
        self.model = model

    def init(self, batch: int) -> FullGaussian:
        precision = torch.cholesky_inverse(self.model.scale_tril)
        information = precision @ self.model.mean
        return FullGaussian(information.expand(batch, -1), precision.expand(batch, -1, -1))

    def update(self, belief: FullGaussian, data: Context) -> FullGaussian:
        """The belief after also seeing ``data``. Raises ValueError on data of a wrong shape or not finite."""
        x, y = self._weighted(belief, data)
        return FullGaussian(belief.information + (x.mT @ y).squeeze(-1), belief.precision + x.mT @ x)

    def scan(self, belief: FullGaussian, data: Context) -> FullGaussian:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        x, y = self._weighted(belief, data)
        outer = x.unsqueeze(-1) * x.unsqueeze(-2)
        return FullGaussian(prefix_sums(belief.information, x * y), prefix_sums(belief.precision, outer))

    def predictive(self, belief: FullGaussian, x: Float[Tensor, "B N D"]) -> Distribution:
        """The Bayes-optimal predictive ``N(x^T mu, x^T Lambda^{-1} x + noise^2)``: batch ``[B, N]``, event ``[1]``."""
        posterior: Any = belief.posterior
        variance = (x @ posterior.covariance_matrix * x).sum(-1, keepdim=True) + self.model.noise**2
        return dist.Normal(x @ posterior.mean.unsqueeze(-1), variance.sqrt()).to_event(1)

    def _weighted(self, belief: FullGaussian, data: Context) -> tuple[Tensor, Tensor]:
        """Inputs and targets in units of the noise, zero where padded."""
        batch, dim = belief.information.shape
        data = checked("ConjugateGaussian", data, batch=batch, x_dim=dim, y_dim=1)
        return data.x / self.model.noise, data.y / self.model.noise


class ConjugateBeta(nn.Module):
    """The posterior of :class:`BetaBernoulliModel`: ``alpha`` counts successes of each arm, ``beta`` its failures."""

    def __init__(self, model: BetaBernoulliModel) -> None:
        super().__init__()
        self.model = model

    def init(self, batch: int) -> Beta:
        return Beta(self.model.alpha.expand(batch, -1), self.model.beta.expand(batch, -1))

    def update(self, belief: Beta, data: Context) -> Beta:
        """The belief after also seeing ``data``. Raises ValueError if ``x`` is not one-hot or ``y`` not 0 or 1."""
        successes, failures = self._counts(belief, data)
        return Beta(belief.alpha + successes.sum(1), belief.beta + failures.sum(1))

    def scan(self, belief: Beta, data: Context) -> Beta:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        successes, failures = self._counts(belief, data)
        return Beta(prefix_sums(belief.alpha, successes), prefix_sums(belief.beta, failures))

    def predictive(self, belief: Beta, x: Float[Tensor, "B N A"]) -> Distribution:
        """The Bayes-optimal predictive, the posterior mean of the pulled arm: batch ``[B, N]``, event ``[1]``."""
        return dist.Bernoulli((x * belief.posterior.mean.unsqueeze(1)).sum(-1, keepdim=True)).to_event(1)

    def _counts(self, belief: Beta, data: Context) -> tuple[Tensor, Tensor]:
        batch, arms = belief.alpha.shape
        data = checked("ConjugateBeta", data, batch=batch, x_dim=arms, y_dim=1)
        one_hot = ((data.x == 0) | (data.x == 1)).all(-1) & (data.x.sum(-1) == data.mask)
        binary = ((data.y == 0) | (data.y == 1)).all(-1)
        if not (one_hot & binary).all():
            raise ValueError(
                "ConjugateBeta: expected x one-hot in the pulled arm and y in {0, 1}, got other values; "
                "encode arms with torch.nn.functional.one_hot and rewards as 0 or 1"
            )
        return data.x * data.y, data.x * (1 - data.y)
