"""One task of a control family as an ordinary ``gymnasium.Env``."""

import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from bayesmeta.tasks.base import TaskVectorEnv
from bayesmeta.tasks.pictures import Pictured, image, text
from bayesmeta.tasks.world_env import WorldEnv
from bayesmeta.types import ControlFamily, Spec


class SingleTaskEnv(gymnasium.Env[np.ndarray, Any]):
    """One row of the family's vector environment: arrays in, arrays out, actions in [-1, 1].

    Where control is discrete, actions and the components of observations are integers. Families that can draw
    themselves (:class:`bayesmeta.tasks.pictures.Pictured`) are rendered as text, ``render_mode="ansi"``, or as a small
    image, ``"rgb_array"``: the whole world, with what the agent does not see. Raises ValueError for another
    ``render_mode``.

    ``task [M]`` are the task's parameters. Without it ``reset(seed=s)`` draws one from the train split, and ``reset()``
    keeps it, so that a trial of several episodes stays on its task. ``reset(options={"task": [M]})`` changes it; other
    options go to the family's environment. ``reset`` tells the task in its info, never in the observation.

    With a given task, ``reset(seed=s)`` and the steps after it are those of ``family.env(task).reset(seed=s)``.
    """

    def __init__(
        self,
        family: ControlFamily,
        task: Sequence[float] | np.ndarray | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.family = family
        self.observation_space, self.action_space = _spaces(family.spec)
        modes = ["ansi", "rgb_array"] if isinstance(family, Pictured) else []
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"{family.spec.name}: expected a render_mode of {modes or [None]}; got {render_mode!r}")
        self.metadata, self.render_mode = {"render_modes": modes, "render_fps": 4}, render_mode
        self._drawn = task is None
        self._row: TaskVectorEnv | None = None
        if task is not None:
            self._begin(task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        options = dict(options or {})
        task = options.pop("task", None)
        new = task is not None or self._row is None or (self._drawn and seed is not None)
        if new:
            self._begin(self._draw() if task is None else task)
        if new and seed is None:  # else every task would begin with the same start
            seed = int(self.np_random.integers(2**31))
        assert self._row is not None
        obs, _ = self._row.reset(seed=seed, options=options or None)
        return self._array(obs), {"task": self._task.copy()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._row is None:
            raise gymnasium.error.ResetNeeded("SingleTaskEnv.step: expected an episode to have started; call reset()")
        batch = np.asarray(action, None if self.family.spec.actions else np.float32)[None]
        obs, reward, terminated, truncated, info = self._row.step(batch)
        extra = {key: value[0].item() for key, value in info.items()}
        return self._array(obs), reward[0].item(), terminated[0].item(), truncated[0].item(), extra

    def render(self) -> Any:
        """The world as the episode has come to it: text or ``[height, width, 3]`` bytes, None without a mode."""
        if self.render_mode is None:
            return None
        if not isinstance(self._row, WorldEnv):
            raise gymnasium.error.ResetNeeded("SingleTaskEnv.render: expected an episode to have started; call reset()")
        cells, words = self._row.picture(0)
        return text(cells, words) if self.render_mode == "ansi" else image(cells)

    def close(self) -> None:
        if self._row is not None:
            self._row.close()

    def _begin(self, task: Any) -> None:
        self.close()
        self._task = np.array(task, dtype=np.float32)
        self._row = self.family.env(torch.from_numpy(self._task[None]))  # type: ignore[assignment]

    def _array(self, obs: torch.Tensor) -> np.ndarray:
        return obs[0].cpu().numpy().astype(self.observation_space.dtype)

    def _draw(self) -> np.ndarray:
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**63)))
        return self.family.sample(1, "train", generator)[0].numpy()


def make_single_task(
    family: str,
    variant: Mapping[str, Any],
    task: Sequence[float] | np.ndarray | None = None,
    horizon: int | None = None,
    render_mode: str | None = None,
) -> SingleTaskEnv:
    """What ``gymnasium.make`` calls: ``family`` is ``module:Class``, ``variant`` its arguments that the id fixes.

    ``task`` and ``render_mode`` as in :class:`SingleTaskEnv`; ``horizon`` in steps, by default the family's own.
    """
    settings = dict(variant) if horizon is None else {**variant, "horizon": horizon}
    return SingleTaskEnv(pkgutil.resolve_name(family)(**settings), task, render_mode)


def _spaces(spec: Spec) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Of observations and actions."""
    if spec.actions:
        return gymnasium.spaces.MultiDiscrete([*spec.obs_sizes]), gymnasium.spaces.Discrete(spec.actions)
    seen = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
    return seen, gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
