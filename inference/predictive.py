"""What the model predicts for queries, in the form that supervised meta-learners are trained on."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.network_model import inductive
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


def log_predictive(
    model: TaskModel, posterior: Distribution, query: Context, *, support: Context | None = None, draws: int = 1
) -> Float[Tensor, "B N"]:
    """``log 1/L sum_l p(y | x, z_l)`` of each query datum with ``z_l`` from the posterior; 0 where there is none.

    Densities are averaged, never their logarithms. Gradients flow through reparameterised draws; a posterior that is a
    point needs one draw. With ``support`` a network that normalises over rows takes its statistics from those data
    alone; without, from the queries together, which is transduction.
    """
    model = model if support is None else inductive(model, support)
    z = posterior.rsample(torch.Size((draws,))) if posterior.has_rsample else posterior.sample(torch.Size((draws,)))
    log_prob = model.likelihood(z.unsqueeze(-2), query).log_prob(query.y)
    return (log_prob.logsumexp(0) - math.log(draws)).masked_fill(~query.mask, 0.0)


def per_datum(values: Float[Tensor, "B N"], data: Context) -> Float[Tensor, "B"]:
    """Each task's mean over its real data, 0 where it has none."""
    real = data.mask.to(values.dtype)
    return (values * real).sum(1) / real.sum(1).clamp_min(1.0)
