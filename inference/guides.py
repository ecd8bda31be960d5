"""An inference procedure as a Pyro guide."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.infer import ELBO, RenyiELBO
from pyro.infer.util import get_dependent_plate_dims, torch_sum
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.distributions import OneRow, without_row
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, Inference, concat


def elbo_loss(elbo: ELBO, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Float[Tensor, ""]:
    """Minus the ELBO of any of Pyro's ELBO objects as a differentiable scalar, without the global parameter store.

    Pyro's Renyi bound only writes gradients of parameters in its store; here it is the same bound with the gradient by
    reparameterisation (Li and Turner 2016, equations 14 and 18), so the guide must be reparameterised.
    """
    if isinstance(elbo, RenyiELBO):
        return _renyi_loss(elbo, model, guide, *args)
    differentiable: Any = elbo
    return differentiable.differentiable_loss(model, guide, *args)


def _renyi_loss(elbo: RenyiELBO, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Tensor:
    """``-log mean_k w_k^(1 - alpha) / (1 - alpha)``, with one weight per task where tasks are a common plate."""
    weights = []
    for model_trace, guide_trace in elbo._get_traces(model, guide, args, {}):
        sites = [(1.0, site) for site in model_trace.nodes.values()] + [
            (-1.0, site) for site in guide_trace.nodes.values()
        ]
        sites = [(sign, site) for sign, site in sites if site["type"] == "sample"]
        dims = get_dependent_plate_dims([site for _, site in sites])
        weights.append(sum(sign * torch_sum(site["log_prob"], dims) for sign, site in sites))
    log_weights = (1.0 - elbo.alpha) * (weights[0] if elbo.vectorize_particles else torch.stack(weights))
    bound = (log_weights.logsumexp(0) - math.log(elbo.num_particles)) / (1.0 - elbo.alpha)
    return -bound.sum()


def posterior_guide(posterior: Distribution, kl_weight: float = 1.0) -> Tensor:
    """The guide's statement for a posterior of batch ``[B]``: site ``z`` with batch ``[B, 1]``, event ``[D]``."""
    with pyro.plate("task", posterior.batch_shape[0], dim=-2), pyro.poutine.scale(scale=kl_weight):
        return pyro.sample("z", OneRow(posterior))


def guide(inference: Inference, kl_weight: float = 1.0) -> Callable[..., Tensor]:
    """The guide ``q(z | data)`` of a procedure, for the programs of :mod:`bayesmeta.models.task_model`.

    Gradients flow through the belief into the procedure's parameters. Extra arguments of the model are ignored.
    """

    def program(data: Context, **_: Any) -> Tensor:
        belief = inference.update(inference.init(data.batch), data)
        return posterior_guide(belief.posterior, kl_weight)

    return program


@dataclass(frozen=True)
class GuideBelief:
    """What a guide says of the data seen so far, kept because a guide cannot be updated: it is run anew on all."""

    data: Context
    posterior: Distribution


class FromGuide:
    """A Pyro guide ``guide(data)`` of a user's own as an inference procedure: its site ``z`` is the belief.

    The guide is one of :class:`~bayesmeta.models.task_model.TaskModel`'s program: plate ``task`` at dim -2, site ``z``
    with batch ``[B, 1]``, event ``[D]``, and no other latent site, whose presence would make the density of ``z`` alone
    unknown. Without data the belief is the model's prior, and the guide is not run.
    """

    def __init__(self, model: TaskModel, guide: Callable[[Context], Any], *, x_dim: int, y_dim: int) -> None:
        self.model, self.guide = model, guide
        self.x_dim, self.y_dim = x_dim, y_dim

    def init(self, batch: int) -> GuideBelief:
        return GuideBelief(Context.empty(batch, self.x_dim, self.y_dim), self.model.prior(batch))

    def update(self, belief: GuideBelief, data: Context) -> GuideBelief:
        """The guide's posterior given all data. Raises ValueError where its sites are not as they should be."""
        seen = concat([belief.data, data])
        with torch_seeded(0):  # the trace draws z, which is not used
            trace = pyro.poutine.trace(self.guide).get_trace(seen)
        sites: dict[str, Any] = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
        latents = [name for name, site in sites.items() if not (site["is_observed"] or site_is_subsample(site))]
        law: Any = sites["z"]["fn"] if latents == ["z"] else None
        if law is None or tuple(law.batch_shape) != (seen.batch, 1):
            shape = "" if law is None else f" with batch {list(law.batch_shape)}"
            raise ValueError(
                f"FromGuide: expected a guide whose one latent site is 'z' with batch [{seen.batch}, 1] and event [D], "
                f"got {', '.join(map(repr, latents)) or 'no site'}{shape}; sample z inside plate('task', B, dim=-2)"
            )
        return GuideBelief(seen, without_row(law))
