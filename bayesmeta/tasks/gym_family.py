"""A user's own ``gymnasium.Env`` whose task can be set, as a family of tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from jaxtyping import Bool, Float
from torch import Tensor

from bayesmeta.tasks.base import TaskVectorEnv
from bayesmeta.tasks.checks import checked_params
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Spec


class GymFamily:
    """Tasks on any ``gymnasium.Env`` that can be told which task it is.

    ``make()`` builds one environment: a Box observation ``[S]`` and a bounded Box action ``[A]``, onto which actions in
    [-1, 1] are mapped linearly. ``set_task(env, task)`` gives it a task, a float32 array ``[M]``; it is called before
    every ``reset``, which must keep the task and must not show it in the observation. ``sample(n, split, generator)``
    returns tasks ``[n, M]`` of a split, with no randomness but the generator's, and raises ValueError for a split it
    does not have. ``param_names`` are the ``M`` columns. Episodes end after ``horizon`` steps, or where the environment
    ends them. ``dynamics_vary`` says that the task changes the next observation and not the reward alone. A step whose
    info has a ``training_reward`` shows it to learners in place of the reward; inference never sees it.

    ``make`` is called once here, to see the spaces, and once per task of every vector environment, so whatever is slow
    to load belongs outside it. The environments run one after another in this process.

    Raises ValueError for spaces of another kind, an empty ``param_names`` or a ``horizon`` below 1.
    """

    def __init__(
        self,
        *,
        name: str,
        make: Callable[[], gymnasium.Env],
        set_task: Callable[[Any, np.ndarray], object],
        sample: Callable[[int, str, torch.Generator], Any],
        param_names: tuple[str, ...],
        horizon: int,
        dynamics_vary: bool = False,
    ) -> None:
        if not param_names or horizon < 1:
            raise ValueError(
                f"GymFamily {name}: expected a name for each task parameter and a horizon of at least 1 step, got "
                f"param_names={param_names!r} and horizon={horizon}"
            )
        self._make, self._set_task, self._sample = make, set_task, sample
        env = make()
        obs_dim, action_dim = _checked_spaces(name, env)
        env.close()
        self.spec = Spec.control(
            name,
            obs_dim=obs_dim,
            action_dim=action_dim,
            horizon=horizon,
            param_names=tuple(param_names),
            dynamics_vary=dynamics_vary,
        )

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Tasks of a split. Raises ValueError for an unknown split, and for what is not ``n`` rows of ``M`` numbers."""
        is_ood(self.spec, split)
        params = torch.as_tensor(self._sample(n, split, generator), dtype=torch.float32)
        if params.shape != (n, self.spec.param_dim):
            raise ValueError(
                f"{self.spec.name}: expected sample({n}, {split!r}, generator) to return [{n}, {self.spec.param_dim}], "
                f"a row per task with columns {self.spec.param_names}, got {tuple(params.shape)}"
            )
        return params

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> "GymTaskEnv":
        """The tasks as one vector environment. Raises ValueError unless ``params`` is a finite ``[B, M]``."""
        tasks = checked_params(params, self.spec).detach().cpu().numpy().astype(np.float32)
        return GymTaskEnv([self._make() for _ in tasks], tasks, self._set_task, self.spec, device)


