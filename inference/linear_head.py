"""The exact posterior of a last layer on learned features: ALPaCA's online phase (Harrison, Sharma and Pavone 2018)."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.evidence import checked, prefix_sums
from bayesmeta.models.feature_head import FeatureHead, head_law
from bayesmeta.types import Context


@dataclass(frozen=True)
class MatrixNormal:
    """Weights ``K ~ MN(precision^{-1} information, precision^{-1}, diag(noise^2))`` in natural parameters.

    ``information [B, F, Y]`` is the precision times the mean, ``precision [B, F, F]`` that of every target's weights in
    units of its ``noise [Y]``.
    """

    information: Float[Tensor, "B F Y"]
    precision: Float[Tensor, "B F F"]
    noise: Float[Tensor, "Y"]

    @property
    def posterior(self) -> dist.MultivariateNormal:
        """Batch ``[B]``, event ``[Y F]``, one target's weights after the other."""
        mean = torch.cholesky_solve(self.information, torch.linalg.cholesky(self.precision))
        return head_law(mean, self.precision, self.noise)


class LinearHead(nn.Module):
    r"""The posterior of :class:`FeatureHead`: evidence adds in natural parameters, which all targets share.

    ``Lambda_N = Lambda_0 + \sum_n phi_n phi_n^T`` and ``Lambda_N K_N = Lambda_0 K_0 + \sum_n phi_n y_n^T`` with ``phi_n
    = features(x_n)``: sums, in place of the paper's rank-one updates of the inverse, whose rounding errors build up.
    Gradients flow into features, prior and noise. Works in the model's dtype.
    """

    def __init__(self, model: FeatureHead, *, x_dim: int) -> None:
        super().__init__()
        self.model, self.x_dim = model, x_dim

    def init(self, batch: int) -> MatrixNormal:
        precision = self.model.precision
        information = precision @ self.model.mean
        return MatrixNormal(information.expand(batch, -1, -1), precision.expand(batch, -1, -1), self.model.noise)

    def update(self, belief: MatrixNormal, data: Context) -> MatrixNormal:
        """The belief after also seeing ``data``. Raises ValueError on data of a wrong shape or not finite."""
        phi, y = self._evidence(belief, data)
        return MatrixNormal(belief.information + phi.mT @ y, belief.precision + phi.mT @ phi, belief.noise)

    def scan(self, belief: MatrixNormal, data: Context) -> MatrixNormal:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        phi, y = self._evidence(belief, data)
        information = prefix_sums(belief.information, phi.unsqueeze(-1) * y.unsqueeze(-2))
        precision = prefix_sums(belief.precision, phi.unsqueeze(-1) * phi.unsqueeze(-2))
        return MatrixNormal(information, precision, belief.noise)

    def predictive(self, belief: MatrixNormal, x: Float[Tensor, "B N X"]) -> Distribution:
        """``N(K_N^T phi, (1 + phi^T Lambda_N^{-1} phi) diag(noise^2))``: batch ``[B, N]``, event ``[Y]``.

        With ``phi = features(x)``: the likelihood's average over the posterior, in closed form.
        """
        phi, root = self.model.features(x), torch.linalg.cholesky(belief.precision)
        whitened = torch.linalg.solve_triangular(root, phi.mT, upper=False)
        mean = whitened.mT @ torch.linalg.solve_triangular(root, belief.information, upper=False)
        spread = 1.0 + whitened.square().sum(1).unsqueeze(-1)
        return dist.Normal(mean, spread.sqrt() * belief.noise, validate_args=False).to_event(1)

    def _evidence(self, belief: MatrixNormal, data: Context) -> tuple[Tensor, Tensor]:
        """Features and targets, zero where padded."""
        batch, _, y_dim = belief.information.shape
        data = checked("LinearHead", data, batch=batch, x_dim=self.x_dim, y_dim=y_dim)
        return self.model.features(data.x) * data.mask.unsqueeze(-1), data.y
