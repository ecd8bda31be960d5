"""Sinusoid regression, the benchmark of gradient-based meta-learning, with its posterior on a grid."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.inference.grid import grid
from bayesmeta.models.sinusoid import SinusoidModel, sinusoid
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class Sinusoid:
    """``sinusoid-v1``: ``y = a sin(x - phi) + eps``, ``a ~ U[0.1, 5]``, ``phi ~ U[0, pi]``, ``x ~ U[-5, 5]``.

    The ranges of Finn, Abbeel and Levine 2017 (section 5.1). ``noise`` is the standard deviation of ``eps``, > 0.
    ``ood`` tasks lie beyond the prior in both parameters: ``a ~ U[5, 8]``, ``phi ~ U[pi, 3 pi / 2]``.

    Differences from the published benchmark: it has no noise, in which case there is no likelihood and, from two data
    on, no density to infer. ``exact`` is a grid of ``resolution`` cells a side; its error grows as ``noise`` falls.
    """

    def __init__(self, *, noise: float = 0.3, resolution: int = 200) -> None:
        self.spec = Spec("sinusoid-v1", 1, 1, ("amplitude", "phase"))
        self.model = SinusoidModel(noise=noise)
        self.resolution = resolution

    @property
    def exact(self) -> FiniteFilter:
        """The posterior on the grid."""
        cells = (self.resolution, self.resolution)
        return grid(self.model, self.model.low, self.model.high, cells, x_dim=1, y_dim=1)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Amplitude and phase of ``n`` tasks."""
        low, high = self.model.low, self.model.high
        if is_ood(self.spec, split):
            low, high = high, torch.tensor([8.0, 1.5 * math.pi])
        unit = torch.rand(n, 2, generator=generator, device=generator.device)
        return low.to(unit.device) + (high - low).to(unit.device) * unit

    def context(self, params: Float[Tensor, "B 2"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task."""
        x = 10.0 * torch.rand(len(params), shots, 1, generator=generator, device=params.device) - 5.0
        noise = torch.randn(x.shape, generator=generator, device=params.device)
        return Context.of(x, sinusoid(params.unsqueeze(-2), x) + self.model.noise * noise)
