"""Independent laws of parts of a vector as one distribution of the whole."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints


class Concatenated(TorchDistribution):
    """``(v_1, v_2, ...)`` with ``v_i ~ parts[i]`` independent: batch ``[*b]``, events ``[D_i]`` joined."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, parts: Sequence[Distribution]) -> None:
        self.parts = tuple(parts)
        self.sizes = tuple(part.event_shape[0] for part in parts)
        super().__init__(parts[0].batch_shape, torch.Size((sum(self.sizes),)), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(part.has_rsample for part in self.parts)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.cat([part.support for part in self.parts], dim=-1, lengths=self.sizes)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Concatenated":
        return Concatenated([part.expand(torch.Size(batch_shape)) for part in self.parts])

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.mean for part in self.parts], -1)

    @property
    def variance(self) -> Tensor:
        return torch.cat([part.variance for part in self.parts], -1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return torch.cat([part.sample(torch.Size(sample_shape)) for part in self.parts], -1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return torch.cat([part.rsample(torch.Size(sample_shape)) for part in self.parts], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        pairs = zip(self.parts, value.split(self.sizes, -1), strict=True)
        return torch.stack([part.log_prob(v) for part, v in pairs]).sum(0)
