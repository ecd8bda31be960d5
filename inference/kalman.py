"""The exact filter of linear-Gaussian tasks whose weights drift while the data come in."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.evidence import checked
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.types import Context


@dataclass(frozen=True)
class GaussianRoot:
    """Gaussian by its mean and the root of its covariance: ``mean [B, D]``, ``scale_tril [B, D, D]`` lower triangular.

    Drift adds covariances where data add precisions. The root of either is updated without a difference of two
    matrices, so that the covariance stays positive definite in float32 after any number of data.
    """

    mean: Float[Tensor, "B D"]
    scale_tril: Float[Tensor, "B D D"]

    @property
    def posterior(self) -> Distribution:
        return dist.MultivariateNormal(self.mean, scale_tril=self.scale_tril, validate_args=False)


class KalmanFilter(nn.Module):
    r"""``z_1 ~ N(mean, covariance)``, ``y_t = x_t^T z_t + N(0, noise^2)``, ``z_{t+1} = F z_t + N(0, Q)`` (Kalman 1960).

    ``model`` gives the law of the weights at the first datum and the noise, ``transition [D, D]`` is ``F`` and
    ``drift_cov [D, D]`` is ``Q``, symmetric, >= 0. The rows of a task are in time order, and time passes once *after*
    each: a belief is about the weights that the next datum will see, before any data those of the prior. A row that is
    masked out is no datum, and no time passes over it. With ``F = I, Q = 0`` this is :class:`ConjugateGaussian`. The
    order of the data matters: the permutation law does not hold.

    Raises ValueError for matrices of a wrong shape, a ``Q`` that is no covariance, or an ``F`` and ``Q`` that lose a
    direction of the weights, so that they would have no density (``F F^T + Q`` singular).
    """

    transition: Tensor
    drift_root: Tensor

    def __init__(
        self, model: LinearGaussianModel, transition: Float[Tensor, "D D"], drift_cov: Float[Tensor, "D D"]
    ) -> None:
        super().__init__()
        shape = (model.dim, model.dim)
        if tuple(transition.shape) != shape or tuple(drift_cov.shape) != shape:
            raise ValueError(
                f"KalmanFilter: expected transition and drift_cov of shape {shape}, one row for each weight of the "
                f"model, got {tuple(transition.shape)} and {tuple(drift_cov.shape)}"
            )
        values, vectors = torch.linalg.eigh(drift_cov.double())
        # A covariance computed as a product is symmetric, and has no eigenvalue below zero, up to round-off.
        slack = 4 * model.dim * torch.finfo(drift_cov.dtype).eps * values.abs().amax()
        if (drift_cov - drift_cov.mT).abs().amax() > slack or values.amin() < -slack:
            raise ValueError(f"KalmanFilter: expected a symmetric drift_cov without negative variance, got {drift_cov}")
        _, lost = torch.linalg.cholesky_ex((transition @ transition.mT + drift_cov).double())
        if lost.item():
            raise ValueError(
                f"KalmanFilter: expected transition and drift_cov under which every direction of the weights keeps "
                f"some variance, got {transition} and {drift_cov}; give the lost directions drift"
            )
        root = vectors * values.clamp_min(0.0).sqrt()
        self.model = model
        self.register_buffer("transition", transition)
        self.register_buffer("drift_root", root.to(transition.dtype))

    def init(self, batch: int) -> GaussianRoot:
        return GaussianRoot(self.model.mean.expand(batch, -1), self.model.scale_tril.expand(batch, -1, -1))

    def update(self, belief: GaussianRoot, data: Context) -> GaussianRoot:
        """The belief after also seeing ``data``, in the order of its rows.

        Raises ValueError on data of a wrong shape or not finite.
        """
        data = self._checked(belief, data)
        for n in range(data.size):  # each step needs the one before
            belief = self._step(belief, data.x[:, n], data.y[:, n], data.mask[:, n])
        return belief

    def scan(self, belief: GaussianRoot, data: Context) -> GaussianRoot:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        data = self._checked(belief, data)
        beliefs = [belief]
        for n in range(data.size):
            beliefs.append(self._step(beliefs[-1], data.x[:, n], data.y[:, n], data.mask[:, n]))
        return GaussianRoot(torch.cat([b.mean for b in beliefs]), torch.cat([b.scale_tril for b in beliefs]))

    def predictive(self, belief: GaussianRoot, x: Float[Tensor, "B N D"]) -> Distribution:
        """Each of ``N`` inputs as if it were the next datum's: ``N(x^T mean, x^T covariance x + noise^2)``.

        Batch ``[B, N]``, event ``[1]``. No time passes from one of the inputs to another.
        """
        variance = (x @ belief.scale_tril).square().sum(-1, keepdim=True) + self.model.noise**2
        return dist.Normal(x @ belief.mean.unsqueeze(-1), variance.sqrt()).to_event(1)

    def _checked(self, belief: GaussianRoot, data: Context) -> Context:
        batch, dim = belief.mean.shape
        return checked("KalmanFilter", data, batch=batch, x_dim=dim, y_dim=1)

    def _step(
        self, belief: GaussianRoot, x: Float[Tensor, "B D"], y: Float[Tensor, "B 1"], mask: Bool[Tensor, "B"]
    ) -> GaussianRoot:
        r"""One datum, then one step of time (Kailath, Sayed and Hassibi 2000, section 12.3).

        With ``P = L L^T``, the joint covariance of ``(y_t, z_{t+1})`` has the root on the left, and its triangular
        root, on the right, holds the predictive's deviation ``s``, the gain ``k`` and the next ``L``::

            [ noise  x^T L    0    ]       [ s   0   0 ]
            [   0     F L   Q^1/2  ]   ->  [ k   L'  0 ]
        """
        batch, dim = x.shape
        observed = (x.unsqueeze(-2) @ belief.scale_tril).squeeze(-2)  # [B, D]
        moved = self.transition @ belief.scale_tril
        noise = x.new_full((batch, 1), self.model.noise)
        top = torch.cat([noise, observed, torch.zeros_like(x)], -1).unsqueeze(-2)
        bottom = torch.cat([x.new_zeros(batch, dim, 1), moved, self.drift_root.expand(batch, -1, -1)], -1)
        root = torch.linalg.qr(torch.cat([top, bottom], -2).mT).R.mT  # [B, D + 1, D + 1]
        root = root * torch.where(root.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
        error = (y.squeeze(-1) - (x * belief.mean).sum(-1)) / root[:, 0, 0]
        mean = belief.mean @ self.transition.mT + root[:, 1:, 0] * error.unsqueeze(-1)
        return GaussianRoot(
            torch.where(mask.unsqueeze(-1), mean, belief.mean),
            torch.where(mask[:, None, None], root[:, 1:, 1:], belief.scale_tril),
        )
