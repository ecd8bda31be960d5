"""Tables of probabilities with Dirichlet rows: the transition function whose posterior is counting."""

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Dirichlet,
    Distribution,
    biject_to,
    constraints,
    kl_divergence,
    register_kl,
    transform_to,
)
from torch.distributions import transforms as t

from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class _Tables(constraints.Constraint):
    """``[rows * columns]`` numbers that are ``rows`` points of a simplex, one after another."""

    event_dim = 1

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns

    def check(self, value: Tensor) -> Tensor:
        return constraints.simplex.check(value.unflatten(-1, (self.rows, self.columns))).all(-1)


@transform_to.register(_Tables)
@biject_to.register(_Tables)
def _stick_breaking(support: _Tables) -> t.Transform:
    """Each row by breaking a stick: ``columns - 1`` unconstrained numbers per row, on which samplers move."""
    rows, columns = support.rows, support.columns
    free = torch.Size((rows, columns - 1))
    return t.ComposeTransform(
        [
            t.ReshapeTransform(torch.Size((free.numel(),)), free),
            t.IndependentTransform(t.StickBreakingTransform(), 1),
            t.ReshapeTransform(torch.Size((rows, columns)), torch.Size((rows * columns,))),
        ]
    )


class DirichletRows(TorchDistribution):
    """Independent Dirichlet rows of a table, flattened: ``concentration [*b, X, Y]`` > 0, event ``[X * Y]``.

    The density is the product of the rows' Dirichlet densities, each with respect to its first ``Y - 1`` coordinates.
    """

    arg_constraints: ClassVar[dict] = {"concentration": constraints.independent(constraints.positive, 2)}
    has_rsample = True

    def __init__(self, concentration: Float[Tensor, "*b X Y"]) -> None:
        self.concentration = concentration
        self.rows = Dirichlet(concentration, validate_args=False)
        event = torch.Size((concentration.shape[-2] * concentration.shape[-1],))
        super().__init__(concentration.shape[:-2], event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return _Tables(*self.concentration.shape[-2:])

    @property
    def mean(self) -> Tensor:
        return self.rows.mean.flatten(-2)

    @property
    def variance(self) -> Tensor:
        return self.rows.variance.flatten(-2)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "DirichletRows":
        return DirichletRows(self.concentration.expand(*batch_shape, *self.concentration.shape[-2:]))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.rows.rsample(torch.Size(sample_shape)).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.rows.log_prob(value.unflatten(-1, self.concentration.shape[-2:])).sum(-1)

    def entropy(self) -> Tensor:
        """Nats."""
        return self.rows.entropy().sum(-1)


@register_kl(DirichletRows, DirichletRows)
def _kl_dirichlet_rows(p: DirichletRows, q: DirichletRows) -> Tensor:
    return kl_divergence(p.rows, q.rows).sum(-1)


class DirichletModel(TaskModel):
    """A table with rows ``z_x ~ Dirichlet(concentration_x)``; a datum in row ``x`` is ``y ~ Categorical(z_x)``.

    ``x [B, N, X]`` is the one-hot code of the row, for a transition function that of the pair (state, action);
    ``y [B, N, Y]`` is the one-hot code of the outcome, the next state. ``z [B, X * Y]`` is the table row by row, so
    that entry ``x Y + y`` is ``p(y | x)``. ``concentration [X, Y]`` > 0.
    """

    concentration: Tensor

    def __init__(self, concentration: Float[Tensor, "X Y"]) -> None:
        super().__init__()
        if not (concentration > 0).all() or concentration.shape[-1] < 2:
            raise ValueError(
                f"DirichletModel: expected a positive concentration of two or more outcomes in every row, got "
                f"{concentration}"
            )
        self.register_buffer("concentration", concentration)

    def prior(self, batch: int) -> Distribution:
        return DirichletRows(self.concentration.expand(batch, -1, -1))

    def likelihood(self, z: Float[Tensor, "*S B 1 M"], data: Context) -> Distribution:
        table = z.squeeze(-2).unflatten(-1, self.concentration.shape)
        # Padding need not be the code of a row, but the gradient of log 0 is NaN even where it is masked out.
        coded = (data.x >= 0).all(-1) & (data.x.sum(-1) == 1)
        first = torch.eye(data.x.shape[-1], dtype=data.x.dtype, device=data.x.device)[0]
        x = torch.where((data.mask | coded).unsqueeze(-1), data.x, first)
        # Logits, because torch rounds probabilities below 1e-7 up, and small concentrations draw smaller ones.
        # No validation, because padding of y need not be one-hot.
        return dist.OneHotCategorical(logits=(x.to(table.dtype) @ table).log(), validate_args=False)
