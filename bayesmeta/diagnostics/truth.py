"""What a family knows about itself: the exact posterior over its parameters, and returns to compare with."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.inference.grid import grid
from bayesmeta.tasks.point_goal import PointGoal, half_circle
from bayesmeta.types import Inference, TaskFamily

CELLS = 200  # per side of the goal grid: a cell is as wide as the reward's noise in the family's model


@runtime_checkable
class KnowsPosterior(Protocol):
    """A family that ships the exact posterior over its own parameters."""

    @property
    def exact(self) -> Inference: ...


@runtime_checkable
class KnowsReturns(Protocol):
    """A family that knows what agents other than the learner would get in its tasks, by name: ``oracle``, ``still``."""

    def reference_returns(self, params: Tensor) -> dict[str, Tensor]: ...


def exact_posterior(family: TaskFamily) -> Inference | None:
    """The exact filter over the family's parameters, or None.

    Point robot: the goal on a grid of 200 x 200 cells or, sparse, among the goals of the half circle, believing rewards
    to 0.01, the noise of ``PointGoalModel``. The simulator has none, so that this is the limit up to a cell.
    """
    if isinstance(family, KnowsPosterior):
        return family.exact
    if not isinstance(family, PointGoal):
        return None
    x_dim, y_dim = family.spec.x_dim, family.spec.y_dim
    if family.sparse:
        goals = half_circle()
        return FiniteFilter(goals, torch.zeros(len(goals)), family.model.log_likelihood, x_dim=x_dim, y_dim=y_dim)
    return grid(family.model, -torch.ones(2), torch.ones(2), (CELLS, CELLS), x_dim=x_dim, y_dim=y_dim)


def reference_returns(family: TaskFamily, params: Tensor) -> dict[str, Tensor]:
    """The family's reference returns of these tasks, by name; none where it knows none."""
    return family.reference_returns(params) if isinstance(family, KnowsReturns) else {}
