"""A normal with unknown mean: the smallest task with an exact posterior."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.tasks.linear_gaussian import label_linear, sample_gaussian
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class NormalNormal:
    """``normal_normal-v1``: ``y ~ N(z, noise^2)`` with ``z ~ N(prior_mean, prior_scale^2)``.

    The linear-Gaussian family with the constant input ``x = 1``. ``prior_scale`` and ``noise`` are standard deviations
    > 0; ``ood`` means have ``ood_scale`` times the prior's standard deviation.
    """

    def __init__(
        self, *, prior_mean: float = 0.0, prior_scale: float = 1.0, noise: float = 0.5, ood_scale: float = 3.0
    ) -> None:
        self.spec = Spec("normal_normal-v1", 1, 1, ("mean",))
        self.model = LinearGaussianModel(torch.tensor([prior_mean]), torch.tensor([[prior_scale**2]]), noise)
        self.exact = ConjugateGaussian(self.model)
        self.ood_scale = ood_scale

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        """Means of ``n`` tasks."""
        return sample_gaussian(self.model, n, self.ood_scale if is_ood(self.spec, split) else 1.0, generator)

    def context(self, params: Float[Tensor, "B 1"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` draws of each task."""
        x = torch.ones(len(params), shots, 1, device=params.device)
        return label_linear(self.model, params, x, generator)
