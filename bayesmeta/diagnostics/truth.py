"""What a family knows about itself: the exact posterior over its parameters, and returns to compare with."""

from typing import Literal, Protocol, runtime_checkable

import torch
from pyro.distributions import Delta
from torch import Tensor

from bayesmeta.collect import collect
from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.inference.grid import grid
from bayesmeta.rl.thompson import Thompson
from bayesmeta.tasks.point_goal import PointGoal, PointGoalModel, half_circle
from bayesmeta.tasks.world import World
from bayesmeta.train import seeded
from bayesmeta.types import Explorer, Inference, TaskFamily

_THOMPSON_CELLS = 50  # the belief of a whole trial takes 16 times as long with CELLS
_RESAMPLING: dict[str, Literal["contradicted", "episode"]] = {
    "thompson_redrawn": "contradicted",
    "thompson_kept": "episode",
}
CELLS = 200  # per side of the goal grid: a cell is as wide as the reward's noise in the family's model


@runtime_checkable
class KnowsPosterior(Protocol):
    """A family that ships the exact posterior over its own parameters, or None where an option leaves none."""

    @property
    def exact(self) -> Inference | None: ...


@runtime_checkable
class KnowsReturns(Protocol):
    """A family that knows what agents other than the learner would get in its tasks, by name: ``oracle``, ``still``."""

    def reference_returns(self, params: Tensor) -> dict[str, Tensor]: ...


def exact_posterior(family: TaskFamily, cells: int = CELLS) -> Inference | None:
    """The exact filter over the family's parameters, or None.

    Point robot: the goal on a grid of ``cells`` x ``cells`` or, sparse, among the goals of the half circle, believing
    rewards to 0.01, the noise of ``PointGoalModel``, or to the side of a cell if that is more. The simulator
    has no noise, so that this is the limit up to a cell.
    """
    if isinstance(family, KnowsPosterior):
        return family.exact
    if not isinstance(family, PointGoal):
        return None
    x_dim, y_dim = family.spec.x_dim, family.spec.y_dim
    if family.sparse:
        goals = half_circle()
        return FiniteFilter(goals, torch.zeros(len(goals)), family.model.log_likelihood, x_dim=x_dim, y_dim=y_dim)
    model = PointGoalModel(noise=max(0.01, 2 / cells))
    return grid(model, -torch.ones(2), torch.ones(2), (cells, cells), x_dim=x_dim, y_dim=y_dim)


def reference_returns(
    family: TaskFamily, params: Tensor, *, episodes: int, seed: int, split: str = "all"
) -> dict[str, Tensor]:
    """The family's reference returns of these tasks, by name, ``[B]`` or by episode ``[B, K]``; none if it knows none.

    Beside the family's own, posterior sampling with exact inference and the optimal policy given the task, which is
    what an agent that samples z and has learned everything else would get. On the point robot ``thompson``; in a world
    the return after one episode of exploration of an agent whose prior are the problems of ``split``:
    ``thompson_redrawn``, which draws a problem anew when its own is contradicted, and ``thompson_kept``, one draw an
    episode (:class:`~bayesmeta.rl.thompson.Thompson`).
    """
    found = family.reference_returns(params) if isinstance(family, KnowsReturns) else {}
    if isinstance(family, PointGoal) and (exact := exact_posterior(family, cells=_THOMPSON_CELLS)) is not None:
        explorer = Explorer(lambda obs, goal: Delta(family.oracle_action(obs, goal), event_dim=1))
        with seeded(seed):
            trial = collect(family.env(params.cpu()), explorer, exact, family.spec, episodes=episodes, seed=seed)
        found = {**found, "thompson": trial.returns}
    if isinstance(family, World):
        generator, sampling = torch.Generator().manual_seed(seed), Thompson(family, family.identifiers(split))
        for name, resample in _RESAMPLING.items():
            found[name] = sampling.trial(params.cpu(), resample=resample, generator=generator).returns
    return found
