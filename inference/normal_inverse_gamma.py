"""The exact posterior of linear regression with unknown noise."""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.beliefs import FullGaussian
from bayesmeta.inference.evidence import checked, prefix_sums
from bayesmeta.models.normal_inverse_gamma import NormalInverseGamma, NormalInverseGammaModel
from bayesmeta.types import Context


@dataclass(frozen=True)
class NormalInverseGammaBelief:
    r"""Weights ``w`` and noise variance ``v``: ``w | v ~ N(\Lambda^{-1} h, v \Lambda^{-1})``, ``v ~ InverseGamma``.

    ``information [B, D]`` is ``h`` and ``precision [B, D, D]`` is ``\Lambda``, symmetric positive definite, both in
    units of the noise; ``concentration [B]`` grows by 1/2 per datum, ``rate [B]`` by half the squared errors.
    """

    information: Float[Tensor, "B D"]
    precision: Float[Tensor, "B D D"]
    concentration: Float[Tensor, "B"]
    rate: Float[Tensor, "B"]

    @property
    def posterior(self) -> Distribution:
        """Batch ``[B]``, event ``[D + 1]``, the variance last."""
        weights = self.weights
        return NormalInverseGamma(weights.mean, weights.scale_tril, self.concentration, self.rate)

    @property
    def weights(self) -> Any:
        """The normal distribution of the weights where the noise has variance 1."""
        return FullGaussian(self.information, self.precision).posterior


class ConjugateNormalInverseGamma(nn.Module):
    r"""The posterior of :class:`NormalInverseGammaModel` (Bishop 2006, exercise 3.12; Murphy 2007, section 6).

    ``\Lambda_N = \Lambda_0 + \sum_n x_n x_n^T``, ``h_N = h_0 + \sum_n x_n y_n``, ``a_N = a_0 + N / 2`` and ``b_N = b_0
    + (\sum_n (y_n - x_n^T \mu_N)^2 + (\mu_N - \mu_0)^T \Lambda_0 (\mu_N - \mu_0)) / 2``. The textbook's ``b_N``, the
    sum of squares less ``\mu_N^T \Lambda_N \mu_N``, is the same number as a difference of large ones: in float32 it is
    lost where targets are a thousand times the noise. Works in the model's dtype.
    """

    def __init__(self, model: NormalInverseGammaModel) -> None:
        super().__init__()
        self.model = model

    def init(self, batch: int) -> NormalInverseGammaBelief:
        model = self.model
        precision = torch.cholesky_inverse(model.scale_tril)
        information = precision @ model.mean
        return NormalInverseGammaBelief(
            information.expand(batch, -1),
            precision.expand(batch, -1, -1),
            information.new_full((batch,), model.concentration),
            information.new_full((batch,), model.rate),
        )

    def update(self, belief: NormalInverseGammaBelief, data: Context) -> NormalInverseGammaBelief:
        """The belief after also seeing ``data``. Raises ValueError on data of a wrong shape or not finite."""
        data = self._checked(belief, data)
        information = belief.information + (data.x.mT @ data.y).squeeze(-1)
        precision = belief.precision + data.x.mT @ data.x
        after = FullGaussian(information, precision).posterior.mean
        shift = (after - belief.weights.mean).unsqueeze(-1)
        error = data.y - data.x @ after.unsqueeze(-1)
        squares = error.square().sum((1, 2)) + (shift.mT @ belief.precision @ shift).squeeze((1, 2))
        return NormalInverseGammaBelief(
            information,
            precision,
            belief.concentration + 0.5 * data.mask.sum(-1),
            belief.rate + 0.5 * squares,
        )

    def scan(self, belief: NormalInverseGammaBelief, data: Context) -> NormalInverseGammaBelief:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows.

        The rate grows by the squared one-step-ahead errors in units of their spread, which needs no loop over data.
        """
        data = self._checked(belief, data)
        information = prefix_sums(belief.information, data.x * data.y)
        precision = prefix_sums(belief.precision, data.x.unsqueeze(-1) * data.x.unsqueeze(-2))
        before: Any = FullGaussian(information[: -data.batch], precision[: -data.batch]).posterior
        x, y = (v.transpose(0, 1).flatten(0, 1) for v in (data.x, data.y.squeeze(-1)))  # rows n B + b
        error = y - (x * before.mean).sum(-1)
        spread = 1.0 + (x.unsqueeze(-2) @ before.scale_tril).square().sum((-2, -1))
        squares = (error.square() / spread).unflatten(0, (data.size, data.batch)).T
        half = 0.5 * data.mask.to(belief.rate.dtype)
        return NormalInverseGammaBelief(
            information,
            precision,
            prefix_sums(belief.concentration, half),
            prefix_sums(belief.rate, 0.5 * squares),
        )

    def predictive(self, belief: NormalInverseGammaBelief, x: Float[Tensor, "B N D"]) -> Distribution:
        r"""The Bayes-optimal predictive, batch ``[B, N]``, event ``[1]``: Student t with ``2 a`` degrees of freedom.

        Its location is ``x^T \mu``, its squared scale ``(b / a) (1 + x^T \Lambda^{-1} x)``.
        """
        weights = belief.weights
        spread = 1.0 + (x @ weights.scale_tril).square().sum(-1, keepdim=True)
        a, b = belief.concentration[:, None, None], belief.rate[:, None, None]
        return dist.StudentT(2.0 * a, x @ weights.mean.unsqueeze(-1), (spread * b / a).sqrt()).to_event(1)

    def _checked(self, belief: NormalInverseGammaBelief, data: Context) -> Context:
        batch, dim = belief.information.shape
        return checked("ConjugateNormalInverseGamma", data, batch=batch, x_dim=dim, y_dim=1)
