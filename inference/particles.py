"""Beliefs that are a few points of equal weight, and what they predict with all of them at once."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.cells import Cells
from bayesmeta.models.network_model import inductive
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


@dataclass(frozen=True)
class Particles:
    """``M`` points of each task, ``z [B, M, D]``, and the data that they are conditioned on.

    The data are kept because particles cannot be updated: they begin anew with all that has been seen.
    """

    z: Float[Tensor, "B M D"]
    data: Context

    @property
    def posterior(self) -> Distribution:
        """The points with equal weights."""
        return Cells(self.z, self.z.new_zeros(self.z.shape[:2]), self.z.new_zeros(self.z.shape[-1]))


def log_densities(
    model: TaskModel, z: Float[Tensor, "B M D"], query: Context, *, support: Context | None = None
) -> Float[Tensor, "M B N"]:
    """``log p(y | x, z_m)`` of each query datum at each point; 0 under the mask.

    ``support`` is what a network that normalises over rows takes its statistics from, as in
    :func:`~bayesmeta.inference.predictive.log_predictive`.
    """
    model = model if support is None else inductive(model, support)
    log_prob = model.likelihood(z.transpose(0, 1).unsqueeze(-2), query).log_prob(query.y)
    return log_prob.masked_fill(~query.mask, 0.0)


def log_mixture(log_densities: Float[Tensor, "M *e"]) -> Float[Tensor, "*e"]:
    """``log 1/M sum_m exp(...)``: densities are averaged over all points, never their logarithms."""
    return log_densities.logsumexp(0) - math.log(len(log_densities))


def unmoved_without_data(
    start: Float[Tensor, "B M D"], moved: Float[Tensor, "B M D"], data: Context
) -> Float[Tensor, "B M D"]:
    """``start`` for the tasks that have no real datum, so that no data give the prior belief."""
    return torch.where(data.mask.any(1)[:, None, None], moved, start)
