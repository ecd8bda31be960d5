"""Many MuJoCo tasks stepped at once by ``mujoco.batch``: the engine of every simulated-body family.

A family says which body, which reward and, where the dynamics vary, which model fields; the engine does the rest:
float64 physics on a thread pool, float32 tensors at the boundary, all rows reset together, finished rows frozen.
"""

import importlib.resources
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float
from mujoco.batch import Batch, SimulationError
from torch import Tensor

from bayesmeta.guards import NonFiniteError, check_finite
from bayesmeta.tasks.base import TaskVectorEnv
from bayesmeta.tasks.checks import checked_params
from bayesmeta.types import Spec

Live = Mapping[str, np.ndarray]
"""MjData fields by name, each ``[B, ...]`` float64, refreshed by every call of the simulator."""

Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""``reward(position [B, d], velocity [B, d], action [B, A]) -> [B]`` after a control step, all float64."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """What is simulated and what of it is seen; the same for all tasks of a family.

    ``xml`` names a model that gymnasium ships, ``frame_skip`` the simulator steps per control step. A reset adds
    ``U(-reset_noise, reset_noise)`` to the initial positions, and to the velocities either the same or, with
    ``normal_velocity``, ``reset_noise * N(0, 1)``. ``derived`` are the fields besides ``qpos`` and ``qvel`` that the
    functions read: as everywhere in MuJoCo they describe the state before the last simulator step. ``observe(live,
    out)`` writes ``out [B, obs_dim]``; ``track(live) -> [B, d]`` is the position whose displacement over a control
    step is the velocity in the reward; ``healthy(live) -> bool [B]`` ends the episode where it is False (None: never).
    """

    xml: str
    frame_skip: int
    obs_dim: int
    action_dim: int
    reset_noise: float
    normal_velocity: bool
    derived: tuple[str, ...]
    observe: Callable[[Live, np.ndarray], None]
    track: Callable[[Live], np.ndarray]
    healthy: Callable[[Live], np.ndarray] | None = None

    def spec(self, name: str, horizon: int, param_names: tuple[str, ...], dynamics_vary: bool = False) -> Spec:
        """The spec of a control family on this body."""
        return Spec.control(
            name,
            obs_dim=self.obs_dim,
            action_dim=self.action_dim,
            horizon=horizon,
            param_names=param_names,
            dynamics_vary=dynamics_vary,
        )


@lru_cache
def load_model(xml: str) -> mujoco.MjModel:
    """The compiled model of a file in gymnasium's asset folder; shared, so it must not be written to.

    MuJoCo's warnings while it compiles are dropped: ``half_cheetah.xml`` uses a deprecated compiler option, and
    MuJoCo would otherwise print that and write a log file into the working directory.
    """
    path = importlib.resources.files("gymnasium").joinpath("envs/mujoco/assets", xml)
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(previous)


def task_array(params: Float[Tensor, "..."], spec: Spec) -> np.ndarray:
    """Task parameters as float64 ``[B, M]``, or a ValueError that says what was expected."""
    return checked_params(params, spec).detach().cpu().double().numpy()


def checked_inside(spec: Spec, split: str, why: str) -> None:
    """A ValueError unless the split is train or test, for a family that has no task outside its distribution."""
    if split not in ("train", "test"):
        raise ValueError(f"{spec.name}: expected a split of train, test; got {split!r}; {why}")


class MujocoTaskEnv(TaskVectorEnv):
    """``B`` tasks of one body, stepped by ``mujoco.batch`` on ``threads`` threads (0: all CPUs).

    Row ``b`` has its own reward (``reward`` closes over the task parameters) and, with ``fields``, its own dynamics:
    ``fields[name] [B, ...]`` replaces that array of the model in each row, and the constants MuJoCo derives from it
    are recomputed. The simulator runs on the CPU; ``device`` is where tensors come from and go to. Results do not
    depend on ``threads`` or on the other rows.

    ``reset(options={"qpos": [B, nq], "qvel": [B, nv]})`` starts from a given state instead of a random one.

    A simulation that becomes unstable raises :class:`~bayesmeta.guards.NonFiniteError` with a note that names the rows
    and their parameters: MuJoCo itself would only warn and put the body back to its initial state.
    """

    def __init__(
        self,
        body: Body,
        reward: Reward,
        params: np.ndarray,
        *,
        horizon: int,
        threads: int = 2,
        device: torch.device | str = "cpu",
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(len(params), body.obs_dim, body.action_dim, horizon, device)
        self._body, self._reward, self._params = body, reward, params
        self._model = load_model(body.xml)
        self._batch = Batch(self._model, self.num_envs, threads)
        for name, values in (fields or {}).items():
            self._batch.expand(name)[:] = values
        if fields:
            self._batch.set_const()
        self._live = {name: self._batch.bind(name) for name in ("qpos", "qvel", "ctrl", *body.derived)}
        self._ctrl_scale = self._model.actuator_ctrlrange[:, 1].copy()  # every range here is symmetric
        self._dt = self._model.opt.timestep * body.frame_skip
        self._generator = torch.Generator().manual_seed(0)
        self._elapsed = -1  # not reset yet

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float[Tensor, "B S"], dict[str, Any]]:
        """Start an episode in all rows; see :class:`TaskVectorEnv` for ``seed``.

        Raises ValueError for ``options`` other than ``qpos`` and ``qvel`` of all rows.
        """
        if seed is not None:
            self._generator.manual_seed(seed)
        qpos, qvel = self._given_state(options) if options else self._initial_state()
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        self._live["qpos"][:], self._live["qvel"][:] = qpos, qvel
        self._batch.forward()
        self._position = self._tracked()
        self._elapsed = 0
        self._active = np.ones(self.num_envs, dtype=bool)
        self._terminated = np.zeros(self.num_envs, dtype=bool)
        return self._observation(), {}

    def step(
        self, action: Any
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B"], Bool[Tensor, "B"], Bool[Tensor, "B"], dict[str, Any]]:
        """One control step of every row that is still running. Rows that are not cost nothing.

        Raises ValueError for actions of another shape, RuntimeError before the first ``reset``, NonFiniteError for
        actions that are not finite and for an unstable simulation.
        """
        if self._elapsed < 0:
            raise RuntimeError("MujocoTaskEnv.step: expected an episode to have started; call reset() first")
        action64 = self.checked_action(action).cpu().numpy().astype(np.float64)
        reward = np.zeros(self.num_envs, dtype=np.float32)
        if self._elapsed < self.horizon and self._active.any():
            self._elapsed += 1
            self._simulate(action64)
            position = self._tracked()
            velocity = (position - self._position) / self._dt
            self._position = position
            np.copyto(reward, self._reward(position, velocity, action64), where=self._active, casting="same_kind")
            if self._body.healthy is not None:
                self._active &= self._body.healthy(self._live)
                self._terminated = ~self._active
        truncated = self._active if self._elapsed == self.horizon else np.zeros(self.num_envs, dtype=bool)
        flags = torch.from_numpy(np.stack((self._terminated, truncated))).to(self.device)
        return self._observation(), torch.from_numpy(reward).to(self.device), flags[0], flags[1], {}

    def render_model_data(self, row: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Model and forwarded data of one row, for any MuJoCo renderer or function."""
        model, data = self._batch.get_model(row), self._batch.get_data(row)
        mujoco.mj_forward(model, data)
        return model, data

    def _simulate(self, action: np.ndarray) -> None:
        if not np.isfinite(action).all():
            check_finite(action=torch.from_numpy(action))
        np.multiply(action, self._ctrl_scale, out=self._live["ctrl"])
        ids = None if self._active.all() else np.flatnonzero(self._active)
        try:
            self._batch.step(ids, nstep=self._body.frame_skip)
        except SimulationError as error:
            raise self._unstable(error.ids, str(error), action) from error
        warnings = self._batch.warning
        if warnings.any():
            rows = np.flatnonzero(warnings.any((1, 2)))
            kind = int(np.flatnonzero(warnings[rows[0]].any(1))[0])
            raise self._unstable(rows, mujoco.mjtWarning(kind).name, action)

    def _unstable(self, rows: np.ndarray, what: str, action: np.ndarray) -> NonFiniteError:
        lost = self._observation()
        lost[rows] = torch.nan  # MuJoCo has put these bodies back to where they start
        tensors = {"action": torch.from_numpy(action), "task_parameters": torch.from_numpy(self._params)}
        error = NonFiniteError("next_observation", {"next_observation": lost, **tensors})
        shown = "; ".join(f"row {r}: params {np.round(self._params[r], 4).tolist()}" for r in rows[:3])
        error.add_note(
            f"MujocoTaskEnv.step: expected a stable simulation, got {what} in {len(rows)} row(s) at step "
            f"{self._elapsed} ({shown}); take these tasks out, or make their parameters less extreme"
        )
        return error

    def _tracked(self) -> np.ndarray:
        return np.array(self._body.track(self._live))  # a copy: most are views of live fields

    def _observation(self) -> Tensor:
        obs = torch.empty(self.num_envs, self._body.obs_dim)
        self._body.observe(self._live, obs.numpy())
        return obs.to(self.device)

    def _initial_state(self) -> tuple[np.ndarray, np.ndarray]:
        nq, nv = self._model.nq, self._model.nv
        # One uniform stream filled row by row, so that the first rows of a batch do not depend on its size;
        # normals by inversion, because torch.randn's stream does depend on it.
        uniform = torch.rand(self.num_envs, nq + nv, dtype=torch.float64, generator=self._generator).numpy()
        noise = self._body.reset_noise * (2.0 * uniform - 1.0)
        if self._body.normal_velocity:
            inside = torch.from_numpy(uniform[:, nq:]).clamp(min=2.0**-54)
            noise[:, nq:] = self._body.reset_noise * torch.special.ndtri(inside).numpy()
        return self._model.qpos0 + noise[:, :nq], noise[:, nq:]

    def _given_state(self, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        expected = {"qpos": (self.num_envs, self._model.nq), "qvel": (self.num_envs, self._model.nv)}
        got = {name: tuple(np.shape(value)) for name, value in options.items()}
        if got != expected:
            raise ValueError(f"MujocoTaskEnv.reset: expected options with the shapes {expected}, got {got}")
        return np.asarray(options["qpos"], dtype=np.float64), np.asarray(options["qvel"], dtype=np.float64)
