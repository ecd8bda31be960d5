"""Regression in which part of the latent is linear, and the distribution that its posterior has on a grid."""

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from bayesmeta.models.concatenated import Concatenated
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class PartlyLinearModel(TaskModel):
    """``y = curve(u, x) + basis(x)^T w + eps``, ``z = (u, w)``: the user writes ``outer``, ``curve`` and ``basis``.

    ``w ~ N(mean, diag(scale^2))`` and ``eps ~ N(0, noise^2)``; ``mean [W]``, ``scale [W]``, the latter and ``noise``
    standard deviations > 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Float[Tensor, "W"], scale: Float[Tensor, "W"], noise: float) -> None:
        super().__init__()
        name = type(self).__name__
        if not (noise > 0 and (scale > 0).all()):
            raise ValueError(f"{name}: noise and scale are standard deviations, expected > 0, got {noise} and {scale}")
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.noise = noise

    def outer(self, batch: int) -> Distribution:
        """Prior of ``u``: batch ``[B]``, event ``[U]``."""
        raise NotImplementedError(f"{type(self).__name__} needs `outer(batch)`, a distribution with event [U]")

    def curve(self, u: Float[Tensor, "*S B n U"], x: Float[Tensor, "B N X"]) -> Float[Tensor, "*S B N 1"]:
        """What is not linear, for ``u [*S, B, 1, U]``."""
        raise NotImplementedError(f"{type(self).__name__} needs `curve(u, x)`")

    def basis(self, x: Float[Tensor, "B N X"]) -> Float[Tensor, "B N W"]:
        """What the linear part of the latent multiplies."""
        raise NotImplementedError(f"{type(self).__name__} needs `basis(x)`")

    def regression(self, z: Float[Tensor, "*S B 1 D"], x: Float[Tensor, "B N X"]) -> Float[Tensor, "*S B N 1"]:
        """The mean of a datum."""
        u, w = z.tensor_split([z.shape[-1] - len(self.mean)], -1)
        return self.curve(u, x) + (self.basis(x) * w).sum(-1, keepdim=True)

    def prior(self, batch: int) -> Distribution:
        linear = dist.Normal(self.mean.expand(batch, -1), self.scale, validate_args=False).to_event(1)
        return Concatenated([self.outer(batch), linear])

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return dist.Normal(self.regression(z, data.x), self.noise).to_event(1)


class CellsThenNormal(TorchDistribution):
    """``u`` uniform in a cell that is drawn by weight, then ``w ~ N(loc[cell], L L^T)``: event ``[U + W]``, ``(u, w)``.

    Batch ``[*b]``. The ``G`` cells are ``counts`` boxes of sides ``cell [U]`` from the corner ``low [U]``, in row-major
    order; ``log_weights [*b, G]`` up to a constant, ``loc [*b, G, W]``, ``scale_tril [*b, W, W]`` is ``L``.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False
    support = constraints.real_vector

    def __init__(
        self,
        low: Float[Tensor, "U"],
        cell: Float[Tensor, "U"],
        counts: tuple[int, ...],
        log_weights: Float[Tensor, "*b G"],
        loc: Float[Tensor, "*b G W"],
        scale_tril: Float[Tensor, "*b W W"],
    ) -> None:
        self.low, self.cell, self.counts = low, cell, counts
        self.log_weights, self.loc, self.scale_tril = log_weights.log_softmax(-1), loc, scale_tril
        super().__init__(log_weights.shape[:-1], torch.Size((len(low) + loc.shape[-1],)), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "CellsThenNormal":
        log_weights, loc, scale_tril = (
            v.expand(*batch_shape, *v.shape[len(self.batch_shape) :])
            for v in (self.log_weights, self.loc, self.scale_tril)
        )
        return CellsThenNormal(self.low, self.cell, self.counts, log_weights, loc, scale_tril)

    @property
    def points(self) -> Float[Tensor, "G U"]:
        """Centres of the cells."""
        return lattice(self.low, self.cell, self.counts)

    @property
    def mean(self) -> Tensor:
        weights = self.log_weights.exp().unsqueeze(-2)
        return torch.cat([weights @ self.points, weights @ self.loc], -1).squeeze(-2)

    @property
    def variance(self) -> Tensor:
        weights, (u, w) = self.log_weights.exp().unsqueeze(-2), self._split(self.mean.unsqueeze(-2))
        outer = (weights @ (self.points - u).square()).squeeze(-2) + self.cell.square() / 12.0
        linear = (weights @ (self.loc - w).square()).squeeze(-2) + self.scale_tril.square().sum(-1)
        return torch.cat([outer, linear], -1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape, batch = torch.Size(sample_shape), self.batch_shape
        flat = torch.multinomial(self.log_weights.exp().flatten(0, -2), shape.numel(), replacement=True)
        index = flat.reshape(*batch, shape.numel()).movedim(-1, 0).reshape(*shape, *batch)
        centre = self.points[index]
        loc = self._loc(index)
        noise = (self.scale_tril @ torch.randn_like(loc).unsqueeze(-1)).squeeze(-1)
        return torch.cat([centre + (torch.rand_like(centre) - 0.5) * self.cell, loc + noise], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        u, w = self._split(value)
        counts = torch.tensor(self.counts, device=u.device)
        # A value on the upper edge, or beside an edge by rounding, belongs to the nearest cell.
        steps = (u - self.low) / self.cell
        inside = ((steps > -1e-4) & (steps < counts + 1e-4)).all(-1)
        cells = steps.floor().long().clamp_min(0).minimum(counts - 1)
        index = (cells * (counts.flip(0).cumprod(0).flip(0) // counts)).sum(-1)
        weight = self.log_weights.expand(*index.shape, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
        normal = dist.MultivariateNormal(self._loc(index), scale_tril=self.scale_tril, validate_args=False)
        return torch.where(inside, weight - self.cell.log().sum() + normal.log_prob(w), -torch.inf)

    def _loc(self, index: Tensor) -> Tensor:
        """``loc`` of the cells ``index [*S, *b]``."""
        loc = self.loc.expand(*index.shape, *self.loc.shape[-2:])
        return loc.gather(-2, index[..., None, None].expand(*index.shape, 1, loc.shape[-1])).squeeze(-2)

    def _split(self, value: Tensor) -> tuple[Tensor, ...]:
        return value.tensor_split([len(self.low)], -1)


def lattice(low: Float[Tensor, "U"], cell: Float[Tensor, "U"], counts: Sequence[int]) -> Float[Tensor, "G U"]:
    """Centres of ``counts`` boxes of sides ``cell`` from the corner ``low``, in row-major order."""
    steps = [torch.arange(n, dtype=low.dtype, device=low.device) + 0.5 for n in counts]
    axes = [low[d] + cell[d] * step for d, step in enumerate(steps)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(low))
