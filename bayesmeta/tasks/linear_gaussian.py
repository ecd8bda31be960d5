"""Linear regression with Gaussian weights: exact inference in any dimension."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class LinearGaussian:
    """``linear_gaussian-v1``: ``y = x^T z + eps`` with ``z ~ N(prior_mean, prior_scale^2 I)``, ``eps ~ N(0, noise^2)``.

    Inputs ``x ~ N(0, I)`` of dimension ``dim``; ``prior_scale`` and ``noise`` are standard deviations > 0. ``train``
    and ``test`` weights are fresh draws of the prior, ``ood`` weights have ``ood_scale`` times its standard deviation.
    """

    def __init__(
        self,
        *,
        dim: int = 3,
        prior_mean: float = 0.0,
        prior_scale: float = 1.0,
        noise: float = 0.5,
        ood_scale: float = 3.0,
    ) -> None:
        self.spec = Spec("linear_gaussian-v1", dim, 1, tuple(f"weight_{d}" for d in range(dim)))
        mean, covariance = torch.full((dim,), prior_mean), prior_scale**2 * torch.eye(dim)
        self.model = LinearGaussianModel(mean, covariance, noise)
        self.exact = ConjugateGaussian(self.model)
        self.ood_scale = ood_scale

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n D"]:
        """Weights of ``n`` tasks."""
        return sample_gaussian(self.model, n, self.ood_scale if is_ood(self.spec, split) else 1.0, generator)

    def context(self, params: Float[Tensor, "B D"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task."""
        x = torch.randn(len(params), shots, self.spec.x_dim, generator=generator, device=params.device)
        return label_linear(self.model, params, x, generator)


def sample_gaussian(
    model: LinearGaussianModel, n: int, scale: float, generator: torch.Generator
) -> Float[Tensor, "n D"]:
    """Draws of the model's prior with ``scale`` times its standard deviation."""
    noise = torch.randn(n, model.dim, generator=generator, device=generator.device)
    return model.mean.to(noise.device) + scale * noise @ model.scale_tril.mT.to(noise.device)


def label_linear(
    model: LinearGaussianModel, params: Float[Tensor, "B D"], x: Float[Tensor, "B N D"], generator: torch.Generator
) -> Context:
    """The inputs with noisy targets of the tasks ``params``."""
    noise = torch.randn(*x.shape[:2], 1, generator=generator, device=x.device)
    return Context.of(x, x @ params.unsqueeze(-1) + model.noise * noise)
