"""The exact posterior of a latent that is of one of several kinds, with a grid over the values of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.inference.beliefs import Weighted
from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.models.cells import Cells
from bayesmeta.models.kinds import OneOfKinds
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


@dataclass(frozen=True)
class KindsBelief:
    """Weighted cells of ``K`` grids, one grid after the other.

    ``points [B, H, D + 1]`` are ``(kind, centre)`` and ``log_weights [B, H]``, up to a constant, those of the cells of
    all kinds together; ``sizes`` are the numbers of cells of the kinds and ``cell [K, D]`` > 0 the sides of a cell.
    """

    points: Float[Tensor, "B H M"]
    log_weights: Float[Tensor, "B H"]
    cell: Float[Tensor, "K D"]
    sizes: tuple[int, ...]

    @property
    def posterior(self) -> OneOfKinds:
        """Batch ``[B]``, event ``[D + 1]``, the kind first."""
        weights, centres = self.log_weights.split(self.sizes, -1), self.points[..., 1:].split(self.sizes, -2)
        cells = [Cells(c, w, side) for c, w, side in zip(centres, weights, self.cell, strict=True)]
        return OneOfKinds(torch.stack([w.logsumexp(-1) for w in weights], -1), cells)


class KindsFilter(nn.Module):
    """The filter over the cells of all kinds, for a model whose latent is ``(kind, value)``.

    ``grids`` are those of the kinds' values, each with the prior within its kind
    (:func:`bayesmeta.inference.grid.grid`); ``log_weights [K]`` is the log prior of the kinds, up to a constant. The
    error is that of the grids.
    """

    cell: Tensor

    def __init__(self, model: TaskModel, log_weights: Float[Tensor, "K"], grids: Sequence[FiniteFilter]) -> None:
        super().__init__()
        kinds = [torch.cat([g.points.new_full((len(g.points), 1), k), g.points], -1) for k, g in enumerate(grids)]
        joint = [weight + g.log_weights for weight, g in zip(log_weights.log_softmax(-1), grids, strict=True)]
        x_dim, y_dim = grids[0].x_dim, grids[0].y_dim
        self.cells = FiniteFilter(torch.cat(kinds), torch.cat(joint), model.log_likelihood, x_dim=x_dim, y_dim=y_dim)
        self.register_buffer("cell", torch.stack([g.cell for g in grids]))
        self.sizes = tuple(len(g.points) for g in grids)

    def init(self, batch: int) -> KindsBelief:
        return self._belief(self.cells.init(batch))

    def update(self, belief: KindsBelief, data: Context) -> KindsBelief:
        """The belief after also seeing ``data``. Raises ValueError on data of a wrong shape or not finite."""
        return self._belief(self.cells.update(self._weighted(belief), data))

    def scan(self, belief: KindsBelief, data: Context) -> KindsBelief:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        return self._belief(self.cells.scan(self._weighted(belief), data))

    def _belief(self, weighted: Weighted) -> KindsBelief:
        return KindsBelief(weighted.points, weighted.log_weights, self.cell, self.sizes)

    def _weighted(self, belief: KindsBelief) -> Weighted:
        return Weighted(belief.points, belief.log_weights, self.cells.cell)
