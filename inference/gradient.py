"""Gradient descent from a prior's mean: MAML's adaptation as inference (Finn et al. 2017, Grant et al. 2018).

The belief is the point that a few steps reach. On a quadratic loss that is exactly the posterior mode under an implicit
Gaussian prior (Santos 1996; :mod:`bayesmeta.inference.implicit_prior`); elsewhere it is so near the start only.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from bayesmeta.inference.descent import SGD, InnerOptimizer, descend
from bayesmeta.inference.evidence import checked
from bayesmeta.inference.low_rank import low_rank_outputs, worthwhile
from bayesmeta.inference.predictive import log_predictive, per_datum
from bayesmeta.models.batch_norm import statistics_from
from bayesmeta.models.network_model import NetworkModel, mixes_rows
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, concat

Objective = Literal["nll", "joint", "squared_error"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Adapted:
    """Where descent on the data seen so far has arrived, ``z [B, D]``, and the data.

    They are kept because descent depends on its path: with more data it begins anew from the prior's mean.
    """

    z: Float[Tensor, "B D"]
    data: Context

    @property
    def posterior(self) -> Distribution:
        return dist.Delta(self.z, event_dim=1)


class GradientDescent(nn.Module):
    r"""``z_0 = E[z]`` under the model's prior, ``z_{j+1} = z_j - rate * grad loss(z_j)``, ``steps`` times.

    ``objective`` is the loss: ``"nll"``, minus the log-likelihood; ``"joint"``, minus the log joint density, whose
    minimum is the posterior mode; ``"squared_error"`` to the likelihood's mean, as published. ``reduction`` says
    whether a task's data are summed, as Bayes' rule has it, or averaged, as is published: only the sum knows how many
    they are. The mean of ``"joint"`` is its sum over their number.

    Works on any :class:`TaskModel` whose latent ranges over all of R^D. Gradients flow through all steps into the model
    and the optimiser, unless ``first_order`` holds the inner gradients constant. ``checkpointed`` bounds the memory
    (:func:`~bayesmeta.inference.descent.descend`). Obeys the filter law because it starts anew from all data; does not
    contract, being a point.
    """

    def __init__(
        self,
        model: TaskModel,
        *,
        x_dim: int,
        y_dim: int,
        steps: int = 1,
        optimizer: InnerOptimizer | None = None,
        objective: Objective = "nll",
        reduction: Reduction = "sum",
        first_order: bool = False,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        require_real("GradientDescent", model)
        if steps < 0:
            raise ValueError(f"GradientDescent: expected steps >= 0, got {steps}")
        if objective not in ("nll", "joint", "squared_error") or reduction not in ("sum", "mean"):
            raise ValueError(
                f"GradientDescent: expected objective nll, joint or squared_error and reduction sum or mean, got "
                f"{objective!r} and {reduction!r}"
            )
        self.model, self.optimizer = model, SGD() if optimizer is None else optimizer
        self.x_dim, self.y_dim, self.steps = x_dim, y_dim, steps
        self.objective, self.reduction = objective, reduction
        self.first_order, self.checkpointed = first_order, checkpointed

    def init(self, batch: int) -> Adapted:
        """The prior's mean."""
        z = self.model.prior(batch).mean
        return Adapted(z, Context.empty(batch, self.x_dim, self.y_dim, z.device))

    def update(self, belief: Adapted, data: Context) -> Adapted:
        """Descent on the belief's data and ``data`` together, from the prior's mean.

        Raises ValueError on data of a wrong shape or not finite, and on padding where a network mixes rows.
        """
        data = checked("GradientDescent", data, batch=len(belief.z), x_dim=self.x_dim, y_dim=self.y_dim)
        refuse_padding("GradientDescent", self.model, data)
        seen = concat([belief.data, data])
        start = self.model.prior(seen.batch).mean
        if not seen.size:
            return Adapted(start, seen)
        return Adapted(
            descend(
                lambda z: self.loss(z, seen),
                start,
                self.optimizer,
                self.steps,
                first_order=self.first_order,
                checkpointed=self.checkpointed,
            ),
            seen,
        )

    def log_predictive(self, support: Context, query: Context, *, transductive: bool = True) -> Float[Tensor, "B Q"]:
        """``log p(y | x, z)`` of the queries at the point that descent on ``support`` reaches; 0 under the mask.

        What an update and the model's likelihood give; where the model is a stack of linear layers and the steps are
        plain ones, without making any task's weights (:mod:`bayesmeta.inference.low_rank`). ``transductive`` says
        whether a network that normalises over rows does so over the queries together, or with the support's
        statistics.
        """
        model = self.model
        if not (isinstance(model, NetworkModel) and worthwhile(model, self.optimizer, support, self.steps)):
            posterior = self.update(self.init(support.batch), support).posterior
            return log_predictive(model, posterior, query, support=None if transductive else support)
        support = checked("GradientDescent", support, batch=query.batch, x_dim=self.x_dim, y_dim=self.y_dim)
        refuse_padding("GradientDescent", model, support)
        first = support.size if mixes_rows(model) and not transductive else None
        with statistics_from(first):
            outputs = low_rank_outputs(
                model,
                lambda out: self.data_loss(model.output(out), support),
                support.x,
                query.x if first is None else torch.cat([support.x, query.x], 1),
                cast(Tensor, self.optimizer.rate),
                self.steps,
                first_order=self.first_order,
            )
        law = model.output(outputs[:, first or 0 :])
        return law.log_prob(query.y).masked_fill(~query.mask, 0.0)

    def loss(self, z: Float[Tensor, "B D"], data: Context) -> Float[Tensor, "B"]:
        """The inner loss of each task."""
        loss = self.data_loss(self.model.likelihood(z.unsqueeze(-2), data), data)
        if self.objective == "joint":
            prior = self.model.log_prior(z)
            loss = loss - (prior / data.mask.sum(1).clamp_min(1) if self.reduction == "mean" else prior)
        return loss

    def data_loss(self, law: Distribution, data: Context) -> Float[Tensor, "B"]:
        """The part of the inner loss that the data have a say in."""
        errors = (data.y - law.mean).square().sum(-1) if self.objective == "squared_error" else -law.log_prob(data.y)
        return (errors * data.mask).sum(1) if self.reduction == "sum" else per_datum(errors, data)


def require_real(owner: str, model: TaskModel) -> None:
    """Raise ValueError unless the model has a prior, whose latent ranges over all of R^D: steps may lead anywhere."""
    prior = model.prior(1)
    if len(prior.event_shape) != 1 or prior.batch_shape != (1,):
        raise ValueError(
            f"{owner}: expected prior(batch) with batch [batch] and event [D], got batch {list(prior.batch_shape)} and "
            f"event {list(prior.event_shape)} for batch 1; `.to_event(1)` makes the last axis the event's"
        )
    support: Any = prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.real and support is not constraints.real_vector:
        raise ValueError(
            f"{owner}: expected a prior over all of R^D, since a step may lead anywhere, got support {prior.support}; "
            f"give the model the logarithm of what is positive, the logit of what lies between bounds"
        )


def refuse_padding(owner: str, model: TaskModel, data: Context) -> None:
    """Raise ValueError where padded rows would change real ones, through a batch normalisation."""
    if not torch.compiler.is_compiling() and mixes_rows(model) and not bool(data.mask.all()):
        raise ValueError(
            f"{owner}: expected no padding, since the network normalises over the rows of a task, got "
            f"{int((~data.mask).sum())} padded rows; give every task as many data, or use LayerNorm or GroupNorm"
        )
