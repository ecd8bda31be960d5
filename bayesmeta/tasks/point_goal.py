"""Point robot: move in the plane to a goal that only the reward reveals. Pure tensors, thousands of tasks at once."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.task_model import TaskModel
from bayesmeta.tasks.base import TaskVectorEnv
from bayesmeta.tasks.checks import checked_params
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec

STEP = 0.1  # a full action moves each coordinate by this much
GOAL_RADIUS = 0.2
_ANGLES = 100  # the sparse variant's goals, 80 to train on and 20 to test
# Added to the seed of the starts: goals that a user draws with the same seed must not be where the robots start.
_STARTS = 0x5AFE


class PointGoal:
    """``point_goal-v1``: reach a goal in the plane within ``horizon`` steps (Rakelly et al. 2019; their public code).

    State and observation: the position. Action in [-1, 1]^2, scaled by 0.1 and added to the position, unbounded plane.

    ``sparse=False``: start and goal uniform on [-1, 1]^2 (the start anew in every episode), reward ``-||s' - g||``.
    ``ood`` goals lie in the frame between the squares of half-width 1 and 1.5.

    ``sparse=True``: start at the origin, goals at 100 equally spaced angles of the upper unit half circle, split 80/20
    by a fixed shuffle, reward ``1 - ||s' - g||`` within 0.2 of the goal, else 0. The dense reward (``-||s' - g||``,
    plus 1 inside the radius) is the ``training_reward`` that learners may use in meta-training; inference never sees
    it. ``ood`` goals lie on the lower half circle.

    Differences from the published code: actions are normalised to [-1, 1]; goals of the dense variant are drawn from
    the continuous square in every split instead of a fixed list; no global random state is reset. The shuffle of the
    sparse goals is this library's own.
    """

    def __init__(self, *, sparse: bool = False, horizon: int = 20) -> None:
        self.sparse = sparse
        name = "point_goal_sparse-v1" if sparse else "point_goal-v1"
        self.spec = Spec.control(name, obs_dim=2, action_dim=2, horizon=horizon, param_names=("goal_x", "goal_y"))

    @property
    def model(self) -> "PointGoalModel":
        """The true generative model of rewards (see its note on the noiseless limit)."""
        return PointGoalModel(sparse=self.sparse)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Goals. The finite splits of the sparse variant are drawn without replacement while they last."""
        ood = is_ood(self.spec, split)
        if not self.sparse:
            return _frame(n, generator) if ood else _uniform(n, generator)
        if ood:
            return _on_circle(math.pi + math.pi * torch.rand(n, generator=generator))
        shuffled = torch.randperm(_ANGLES, generator=torch.Generator().manual_seed(0))
        pool = shuffled[:80] if split == "train" else shuffled[80:]
        order = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(math.ceil(n / len(pool)))])
        return _on_circle(pool[order[:n]] * (math.pi / (_ANGLES - 1)))

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> "PointGoalEnv":
        """The tasks as one vector environment. Raises ValueError unless ``params`` is a finite ``[B, 2]``."""
        goals = checked_params(params, self.spec).to(device)
        return PointGoalEnv(goals, sparse=self.sparse, horizon=self.spec.horizon)

    def oracle_action(self, obs: Float[Tensor, "*b 2"], params: Float[Tensor, "*#b 2"]) -> Float[Tensor, "*b 2"]:
        """The optimal action given the goal: straight for it, each coordinate as fast as it can."""
        return ((params - obs) / STEP).clamp(-1.0, 1.0)

    def reference_returns(self, params: Float[Tensor, "B 2"], starts: int = 256) -> dict[str, Float[Tensor, "B"]]:
        """Expected return per task of the ``oracle`` and of standing ``still``, over fixed uniform starts."""
        generator = torch.Generator().manual_seed(0)
        position = torch.zeros(1, 2) if self.sparse else _uniform(starts, generator)
        position = position.to(params.device).expand(len(params), -1, 2)
        goal = params.unsqueeze(1)
        still = self.spec.horizon * _reward(position, goal, self.sparse).mean(1)
        oracle = torch.zeros_like(still)
        for _ in range(self.spec.horizon):
            position = position + STEP * self.oracle_action(position, goal)
            oracle = oracle + _reward(position, goal, self.sparse).mean(1)
        return {"oracle": oracle, "still": still}


