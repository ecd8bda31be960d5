"""Bayesian linear regression, whose posterior is known in closed form for any dimension."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class LinearGaussianModel(TaskModel):
    r"""``z ~ N(mean, covariance)``, ``y_n = x_n^T z + \epsilon_n``, ``\epsilon_n ~ N(0, noise^2)``.

    ``x [B, N, D]``, ``y [B, N, 1]``; ``noise`` is a standard deviation > 0, in units of ``y``. The normal-normal model
    with unknown mean is the case ``D = 1, x = 1``. A target of ``Y`` coordinates with independent noise,
    ``y = H z + eps``, is ``Y`` data of this model, one per row of ``H``.

    Raises ValueError if ``noise`` is not positive or ``covariance`` is not positive definite.
    """

    mean: Tensor
    covariance: Tensor
    scale_tril: Tensor

    def __init__(self, mean: Float[Tensor, "D"], covariance: Float[Tensor, "D D"], noise: float) -> None:
        super().__init__()
        if not noise > 0:
            raise ValueError(f"LinearGaussianModel: noise is a standard deviation, expected > 0, got {noise}")
        scale_tril, failed = torch.linalg.cholesky_ex(covariance)
        if failed.item() or not torch.equal(covariance, covariance.mT):
            raise ValueError(
                f"LinearGaussianModel: expected a symmetric positive definite covariance, got {covariance}"
            )
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)
        self.register_buffer("scale_tril", scale_tril)
        self.noise = noise

    @property
    def dim(self) -> int:
        """``D``, also the width of ``x``."""
        return self.mean.shape[0]

    def prior(self, batch: int) -> Distribution:
        return dist.MultivariateNormal(self.mean.expand(batch, -1), scale_tril=self.scale_tril, validate_args=False)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return dist.Normal((data.x * z).sum(-1, keepdim=True), self.noise).to_event(1)
