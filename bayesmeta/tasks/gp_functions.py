"""Functions drawn from a Gaussian process, the benchmark of neural processes, with the process's own posterior."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.linear_head import LinearHead
from bayesmeta.models.feature_head import FeatureHead
from bayesmeta.models.rbf_features import RBFFeatures
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class GPFunctions:
    """``gp_functions-v1``: ``y = f(x) + eps``, ``f ~ GP(0, scale^2 exp(-(x - x')^2 / (2 length^2)))``.

    ``x ~ U[-2, 2]``; ``noise`` is the standard deviation of ``eps``; all three are > 0. A task is the weights ``~ N(0,
    I)`` of its function in :class:`RBFFeatures`, whose kernel is that of the process to within 1e-6 of ``scale^2``
    (2e-7 for the default ``length``, which takes 33 weights). ``ood`` functions are ``ood_scale`` times as large.

    Inputs and noise are those of the code of Kim et al. 2019. There ``length ~ U[0.1, 0.6]`` and ``scale ~ U[0.1, 1]``
    differ from task to task; here they do not, so that the posterior is Gaussian and known in closed form. It is
    computed in float32, whose rounding is below 1 % of a predictive standard deviation for ``noise=0.02``.
    """

    def __init__(self, *, length: float = 0.4, scale: float = 1.0, noise: float = 0.02, ood_scale: float = 3.0) -> None:
        features = RBFFeatures(length=length, scale=scale, width=4.0)
        self.spec = Spec("gp_functions-v1", 1, 1, tuple(f"weight_{d}" for d in range(features.dim)))
        prior = torch.zeros(features.dim, 1), noise**2 * torch.eye(features.dim)  # N(0, I), in units of the noise
        self.model = FeatureHead(features, *prior, noise).requires_grad_(False)
        self.exact = LinearHead(self.model, x_dim=1)
        self.noise, self.ood_scale = noise, ood_scale

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Weights of ``n`` functions."""
        weights = torch.randn(n, self.spec.param_dim, generator=generator, device=generator.device)
        return weights * (self.ood_scale if is_ood(self.spec, split) else 1.0)

    def context(self, params: Float[Tensor, "B M"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task."""
        x = 4.0 * torch.rand(len(params), shots, 1, generator=generator, device=params.device) - 2.0
        noise = torch.randn(x.shape, generator=generator, device=params.device)
        return Context.of(x, self.mean(params, x) + self.noise * noise)

    def mean(self, params: Float[Tensor, "B M"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "B N 1"]:
        """The tasks' functions at ``x``, without noise."""
        return self.model.features(x) @ params.unsqueeze(-1)
