"""Bayesian linear regression on learned features of the input: the model of ALPaCA."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class FeatureHead(TaskModel):
    r"""``y_n = K^T features(x_n) + eps_n`` with ``K ~ MN(mean, precision^{-1}, diag(noise^2))``, all three learned.

    A task is the last layer ``K [F, Y]``, of which ``z`` holds one target's weights after the other: ``z = (k_1, ...,
    k_Y)``, ``k_y ~ N(mean_y, noise_y^2 precision^{-1})`` independent of one another. ``eps_n ~ N(0, noise^2)``. The
    features, shared by all tasks, are any module on ``[B, N, X]`` that reads each row by itself (Harrison, Sharma and
    Pavone 2018).

    ``mean [F, Y]``, ``precision [F, F]`` in units of the noise, and ``noise``, a standard deviation > 0 for each target
    or for all, are where training starts. The precision is learned by its Cholesky factor with the logarithm of the
    diagonal, the noise, with ``learn_noise``, by its logarithm. Raises ValueError if ``noise`` is not positive or
    ``precision`` is not positive definite.
    """

    def __init__(
        self,
        features: nn.Module,
        mean: Float[Tensor, "F Y"],
        precision: Float[Tensor, "F F"],
        noise: Float[Tensor, "Y"] | float,
        *,
        learn_noise: bool = False,
    ) -> None:
        super().__init__()
        noise = torch.as_tensor(noise, dtype=mean.dtype).expand(mean.shape[1])
        if not bool((noise > 0).all()):
            raise ValueError(f"FeatureHead: noise is a standard deviation, expected > 0, got {noise.tolist()}")
        root, failed = torch.linalg.cholesky_ex(precision)
        if failed.item() or not torch.equal(precision, precision.mT):
            raise ValueError(f"FeatureHead: expected a symmetric positive definite precision, got {precision}")
        self.features = features
        self.mean = nn.Parameter(mean.clone())
        self.log_root = nn.Parameter(root.tril(-1) + root.diagonal().log().diag())
        self.log_noise = nn.Parameter(noise.log(), requires_grad=learn_noise)

    @property
    def precision(self) -> Float[Tensor, "F F"]:
        """``Lambda_0``."""
        root = self.log_root.tril(-1) + self.log_root.diagonal().exp().diag()
        return root @ root.mT

    @property
    def noise(self) -> Float[Tensor, "Y"]:
        """The standard deviation of each target."""
        return self.log_noise.exp()

    def prior(self, batch: int) -> Distribution:
        return head_law(self.mean.expand(batch, -1, -1), self.precision.expand(batch, -1, -1), self.noise)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        weights = z.squeeze(-2).unflatten(-1, self.mean.mT.shape)
        return dist.Normal(self.features(data.x) @ weights.mT, self.noise, validate_args=False).to_event(1)


def head_law(
    mean: Float[Tensor, "B F Y"], precision: Float[Tensor, "B F F"], noise: Float[Tensor, "Y"]
) -> dist.MultivariateNormal:
    """The matrix normal ``MN(mean, precision^{-1}, diag(noise^2))`` of the weights in the order of ``z``."""
    # From a factor of the precision, read backwards: P = U U^T with U upper triangular, so that P^-1 = U^-T U^-1.
    upper = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    root = torch.linalg.solve_triangular(upper, eye, upper=True).mT
    blocks = torch.einsum("yz,bfg->byfzg", noise.diag(), root).flatten(3, 4).flatten(1, 2)
    return dist.MultivariateNormal(mean.mT.flatten(1), scale_tril=blocks, validate_args=False)
