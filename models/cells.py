"""Weighted points and cells of a grid as one distribution."""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Cells(TorchDistribution):
    """A mixture of uniform boxes of one size (or, where ``cell`` is 0, of point masses) on given centres.

    Batch ``[*b]``, event ``[D]``; ``points [*b, G, D]``, ``log_weights [*b, G]`` up to a constant, ``cell [D]`` >= 0.
    ``log_prob`` takes the weight of the nearest centre and, for boxes, divides by their volume: the density of a
    regular grid. Centres of one task must be distinct.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(self, points: Float[Tensor, "*b G D"], log_weights: Float[Tensor, "*b G"], cell: Float[Tensor, "D"]):
        self.points, self.cell = points, cell
        self.log_weights = log_weights.log_softmax(-1)
        super().__init__(points.shape[:-2], points.shape[-1:], validate_args=False)

    support = constraints.real_vector

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Cells":
        points = self.points.expand(*batch_shape, *self.points.shape[-2:])
        return Cells(points, self.log_weights.expand(points.shape[:-1]), self.cell)

    @cached_property
    def weights(self) -> Float[Tensor, "*b G"]:
        """Probabilities of the cells."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance; on a lattice by coordinate, from the marginals, which is several times faster."""
        if self._lattice is None:
            weights = self.weights.unsqueeze(-1)
            mean = (weights * self.points).sum(-2)
            variance = (weights * (self.points - mean.unsqueeze(-2)).square()).sum(-2)
            return mean, variance + self.cell.square() / 12.0
        lengths = tuple(self._lattice[1].tolist())
        blocks, axes = self.weights.unflatten(-1, lengths), range(len(lengths))
        points = self.points.reshape(-1, *self.points.shape[-2:])[0].unflatten(0, lengths)
        moments = []
        for d in axes:
            others = tuple(k - len(lengths) for k in axes if k != d)
            marginal = blocks.sum(others) if others else blocks
            centres = points[tuple(slice(None) if k == d else 0 for k in axes)][:, d]
            mean = (marginal * centres).sum(-1)
            variance = (marginal * (centres - mean.unsqueeze(-1)).square()).sum(-1)
            moments.append((mean, variance + self.cell[d].square() / 12.0))
        mean, variance = (torch.stack(column, -1) for column in zip(*moments, strict=True))
        return mean, variance

    def entropy(self) -> Tensor:
        """Nats; differential where the boxes have volume."""
        weights = self.weights
        return -torch.where(weights > 0, weights * self.log_weights, weights.new_zeros(())).sum(-1) + self.log_volume

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        count = torch.Size(sample_shape).numel()
        flat = self.weights.flatten(0, -2)
        index = torch.multinomial(flat, count, replacement=True).reshape(*self.batch_shape, count, 1)
        draws = self.points.gather(-2, index.expand(*self.batch_shape, count, self.points.shape[-1]))
        draws = draws + (torch.rand_like(draws) - 0.5) * self.cell
        return draws.movedim(-2, 0).reshape(*sample_shape, *self.batch_shape, self.points.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        if self._lattice is None:
            scale = torch.where(self.cell > 0, self.cell, torch.ones_like(self.cell))
            distance = ((value.unsqueeze(-2) - self.points) / scale).abs().amax(-1)  # [*S, B, G]
            nearest, index = distance.min(-1)
            inside = torch.where((self.cell > 0).all(), nearest <= 0.5 + 1e-4, nearest < 1e-6)
        else:
            low, counts = self._lattice
            steps = (value - low) / self.cell
            cells = steps.round().clamp_min(0).minimum((counts - 1).to(steps))
            inside = ((steps - cells).abs() <= 0.5 + 1e-4).all(-1)
            index = (cells.long() * _strides(counts)).sum(-1)
        weights = self.log_weights.expand(*index.shape, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return torch.where(inside, weights - self.log_volume, weights.new_tensor(-torch.inf))

    @cached_property
    def _lattice(self) -> tuple[Float[Tensor, "D"], Int[Tensor, "D"]] | None:
        """The lowest centre and the number of cells along each axis, if the centres are one lattice in row-major order
        for all of the batch; else None. On a lattice the cell of a value is found without comparing it with all."""
        if any(self.points.stride()[:-2]) or not bool((self.cell > 0).all()):
            return None
        points = self.points.reshape(-1, *self.points.shape[-2:])[0]
        low = points.amin(0)
        counts = ((points.amax(0) - low) / self.cell).round().long() + 1
        if counts.prod() != len(points):
            return None
        index = (((points - low) / self.cell).round().long() * _strides(counts)).sum(-1)
        return (low, counts) if torch.equal(index, torch.arange(len(points), device=index.device)) else None

    @property
    def log_volume(self) -> Tensor:
        """Log volume of a cell, 0 for point masses."""
        return torch.where(self.cell > 0, self.cell, torch.ones_like(self.cell)).log().sum()


def _strides(counts: Int[Tensor, "D"]) -> Int[Tensor, "D"]:
    """Of a row-major array with these lengths."""
    return counts.flip(0).cumprod(0).flip(0) // counts
