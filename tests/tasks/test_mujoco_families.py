"""Each family is the task its docstring states: rewards, task distributions, splits, reference returns."""

import math
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import stats

from bayesmeta.tasks.ant_dir import AntDir
from bayesmeta.tasks.ant_goal import AntGoal
from bayesmeta.tasks.cheetah_dir import CheetahDir
from bayesmeta.tasks.cheetah_vel import CheetahVel
from bayesmeta.tasks.hopper_params import HopperParams
from bayesmeta.tasks.humanoid_dir import HumanoidDir
from bayesmeta.tasks.references import random_returns
from bayesmeta.tasks.walker_params import WalkerParams

FAILURE_RATE = 1e-4  # of every statistical test here
FAMILIES = {
    "cheetah_vel": CheetahVel,
    "cheetah_dir": CheetahDir,
    "ant_dir": AntDir,
    "ant_goal": AntGoal,
    "humanoid_dir": HumanoidDir,
    "walker_params": WalkerParams,
    "hopper_params": HopperParams,
}
PARAMS = {  # two tasks of each family that differ
    "cheetah_vel": [[0.5], [2.5]],
    "cheetah_dir": [[1.0], [-1.0]],
    "ant_dir": [[0.3], [2.0]],
    "ant_goal": [[1.0, -2.0], [-0.5, 0.25]],
    "humanoid_dir": [[0.3], [2.0]],
}
GYMNASIUM = {
    "cheetah_vel": "HalfCheetah-v5",
    "cheetah_dir": "HalfCheetah-v5",
    "ant_dir": "Ant-v5",
    "ant_goal": "Ant-v5",
    "humanoid_dir": "Humanoid-v5",
    "walker_params": "Walker2d-v5",
    "hopper_params": "Hopper-v5",
}

TASKS_NEEDED = dict.fromkeys(FAMILIES, 6) | {"cheetah_vel": 60, "cheetah_dir": 60, "ant_goal": 40}


def two_tasks(name: str) -> torch.Tensor:
    if name in PARAMS:
        return torch.tensor(PARAMS[name])
    return FAMILIES[name]().sample(2, "train", torch.Generator().manual_seed(0))


def expected_reward(name: str, params: np.ndarray, info: dict, xy: np.ndarray, action: np.ndarray) -> float:
    """The reward from what gymnasium's own environment reports of the same simulation."""
    effort = float((action.astype(np.float64) ** 2).sum())
    if name == "cheetah_vel":
        return -abs(info["x_velocity"] - params[0]) - 0.05 * effort
    if name == "cheetah_dir":
        return params[0] * info["x_velocity"] - 0.05 * effort
    if name == "ant_goal":
        return -abs(xy[0] - params[0]) - abs(xy[1] - params[1]) - 0.1 * effort
    if name in ("ant_dir", "humanoid_dir"):
        along = info["x_velocity"] * math.cos(params[0]) + info["y_velocity"] * math.sin(params[0])
        return along - 0.5 * effort + 1.0 if name == "ant_dir" else 1.25 * along - 0.1 * 0.16 * effort + 5.0
    return info["x_velocity"] + 1.0 - 1e-3 * effort


