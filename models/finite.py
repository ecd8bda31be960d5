"""Finitely many hypotheses with any likelihood."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.cells import Cells
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class FiniteModel(TaskModel):
    """``z`` is one of ``H`` distinct points, ``y_n ~ emission(z, x_n)``.

    ``points [H, D]``, ``log_weights [H]`` up to a constant; ``emission(z [*S, B, 1, D], x [B, N, X])`` returns a
    distribution with batch ``[*S, B, N]`` and event ``[Y]``. The latent is discrete: NUTS does not apply.
    """

    points: Tensor
    log_weights: Tensor
    cell: Tensor

    def __init__(
        self,
        points: Float[Tensor, "H D"],
        log_weights: Float[Tensor, "H"],
        emission: Callable[[Tensor, Tensor], Distribution],
    ) -> None:
        super().__init__()
        if points.unique(dim=0).shape != points.shape:
            raise ValueError(
                "FiniteModel: expected distinct points, got duplicates; add up the weights of equal points"
            )
        self.register_buffer("points", points)
        self.register_buffer("log_weights", log_weights)
        self.register_buffer("cell", torch.zeros_like(points[0]))
        self.emission = emission

    def prior(self, batch: int) -> Distribution:
        return Cells(self.points.expand(batch, -1, -1), self.log_weights.expand(batch, -1), self.cell)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return self.emission(z, data.x)
