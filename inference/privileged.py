"""Inference by one who is told the task: a code of its identifier, for training only."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.models.embeddings import Integers
from bayesmeta.types import Spec


class Told(nn.Module):
    """``q(z | mu) = N(mean(mu), diag scale(mu)^2)`` for the parameters ``mu`` of a task, integers or real numbers.

    ``least`` and ``most`` bound the standard deviation, which begins near ``least``, so that codes tell tasks apart
    from the start; the same number twice fixes it, as published for DREAM (0.1).
    """

    def __init__(self, spec: Spec, latent_dim: int, *, least: float = 0.05, most: float = 1.0, table: int = 32) -> None:
        super().__init__()
        if not 0 < least <= most:
            raise ValueError(f"Told: expected 0 < least <= most, got {least} and {most}")
        self.least, self.most = least, most
        first: nn.Module = Integers(spec.param_sizes, table) if spec.param_sizes else nn.Linear(spec.param_dim, table)
        size = (len(spec.param_sizes) or 1) * table
        last = nn.Linear(size, 2 * latent_dim)
        with torch.no_grad():
            last.bias[latent_dim:] -= 2.0
        self.layers = nn.Sequential(first, last)

    def forward(self, params: Float[Tensor, "B M"]) -> Distribution:
        """The code of each task, batch ``[B]``, event ``[D]``."""
        mean, raw = self.layers(params).chunk(2, -1)
        low, high = (torch.log(mean.new_tensor(bound)) for bound in (self.least, self.most))
        scale = (low + (high - low) * torch.sigmoid(raw)).exp()
        return dist.Normal(mean, scale, validate_args=False).to_event(1)
