"""The batched physics is gymnasium's to the bit, and each row is the simulation it would be alone."""

import dataclasses
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from bayesmeta.tasks.ant_dir import AntDir
from bayesmeta.tasks.ant_goal import AntGoal
from bayesmeta.tasks.bodies import ANT_WITH_POSITION, CHEETAH, HOPPER, HUMANOID, WALKER
from bayesmeta.tasks.cheetah_dir import CheetahDir
from bayesmeta.tasks.cheetah_vel import CheetahVel
from bayesmeta.tasks.hopper_params import HopperParams
from bayesmeta.tasks.humanoid_dir import HumanoidDir
from bayesmeta.tasks.mujoco import Body, MujocoTaskEnv, load_model
from bayesmeta.tasks.multipliers import BASES, multiplied_fields, multiplier_names
from bayesmeta.tasks.walker_params import WalkerParams

FAMILIES = [CheetahVel, CheetahDir, AntDir, AntGoal, HumanoidDir, WalkerParams, HopperParams]
BODIES = {
    "HalfCheetah-v5": CHEETAH,
    "Ant-v5": ANT_WITH_POSITION,
    "Humanoid-v5": HUMANOID,
    "Walker2d-v5": WALKER,
    "Hopper-v5": HOPPER,
}


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # gymnasium's own HalfCheetah makes MuJoCo write a log file