class PointGoalEnv(TaskVectorEnv):
    """``B`` point robots, one goal each."""

    def __init__(self, goals: Float[Tensor, "B 2"], *, sparse: bool, horizon: int) -> None:
        super().__init__(len(goals), obs_dim=2, action_dim=2, horizon=horizon, device=goals.device)
        self._goals, self._sparse = goals, sparse
        self._generator = torch.Generator().manual_seed(_STARTS)
        self._position, self._t = torch.zeros_like(goals), -1  # not reset yet

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict]:
        """All robots at their starts. ``seed`` restarts the stream that draws them."""
        if seed is not None:
            self._generator.manual_seed(_STARTS + seed)
        start = torch.zeros(self.num_envs, 2) if self._sparse else _uniform(self.num_envs, self._generator)
        self._position, self._t = start.to(self.device), 0
        return self._position, {}

    def step(self, action: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict]:
        """One step of every robot. Robots whose episode is over stay where they are and are paid nothing."""
        action = self.checked_action(action)
        if self._t < 0:
            raise RuntimeError("PointGoalEnv.step: expected an episode to have started; call reset() first")
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        if self._t == self.horizon:
            return self._position, torch.zeros_like(self._position[:, 0]), never, ~never, {}
        self._position = self._position + STEP * action
        self._t += 1
        reward = _reward(self._position, self._goals, self._sparse)
        info: dict[str, Tensor] = {}
        if self._sparse:
            distance = (self._position - self._goals).norm(dim=-1)
            info["training_reward"] = (distance <= GOAL_RADIUS).float() - distance
        return self._position, reward, never, never | (self._t == self.horizon), info


class PointGoalModel(TaskModel):
    """``g ~ prior``, ``r | s, a, g ~ N(reward(s + 0.1 a, g), noise)``.

    The simulator is noiseless, for which the posterior is a set of measure zero after two transitions; ``noise`` is the
    resolution at which the reward is believed, 0.01 unless said otherwise. The prior is the training distribution,
    uniform on [-1, 1]^2; the sparse goals are finitely many and have no density (use a finite-hypothesis filter).
    """

    def __init__(self, *, sparse: bool = False, noise: float = 0.01) -> None:
        super().__init__()
        self.sparse, self.noise = sparse, noise

    def prior(self, batch: int) -> Distribution:
        if self.sparse:
            raise NotImplementedError("the sparse goals are finitely many angles: use a finite-hypothesis filter")
        return dist.Uniform(-torch.ones(batch, 2), torch.ones(batch, 2)).to_event(1)

    def likelihood(self, z: Float[Tensor, "*S B n 2"], data: Context) -> Distribution:
        position = data.x[..., :2] + STEP * data.x[..., 2:]
        return dist.Normal(_reward(position, z, self.sparse).unsqueeze(-1), self.noise, validate_args=False).to_event(1)


def half_circle(count: int = _ANGLES) -> Float[Tensor, "count 2"]:
    """The sparse variant's goals in order of their angle."""
    return _on_circle(torch.arange(count) * (math.pi / (count - 1)))


def _reward(position: Tensor, goal: Tensor, sparse: bool) -> Tensor:
    # By coordinates: six times as fast as a norm over an axis of two, which is most of what an exact belief costs.
    distance = torch.hypot(position[..., 0] - goal[..., 0], position[..., 1] - goal[..., 1])
    return torch.where(distance <= GOAL_RADIUS, 1.0 - distance, 0.0) if sparse else -distance


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return 2.0 * torch.rand(n, 2, generator=generator) - 1.0


def _frame(n: int, generator: torch.Generator) -> Tensor:
    """Uniform between the squares of half-width 1 and 1.5, by rejection."""
    candidates = 1.5 * _uniform(8 * n + 64, generator)
    return candidates[candidates.abs().amax(-1) > 1.0][:n]


def _on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)
