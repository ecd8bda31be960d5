"""Sinusoids and lines in one family: few data leave both possible, so that a unimodal posterior cannot be right."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.grid import grid
from bayesmeta.inference.kinds import KindsFilter
from bayesmeta.models.sine_or_line import SineOrLineModel, sine_or_line
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class SineOrLine:
    """``sine_or_line-v1``: with equal odds ``y = a sin(x - phi) + eps`` or ``y = a x + b + eps``, ``x ~ U[-5, 5]``.

    ``a ~ U[0.1, 5]`` and ``phi ~ U[0, pi]``, or slope and intercept ``~ U[-3, 3]``; ``noise`` > 0 is the standard
    deviation of ``eps`` (Finn, Xu and Levine 2018, section 5). A task is ``(is_line, first, second)``. In ``ood`` tasks
    ``a ~ U[5, 8]`` and ``phi ~ U[pi, 3 pi / 2]``, or slope and intercept have absolute values ``~ U[3, 5]``.

    ``exact`` is a grid for each kind, of ``resolution`` cells a side for sinusoids and, because data tell the slope
    better than the intercept, 3/2 and 3/4 as many for lines; its error grows as ``noise`` falls.
    """

    def __init__(self, *, noise: float = 0.3, resolution: int = 200) -> None:
        self.spec = Spec("sine_or_line-v1", 1, 1, ("is_line", "first", "second"))
        self.model = SineOrLineModel(noise=noise)
        self.resolution = resolution

    @property
    def exact(self) -> KindsFilter:
        """The posterior on two grids."""
        side, kinds = self.resolution, (self.model.sine, self.model.line)
        cells = ((side, side), (3 * side // 2, 3 * side // 4))
        grids = [grid(kind, kind.low, kind.high, n, x_dim=1, y_dim=1) for kind, n in zip(kinds, cells, strict=True)]
        return KindsFilter(self.model, torch.zeros(2), grids)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 3"]:
        """Kind and its two parameters of ``n`` tasks."""
        device = generator.device
        is_line = torch.randint(2, (n, 1), generator=generator, device=device).float()
        unit = torch.rand(n, 2, generator=generator, device=device)
        if is_ood(self.spec, split):
            sign = 2.0 * torch.randint(2, (n, 2), generator=generator, device=device) - 1.0
            line = sign * (3.0 + 2.0 * unit)
            sine = unit * unit.new_tensor([3.0, 0.5 * math.pi]) + unit.new_tensor([5.0, math.pi])
        else:
            kinds = self.model.line, self.model.sine
            line, sine = (kind.low.to(device) + (kind.high - kind.low).to(device) * unit for kind in kinds)
        return torch.cat([is_line, torch.where(is_line > 0, line, sine)], -1)

    def context(self, params: Float[Tensor, "B 3"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task."""
        x = 10.0 * torch.rand(len(params), shots, 1, generator=generator, device=params.device) - 5.0
        noise = torch.randn(x.shape, generator=generator, device=params.device)
        return Context.of(x, self.mean(params, x) + self.model.noise * noise)

    def mean(self, params: Float[Tensor, "B 3"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "B N 1"]:
        """The tasks' functions at ``x``, without noise."""
        return sine_or_line(params.unsqueeze(-2), x)