class GymTaskEnv(TaskVectorEnv):
    """``B`` environments, one task each, stepped one after another.

    Row ``b`` is reset with a seed that depends on the seed given and on ``b`` alone; without one its own random stream
    goes on (the very first reset counts as seed 0). A row whose episode is over is not stepped. Whatever an environment
    raises comes out as a RuntimeError that names the row and its task, with the original as its cause.
    """

    def __init__(
        self,
        envs: list[gymnasium.Env],
        tasks: np.ndarray,
        set_task: Callable[[Any, np.ndarray], object],
        spec: Spec,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(len(envs), spec.obs_dim, spec.action_dim, spec.horizon, device)
        self._envs, self._tasks, self._set_task, self._spec = envs, tasks, set_task, spec
        space = envs[0].action_space
        assert isinstance(space, Box)
        self._low, self._high, self._dtype = space.low, space.high, space.dtype
        self._middle = (space.high.astype(np.float64) + space.low) / 2
        self._half = (space.high.astype(np.float64) - space.low) / 2
        self._elapsed = -1  # not reset yet

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float[Tensor, "B S"], dict[str, Any]]:
        """Set every row's task and start an episode; ``options`` go to every row."""
        if seed is None and self._elapsed < 0:
            seed = 0
        self._obs = np.zeros((self.num_envs, self._spec.obs_dim), np.float32)
        self._terminated = np.zeros(self.num_envs, bool)
        self._truncated = np.zeros(self.num_envs, bool)
        for b, env in enumerate(self._envs):
            with self._named(b, "reset"):
                self._set_task(env, self._tasks[b].copy())
                own = None if seed is None else int(np.random.SeedSequence([seed, b]).generate_state(1)[0])
                self._observe(b, env.reset(seed=own, options=options)[0])
        self._elapsed = 0
        return self._tensor(self._obs), {}

    def step(
        self, action: Any
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B"], Bool[Tensor, "B"], Bool[Tensor, "B"], dict[str, Any]]:
        """One step of every row that is still running; ``info["training_reward"]`` is the reward or its stand-in."""
        if self._elapsed < 0:
            raise RuntimeError(f"{self._spec.name}: expected an episode to have started; call reset() before step()")
        command = self._command(self.checked_action(action))
        reward, shaped = np.zeros((2, self.num_envs), np.float32)
        for b in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
            with self._named(b, "step"):
                obs, reward[b], self._terminated[b], self._truncated[b], info = self._envs[b].step(command[b])
                shaped[b] = info.get("training_reward", reward[b])
                self._observe(b, obs)
        self._elapsed += 1
        if self._elapsed == self.horizon:
            self._truncated |= ~self._terminated
        arrays = (self._obs, reward, self._terminated, self._truncated)
        return *map(self._tensor, arrays), {"training_reward": self._tensor(shaped)}  # type: ignore[return-value]

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _command(self, action: Tensor) -> np.ndarray:
        """Actions of the environments for actions in [-1, 1]: the same ones, to the bit, where the space is [-1, 1]."""
        unit = action.cpu().numpy().astype(np.float64)
        if not np.isfinite(unit).all():
            row = int(np.flatnonzero(~np.isfinite(unit).all(1))[0])
            raise FloatingPointError(
                f"{self._spec.name}: expected finite actions, got {unit[row].tolist()} in row {row}; the policy that "
                f"made it has diverged"
            )
        # Rounding to the space's own type may step over its bounds.
        return np.clip((self._middle + self._half * unit).astype(self._dtype), self._low, self._high)

    def _observe(self, row: int, obs: Any) -> None:
        obs = np.asarray(obs)
        if obs.shape != self._obs[row].shape:
            raise ValueError(f"expected an observation {self._obs[row].shape} as in its space, got {obs.shape}")
        self._obs[row] = obs

    @contextmanager
    def _named(self, row: int, call: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            task = dict(zip(self._spec.param_names, self._tasks[row].tolist(), strict=True))
            raise RuntimeError(
                f"{self._spec.name}: {call} of row {row} with the task {task} raised {type(error).__name__}: {error}"
            ) from error

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy()).to(self.device)


def _checked_spaces(name: str, env: Any) -> tuple[int, int]:
    """Observation and action sizes, or a ValueError that says which space does not fit and what to do."""
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"GymFamily {name}: expected make() to return a gymnasium.Env, got {type(env).__name__}")
    obs, action = env.observation_space, env.action_space
    if not isinstance(obs, Box) or obs.low.ndim != 1:
        raise ValueError(
            f"GymFamily {name}: expected a Box observation space [S], got {obs}; wrap the environment in "
            f"gymnasium.wrappers.FlattenObservation inside make()"
        )
    if (
        not isinstance(action, Box)
        or action.low.ndim != 1
        or not action.is_bounded()
        or not np.issubdtype(action.dtype, np.floating)
    ):
        raise ValueError(
            f"GymFamily {name}: expected a bounded Box action space [A] of floats, got {action}; wrap the environment "
            f"in gymnasium.wrappers.TransformAction inside make(), with such a space and a function onto its actions"
        )
    return len(obs.low), len(action.low)
