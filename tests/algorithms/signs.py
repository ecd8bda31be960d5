"""Regression on inputs of -1 and 1 in equal numbers, where the exact posterior of slope and offset is diagonal."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayesmeta.types import Context, Spec


@dataclass(frozen=True)
class Signs:
    """``y = w x + b + eps`` with independent Gaussian ``w`` and ``b``: for even ``shots``, ``X^T X = shots I``."""

    mean: tuple[float, float] = (0.3, -0.4)
    scale: tuple[float, float] = (0.8, 0.6)
    noise: float = 0.8
    spec: ClassVar[Spec] = Spec("signs-v1", 1, 1, ("slope", "offset"))

    def sample(self, n: int, split: str, generator: torch.Generator) -> Tensor:
        return torch.tensor(self.mean) + torch.tensor(self.scale) * torch.randn(n, 2, generator=generator)

    def context(self, params: Tensor, shots: int, generator: torch.Generator) -> Context:
        x = torch.tensor([1.0, -1.0]).repeat(shots // 2).expand(len(params), -1).unsqueeze(-1)
        y = params[:, :1, None] * x + params[:, 1:, None]
        return Context.of(x, y + self.noise * torch.randn(y.shape, generator=generator))