def constant_reward(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> np.ndarray:
    return np.ones(len(action))


def gymnasium_observation(name: str, data: mujoco.MjData) -> np.ndarray:
    """The observation that the family documents, from gymnasium's own simulation."""
    if name == "HalfCheetah-v5":
        return np.concatenate([data.qpos[1:], data.qvel, data.body("torso").xpos])
    if name == "Ant-v5":
        return np.concatenate([data.qpos, data.qvel])
    if name == "Humanoid-v5":
        derived = [data.cinert[1:].ravel(), data.cvel[1:].ravel(), data.qfrc_actuator[6:]]
        return np.concatenate([data.qpos[2:], data.qvel, *derived])
    return np.concatenate([data.qpos[1:], np.clip(data.qvel, -10, 10)])


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("row", [0, 2])
def test_physics_and_observations_are_gymnasiums_to_the_bit(name: str, row: int) -> None:
    theirs = gymnasium.make(name).unwrapped
    body: Body = dataclasses.replace(BODIES[name], healthy=None)  # never stops, as gymnasium's does not by itself
    ours = MujocoTaskEnv(body, constant_reward, np.zeros((3, 1)), horizon=300)
    theirs.reset(seed=5)
    qpos, qvel = np.tile(theirs.data.qpos, (3, 1)), np.tile(theirs.data.qvel, (3, 1))
    qpos[1, 2] += 0.01  # a row that differs must not leak into the others
    obs, _ = ours.reset(options={"qpos": qpos, "qvel": qvel})
    np.testing.assert_array_equal(obs[row].numpy(), gymnasium_observation(name, theirs.data).astype(np.float32))
    generator = torch.Generator().manual_seed(row)
    for _ in range(300):
        action = 2.0 * torch.rand(3, body.action_dim, generator=generator) - 1.0
        obs, *_ = ours.step(action)
        theirs.step(action[row].double().numpy() * theirs.model.actuator_ctrlrange[:, 1])
        np.testing.assert_array_equal(obs[row].numpy(), gymnasium_observation(name, theirs.data).astype(np.float32))
    model, data = ours.render_model_data(row)
    np.testing.assert_array_equal(data.qpos, theirs.data.qpos)
    np.testing.assert_array_equal(data.qvel, theirs.data.qvel)
    assert np.isfinite(data.qpos).all() and data.time == pytest.approx(300 * body.frame_skip * model.opt.timestep)


def rollout(env: MujocoTaskEnv, state: dict, actions: torch.Tensor) -> torch.Tensor:
    """Observation, reward, terminated and truncated of every step in one array ``[T, B, S + 3]``."""
    env.reset(options=state)
    steps = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        flags = torch.stack([reward, terminated.float(), truncated.float()], 1)
        steps.append(torch.cat([obs, flags], 1))
    return torch.stack(steps)


@pytest.mark.parametrize("family_class", FAMILIES)
def test_a_row_of_a_batch_is_the_single_task_to_the_bit(family_class: type) -> None:
    """Through early terminations too: rows fall at different times and the others go on undisturbed."""
    family = family_class(horizon=60)
    generator = torch.Generator().manual_seed(1)
    params = family.sample(5, "train", generator)
    env = family.env(params)
    env.reset(seed=2)
    data = [env.render_model_data(row)[1] for row in range(5)]
    state = {"qpos": np.stack([d.qpos for d in data]), "qvel": np.stack([d.qvel for d in data])}
    actions = 2.0 * torch.rand(62, 5, family.spec.action_dim, generator=generator) - 1.0
    together = rollout(env, state, actions)
    for row in range(5):
        one = slice(row, row + 1)
        alone = family_class(horizon=60, threads=1).env(params[one])
        expected = rollout(alone, {name: value[one] for name, value in state.items()}, actions[:, one])
        assert torch.equal(together[:, one], expected)
    if family_class in (WalkerParams, HopperParams):
        assert len(together[..., -2].sum(0).unique()) > 1, "the rows were meant to fall at different times"


@pytest.mark.parametrize("family_class", [WalkerParams, HopperParams])
def test_multiplied_models_are_those_of_mujoco(family_class: type) -> None:
    """A row equals a loop over one MjModel whose arrays were multiplied one by one and then passed to mj_setConst."""
    family = family_class(horizon=100)
    params = family.sample(3, "ood", torch.Generator().manual_seed(0))
    env = family.env(params)
    obs, _ = env.reset(seed=0)
    _, start = env.render_model_data(1)
    body = WALKER if family_class is WalkerParams else HOPPER
    model = mujoco.MjModel.from_xml_path(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets" / body.xml))
    for name, u in zip(family.spec.param_names, params[1].double().tolist(), strict=True):
        field, index = name[:-1].split("[")
        getattr(model, field)[tuple(int(i) for i in index.split(","))] *= BASES[field] ** u
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    mujoco.mj_resetData(model, data)
    data.qpos[:], data.qvel[:] = start.qpos, start.qvel
    mujoco.mj_forward(model, data)
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        action = 2.0 * torch.rand(3, body.action_dim, generator=generator) - 1.0
        obs, _, terminated, _, _ = env.step(action)
        if terminated[1]:
            break
        data.ctrl[:] = action[1].double().numpy()
        mujoco.mj_step(model, data, nstep=body.frame_skip)
        expected = np.concatenate([data.qpos[1:], np.clip(data.qvel, -10, 10)])
        np.testing.assert_array_equal(obs[1].numpy(), expected.astype(np.float32))
    assert data.time > 5 * body.frame_skip * model.opt.timestep, "the comparison was meant to cover some steps"
    for derived in ("body_subtreemass", "dof_invweight0", "body_invweight0"):
        np.testing.assert_array_equal(getattr(env.render_model_data(1)[0], derived), getattr(model, derived))
        assert not np.array_equal(getattr(model, derived), getattr(load_model(body.xml), derived))


@pytest.mark.parametrize("xml, count", [(WALKER.xml, 58), (HOPPER.xml, 34)])
def test_each_multiplier_moves_its_own_element_and_no_other(xml: str, count: int) -> None:
    names, model = multiplier_names(xml), load_model(xml)
    assert len(names) == len(set(names)) == count
    fields = multiplied_fields(xml, np.eye(count))
    changed = [
        (row, f)
        for f, values in fields.items()
        for row in np.flatnonzero((values != getattr(model, f)).reshape(count, -1).any(1))
    ]
    assert sorted(row for row, _ in changed) == list(range(count))
    for row, field in changed:
        index = tuple(int(i) for i in names[row].removeprefix(field + "[").removesuffix("]").split(","))
        factor = fields[field][row][index] / getattr(model, field)[index]
        assert factor == pytest.approx({"dof_damping": 1.3}.get(field, 1.5), rel=1e-12)
        others = np.delete(fields[field][row].ravel(), np.ravel_multi_index(index, getattr(model, field).shape))
        kept = np.delete(getattr(model, field).ravel(), np.ravel_multi_index(index, getattr(model, field).shape))
        np.testing.assert_array_equal(others, kept)


def test_loading_a_model_leaves_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """MuJoCo's deprecation warning about half_cheetah.xml goes neither to a log file nor to stderr."""
    before = mujoco.get_mju_user_warning()
    load_model.__wrapped__("half_cheetah.xml")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""
    assert mujoco.get_mju_user_warning() is before
