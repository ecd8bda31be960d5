"""Which points of the plane lie inside an unknown circle, seen through labels of which a few are wrong."""

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class CircleModel(TaskModel):
    """Class 1 inside the circle ``z = (centre_x, centre_y, radius)``, class 0 outside, before a label is flipped.

    ``x [B, N, 2]``, ``y [B, N, 2]`` one-hot. The prior is uniform on the box ``[low, high]``; a label is flipped with
    probability ``flip``, 0 < ``flip`` < 1/2. The box is tiled by ``resolution`` cells a side, and the circle is that of
    the middle of the cell that ``z`` lies in (:meth:`circle`): the likelihood, which jumps where a point crosses the
    edge, is then constant in every cell, and a posterior on these cells has no error.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Float[Tensor, "3"], high: Float[Tensor, "3"], *, flip: float, resolution: int) -> None:
        super().__init__()
        if not (0 < flip < 0.5 and (low < high).all() and low[2] > 0):
            raise ValueError(
                f"CircleModel: expected 0 < flip < 1/2, low < high and a positive radius, got {flip}, {low} and {high}"
            )
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.flip, self.resolution = flip, resolution

    def prior(self, batch: int) -> Distribution:
        low, high = self.low.expand(batch, -1), self.high.expand(batch, -1)
        # Unvalidated: outside the box the log-density is -inf, not an error.
        return dist.Uniform(low, high, validate_args=False).to_event(1)

    def likelihood(self, z: Float[Tensor, "*S B 1 3"], data: Context) -> Distribution:
        positive = self.flip + (1.0 - 2.0 * self.flip) * inside(self.circle(z), data.x).to(z)
        return dist.OneHotCategorical(probs=torch.stack([1.0 - positive, positive], -1), validate_args=False)

    def circle(self, z: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s 3"]:
        """Centre and radius rounded to the middle of their cell, beyond the box as within it."""
        low, high = self.low.to(z), self.high.to(z)  # a family's data are on any device
        cell = (high - low) / self.resolution
        return low + (((z - low) / cell).floor() + 0.5) * cell


def inside(circle: Float[Tensor, "*S B 1 3"], x: Float[Tensor, "B N 2"]) -> Bool[Tensor, "*S B N"]:
    """Whether the points are inside the circle."""
    return (x - circle[..., :2]).square().sum(-1) < circle[..., 2].square()


def area_within(circle: Float[Tensor, "G 3"], half: float, nodes: int = 64) -> Float[Tensor, "G"]:
    """Area of each circle's part inside the square ``[-half, half]^2``.

    The chords at ``centre_x + radius sin(t)``, cut off at the square, by the midpoint rule in ``t``: exact for a circle
    inside, otherwise the error is of second order in ``1 / nodes``.
    """
    x, y, radius = (v.unsqueeze(-1) for v in circle.unbind(-1))
    left, right = (((side - x) / radius).clamp(-1.0, 1.0).asin() for side in (-half, half))
    middles = (torch.arange(nodes, dtype=circle.dtype, device=circle.device) + 0.5) / nodes
    reach = radius * (left + (right - left) * middles).cos()
    chord = (y + reach).clamp(-half, half) - (y - reach).clamp(-half, half)
    return (chord * reach * (right - left)).mean(-1)
