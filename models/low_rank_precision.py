r"""A Gaussian whose precision is a diagonal plus few outer products: many weights, few data."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class LowRankPrecision(TorchDistribution):
    r"""``N(loc, P^{-1})`` with ``P = diag(diagonal) + R^T R``: batch ``[*b]``, event ``[D]``, exact, never ``D x D``.

    ``loc [*b, D]``, ``diagonal [*b, D]`` > 0, ``root [*b, R, D]`` with any ``R``, 0 too. By Woodbury's identity
    everything goes through ``C = I + R diag^{-1} R^T``, of size ``R x R``, so the cost is ``R^2 D``.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Float[Tensor, "*b D"], diagonal: Float[Tensor, "*b D"], root: Float[Tensor, "*b R D"]):
        self.loc, self.diagonal, self.root = loc, diagonal, root
        small = (root / diagonal.unsqueeze(-2)) @ root.mT
        eye = torch.eye(root.shape[-2], dtype=root.dtype, device=root.device)
        self._cholesky = torch.linalg.cholesky(eye + small)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "LowRankPrecision":
        shape, event = torch.Size(batch_shape), self.event_shape
        root = self.root.expand(*shape, *self.root.shape[-2:])
        return LowRankPrecision(self.loc.expand(shape + event), self.diagonal.expand(shape + event), root)

    @property
    def log_det_precision(self) -> Float[Tensor, "*b"]:
        """``log det P``."""
        small = self._cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.diagonal.log().sum(-1) + 2 * small

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        half = torch.linalg.solve_triangular(self._cholesky, self.root / self.diagonal.unsqueeze(-2), upper=False)
        return 1 / self.diagonal - half.square().sum(-2)

    def solve(self, value: Float[Tensor, "*c D"]) -> Float[Tensor, "*c D"]:
        """``P^{-1} value``."""
        scaled = value / self.diagonal
        return scaled - self._back(self._small_solve(self._along(scaled)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``loc + P^{-1} (diag^{1/2} e + R^T f)`` with standard ``e``, ``f``: its covariance is ``P^{-1} P P^{-1}``.

        By Woodbury's identity that is ``loc + e' + diag^{-1} R^T C^{-1} (f - R e')`` with ``e' = diag^{-1/2} e``.
        """
        shape = (*sample_shape, *self.batch_shape)
        first = torch.randn(*shape, self.event_shape[0], dtype=self.loc.dtype, device=self.loc.device)
        second = torch.randn(*shape, self.root.shape[-2], dtype=self.loc.dtype, device=self.loc.device)
        first = first / self.diagonal.sqrt()
        return self.loc + first + self._back(self._small_solve(second - self._along(first)))

    def _along(self, value: Float[Tensor, "*c D"]) -> Float[Tensor, "*c R"]:
        """``R value``; einsum never copies ``R`` for the dimensions that it lacks."""
        return torch.einsum("...rd,...d->...r", self.root, value)

    def _back(self, value: Float[Tensor, "*c R"]) -> Float[Tensor, "*c D"]:
        """``diag^{-1} R^T value``."""
        return torch.einsum("...rd,...r->...d", self.root, value) / self.diagonal

    def _small_solve(self, value: Float[Tensor, "*c R"]) -> Float[Tensor, "*c R"]:
        """``C^{-1} value``."""
        return torch.cholesky_solve(value.unsqueeze(-1), self._cholesky).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        away = value - self.loc
        square = (self.diagonal * away.square()).sum(-1) + self._along(away).square().sum(-1)
        return 0.5 * (self.log_det_precision - square - self.event_shape[0] * math.log(2 * math.pi))