@pytest.mark.parametrize("name", FAMILIES)
def test_rewards_are_the_documented_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # gymnasium's own HalfCheetah makes MuJoCo write a log file
    theirs = gymnasium.make(GYMNASIUM[name]).unwrapped
    theirs.reset(seed=1)
    # Multipliers of one (u = 0) leave gymnasium's body as it is.
    params = two_tasks(name) if name in PARAMS else torch.zeros_like(two_tasks(name))
    env = FAMILIES[name]().env(params)
    start = {"qpos": np.tile(theirs.data.qpos, (2, 1)), "qvel": np.tile(theirs.data.qvel, (2, 1))}
    env.reset(options=start)
    generator, steps = torch.Generator().manual_seed(0), 0
    for _ in range(60):
        action = (2.0 * torch.rand(1, env.action_space.shape[1], generator=generator) - 1.0).expand(2, -1)
        _, reward, terminated, _, _ = env.step(action)
        info = theirs.step(action[0].double().numpy() * theirs.model.actuator_ctrlrange[:, 1])[-1]
        for row in range(2):
            place = theirs.data.body(1).xpos[:2]
            expected = expected_reward(name, params[row].double().numpy(), info, place, action[0].numpy())
            assert float(reward[row]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        steps += 1
        if terminated.any():
            break
    assert steps > 5


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_differ_and_the_observation_does_not_say_which_it_is(name: str) -> None:
    """From one state with one action: where only rewards vary, observations are equal to the bit and rewards are not;
    where dynamics vary, the first observation is equal and the later ones are not."""
    family, params = FAMILIES[name](), two_tasks(name)
    one, two = family.env(params[:1]), family.env(params[1:])
    assert torch.equal(one.reset(seed=0)[0], two.reset(seed=0)[0])
    action = 0.5 * torch.ones(1, family.spec.action_dim)
    for _ in range(3):
        left, right = one.step(action), two.step(action)
        assert not torch.equal(left[1], right[1])
        assert torch.equal(left[0], right[0]) is not family.spec.dynamics_vary


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_builds_the_family_with_its_defaults(name: str) -> None:
    config = OmegaConf.load(Path(__file__).parents[2] / "configs" / "task" / f"{name}.yaml")
    schema = config.pop("_schema_")
    assert set(schema) - {"_kind_"} == set(config) - {"_target_"}
    assert instantiate(config) == FAMILIES[name]()
    spec = FAMILIES[name]().spec
    assert spec.name == f"{name}-v1" and spec.horizon == 200 and spec.is_control


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_uses_only_the_generator_and_knows_its_splits(name: str) -> None:
    family = FAMILIES[name]()
    draws = [family.sample(7, "train", torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert draws[0].shape == (7, family.spec.param_dim) and draws[0].dtype == torch.float32
    assert torch.equal(draws[0], draws[1])
    assert name == "cheetah_dir" or not torch.equal(draws[0], draws[2])
    with pytest.raises(ValueError, match=f"{name}-v1: expected a split of train, test.*got 'validation'"):
        family.sample(2, "validation", torch.Generator())


@pytest.mark.parametrize("name", ["cheetah_dir", "ant_dir", "humanoid_dir"])
def test_families_without_an_outside_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected a split of train, test; got 'ood'; .*(training set|circle)"):
        FAMILIES[name]().sample(2, "ood", torch.Generator())


def uniform_p(values: torch.Tensor, low: float, high: float) -> float:
    return stats.kstest(values.double().numpy().ravel(), stats.uniform(low, high - low).cdf).pvalue


def test_task_distributions_are_the_published_ones() -> None:
    """Kolmogorov-Smirnov on 4000 tasks; the power side is a range that is off by 5 %."""

    def draw(family, split: str = "train") -> torch.Tensor:
        return family.sample(4000, split, torch.Generator().manual_seed(11))

    for split in ("train", "test"):
        assert uniform_p(draw(CheetahVel(), split), 0, 3) > FAILURE_RATE
        assert uniform_p(draw(AntDir(), split), 0, 2 * math.pi) > FAILURE_RATE
        assert uniform_p(draw(HumanoidDir(), split), 0, 2 * math.pi) > FAILURE_RATE
        goals = draw(AntGoal(), split)
        assert uniform_p(goals.norm(dim=1) ** 2, 0, 9) > FAILURE_RATE  # uniform in area
        assert uniform_p(torch.atan2(goals[:, 1], goals[:, 0]), -math.pi, math.pi) > FAILURE_RATE
        for family in (WalkerParams(), HopperParams()):
            u = draw(family, split)[:100]
            assert uniform_p(u, -3, 3) > FAILURE_RATE
            correlation = np.corrcoef(draw(family, split)[:, :10].T.numpy())
            assert np.abs(correlation - np.eye(10)).max() < 5 / math.sqrt(4000)
    assert uniform_p(draw(CheetahVel()), 0, 3.15) < FAILURE_RATE
    assert uniform_p(draw(AntGoal()).norm(dim=1), 0, 3) < FAILURE_RATE  # uniform in radius would be another family


def test_out_of_distribution_tasks_are_clearly_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    assert uniform_p(CheetahVel().sample(2000, "ood", generator), 3, 4) > FAILURE_RATE
    assert uniform_p(AntGoal().sample(2000, "ood", generator).norm(dim=1) ** 2, 9, 16) > FAILURE_RATE
    for family in (WalkerParams(), HopperParams()):
        u = family.sample(100, "ood", generator)
        assert uniform_p(u.abs(), 3, 4) > FAILURE_RATE
        assert stats.binomtest(int((u > 0).sum()), u.numel()).pvalue > FAILURE_RATE


def test_two_task_families_always_give_both() -> None:
    for family, both in ((CheetahDir(), (-1.0, 1.0)), (AntDir(forward_backward=True), (0.0, math.pi))):
        for seed in range(5):
            pairs = family.sample(6, "test", torch.Generator().manual_seed(seed)).reshape(3, 2).sort(1).values
            assert torch.equal(pairs, torch.tensor(both).expand(3, 2))
        firsts = {family.sample(1, "train", torch.Generator().manual_seed(s)).item() for s in range(20)}
        assert len(firsts) == 2
        assert family.sample(3, "train", torch.Generator()).shape == (3, 1)
    sideways = AntDir(forward_backward=True).sample(500, "ood", torch.Generator().manual_seed(0))
    assert (sideways.cos().abs() <= math.sqrt(0.5) + 1e-6).all() and len(sideways.sin().sign().unique()) == 2
    assert AntDir(forward_backward=True).spec.name == "ant_dir_forward_backward-v1"


def test_anchors_of_cheetah_vel() -> None:
    """Over g ~ U(0, 3) and 200 steps: standing still is worth -300, always running at 1.5 m/s -150."""
    goals = ((torch.arange(300) + 0.5) / 100).unsqueeze(1)
    family = CheetahVel()
    assert float(family.reference_returns(goals)["still"].mean()) == pytest.approx(-300, rel=1e-6)
    # In free fall at rest pose nothing but gravity acts: the root keeps its 1.5 m/s.
    qpos, qvel = np.zeros((300, 9)), np.zeros((300, 9))
    qpos[:, 1], qvel[:, 0] = 50.0, 1.5
    env = family.env(goals)
    env.reset(options={"qpos": qpos, "qvel": qvel})
    reward = torch.stack([env.step(torch.zeros(300, 6))[1] for _ in range(5)])
    assert float(reward.double().mean() * 200) == pytest.approx(-150, rel=1e-5)


def test_anchor_of_ant_goal() -> None:
    """At the origin, goals uniform in the disc of radius 3: -200 * 8 / pi = -509."""
    goals = AntGoal().sample(100_000, "train", torch.Generator().manual_seed(0))
    returns = AntGoal().reference_returns(goals)["still"].double()
    z = (returns.mean() + 200 * 8 / math.pi) / (returns.std() / math.sqrt(len(returns)))
    assert abs(float(z)) < stats.norm.isf(FAILURE_RATE / 2)


@pytest.mark.parametrize("name, tolerance", [("cheetah_vel", 3.0), ("cheetah_dir", 3.0), ("ant_dir", 15.0)])
def test_standing_still_is_what_a_limp_body_gets(name: str, tolerance: float) -> None:
    """These bodies stand by themselves: they settle within decimetres, so the formula is the simulation's return up to
    the way they drift (a metre is worth 20 in these rewards)."""
    family = FAMILIES[name]()
    params = family.sample(4, "train", torch.Generator().manual_seed(0))
    env, total = family.env(params), torch.zeros(4)
    env.reset(seed=0)
    for _ in range(200):
        total += env.step(torch.zeros(4, family.spec.action_dim))[1]
    assert (total - family.reference_returns(params)["still"]).abs().max() < tolerance


@pytest.mark.parametrize("name, tasks", TASKS_NEEDED.items())
def test_random_actions_are_worse_than_none(name: str, tasks: int) -> None:
    """Paired over tasks, one-sided; bodies that random actions also push the right way by chance get more tasks."""
    family = FAMILIES[name](horizon=80)
    params = family.sample(tasks, "train", torch.Generator().manual_seed(0))
    returns, references = random_returns(family.env(params), seed=3), family.reference_returns(params)
    loss = (references["still"] - returns).numpy()
    assert stats.ttest_1samp(loss, 0.0, alternative="greater").pvalue < 0.01
    if "upper_bound" in references:
        assert (returns <= references["upper_bound"]).all()


@pytest.mark.parametrize("name", ["humanoid_dir", "walker_params"])
def test_simulated_references_are_reproducible(name: str) -> None:
    family = FAMILIES[name](horizon=20)
    params = family.sample(2, "train", torch.Generator().manual_seed(0))
    env = family.env(params)
    assert torch.equal(random_returns(env, seed=3), random_returns(env, seed=3))
    assert not torch.equal(random_returns(env, seed=3), random_returns(env, seed=4))
    assert torch.equal(family.reference_returns(params)["still"], family.reference_returns(params)["still"])
