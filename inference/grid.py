"""The posterior of a low-dimensional latent on a regular grid."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.models.task_model import TaskModel

MAX_DIM = 3  # a grid of 100 cells a side has 10^6 of them


def grid(
    model: TaskModel,
    low: Float[Tensor, "D"],
    high: Float[Tensor, "D"],
    cells: Sequence[int],
    *,
    x_dim: int,
    y_dim: int,
) -> FiniteFilter:
    r"""The filter over the centres of ``\prod_d cells_d`` equal boxes that tile ``[low, high]``.

    The density is taken as constant within a box (the midpoint rule), so the error is of second order in the box's side
    over the posterior's standard deviation; mass of the prior outside the box is cut off. Raises ValueError beyond
    ``D = 3``, for an empty box, or where the numbers of cells do not match it.
    """
    if len(low) > MAX_DIM or len(low) != len(cells):
        raise ValueError(
            f"grid: expected one number of cells per dimension and at most {MAX_DIM} dimensions, got {len(cells)} for "
            f"D = {len(low)}; NUTS is the reference in more dimensions"
        )
    if not (low < high).all():
        raise ValueError(f"grid: expected low < high in every dimension, got low = {low}, high = {high}")
    cell = (high - low) / torch.as_tensor(cells, dtype=low.dtype, device=low.device)
    axes = [low[d] + cell[d] * (torch.arange(n, dtype=low.dtype, device=low.device) + 0.5) for d, n in enumerate(cells)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(low))
    log_prior = model.log_prior(points.unsqueeze(1)).squeeze(1)
    return FiniteFilter(points, log_prior, model.log_likelihood, x_dim=x_dim, y_dim=y_dim, cell=cell)
