"""Linear regression whose noise is unknown too: exact inference in any dimension."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.normal_inverse_gamma import ConjugateNormalInverseGamma
from bayesmeta.models.normal_inverse_gamma import NormalInverseGammaModel
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class UnknownNoise:
    """``unknown_noise-v1``: ``y = x^T w + eps``, ``eps ~ N(0, v)``, where a task is its weights and its noise variance.

    ``v ~ InverseGamma(concentration, rate)`` and ``w ~ N(prior_mean, v prior_scale^2 I)``; inputs ``x ~ N(0, I)`` of
    dimension ``dim``. ``prior_scale`` > 0 is in units of the noise's standard deviation. By default ``v`` has mean 1/4
    and standard deviation 1/8, and each weight has variance 1. ``train`` and ``test`` tasks are fresh draws of the
    prior; in ``ood`` tasks the noise, and with it the spread of the weights, has ``ood_scale`` times its standard
    deviation.

    Raises ValueError for ``concentration`` <= 2, with which the prior has no variance to compare a posterior's with.
    """

    def __init__(
        self,
        *,
        dim: int = 3,
        prior_mean: float = 0.0,
        prior_scale: float = 2.0,
        concentration: float = 6.0,
        rate: float = 1.25,
        ood_scale: float = 3.0,
    ) -> None:
        if not concentration > 2:
            raise ValueError(
                f"UnknownNoise: expected concentration > 2, so that the prior has a variance, got {concentration}; a "
                f"NormalInverseGammaModel by itself takes any"
            )
        names = (*(f"weight_{d}" for d in range(dim)), "noise_variance")
        self.spec = Spec("unknown_noise-v1", dim, 1, names)
        mean, covariance = torch.full((dim,), prior_mean), prior_scale**2 * torch.eye(dim)
        self.model = NormalInverseGammaModel(mean, covariance, concentration, rate)
        self.exact = ConjugateNormalInverseGamma(self.model)
        self.ood_scale = ood_scale

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Weights and noise variance of ``n`` tasks."""
        model, device = self.model, generator.device
        scale = self.ood_scale if is_ood(self.spec, split) else 1.0
        # torch draws Gamma variables from its global generator only.
        seed = int(torch.randint(1 << 62, (), generator=generator, device=device))
        precision = np.random.default_rng(seed).gamma(model.concentration, size=(n, 1)) / (scale**2 * model.rate)
        variance = torch.as_tensor(1.0 / precision, dtype=torch.float32, device=device)
        noise = torch.randn(n, model.dim, generator=generator, device=device)
        weights = model.mean.to(device) + variance.sqrt() * noise @ model.scale_tril.mT.to(device)
        return torch.cat([weights, variance], -1)

    def context(self, params: Float[Tensor, "B M"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task."""
        weights, variance = params[:, :-1].unsqueeze(-1), params[:, -1:].unsqueeze(-1)
        x = torch.randn(len(params), shots, self.spec.x_dim, generator=generator, device=params.device)
        noise = torch.randn(*x.shape[:2], 1, generator=generator, device=params.device)
        return Context.of(x, x @ weights + variance.sqrt() * noise)
