"""What every control family obeys. A new one joins by a line in CASES."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Distribution, Independent, OneHotCategorical, Uniform
from torch.nn.functional import one_hot

from bayesmeta.collect import collect
from bayesmeta.config import without_schema
from bayesmeta.inference.beliefs import Point
from bayesmeta.tasks.ant_dir import AntDir
from bayesmeta.tasks.ant_goal import AntGoal
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.bus import Bus
from bayesmeta.tasks.cheetah_dir import CheetahDir
from bayesmeta.tasks.cheetah_vel import CheetahVel
from bayesmeta.tasks.circles import Circles
from bayesmeta.tasks.cooking import Cooking
from bayesmeta.tasks.digits import Digits
from bayesmeta.tasks.dynamics import Dynamics
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.gp_functions import GPFunctions
from bayesmeta.tasks.grid import PICK_UP, RIDE, RIGHT, STAY, UP
from bayesmeta.tasks.gym_family import GymFamily
from bayesmeta.tasks.hopper_params import HopperParams
from bayesmeta.tasks.humanoid_dir import HumanoidDir
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.tasks.pacoh_sinusoid import PacohSinusoid
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.tasks.registration import IDS
from bayesmeta.tasks.reveal import Reveal
from bayesmeta.tasks.sine_or_line import SineOrLine
from bayesmeta.tasks.single_task import SingleTaskEnv
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.tasks.tabular_transitions import TabularTransitions
from bayesmeta.tasks.unknown_noise import UnknownNoise
from bayesmeta.tasks.walker_params import WalkerParams
from bayesmeta.types import ControlFamily, Explorer, SupervisedFamily


def pendulum(horizon: int = 8) -> GymFamily:
    """An environment of gymnasium's own, made a family as a user would: a pendulum of unknown gravity."""

    def sample(n: int, split: str, generator: torch.Generator) -> Tensor:
        low, high = (12.0, 15.0) if split == "ood" else (5.0, 12.0)
        return low + (high - low) * torch.rand(n, 1, generator=generator)

    return GymFamily(
        name="pendulum_gravity-v1",
        make=lambda: gymnasium.make("Pendulum-v1"),
        set_task=lambda env, task: setattr(env.unwrapped, "g", float(task[0])),
        sample=sample,
        param_names=("gravity",),
        horizon=horizon,
        dynamics_vary=True,
    )


@dataclass(frozen=True)
class Case:
    """A family with a short horizon, and what the checks need to know of it.

    ``trained`` tells tasks ``[n, M]`` of the training distribution from others, None where no task is outside it.
    ``id`` is its gymnasium id. ``falls``: random actions end some episodes before the horizon. ``fixed_start``: every
    episode begins in the same state. ``towards`` gives actions that tell a task, where random ones hardly ever do. A
    family whose episodes may be of exploration is asked what its tasks look like in one of those.
    """

    family: ControlFamily
    trained: Callable[[Tensor], Tensor] | None
    id: str | None = None
    falls: bool = False
    fixed_start: bool = False
    towards: Callable[[Tensor], Tensor] | None = None


def turns(horizon: int, actions: int, *numbers: int) -> Callable[[Tensor], Tensor]:
    """The codes ``[T, B, A]`` of some actions in turn."""
    codes = one_hot(torch.tensor(numbers).repeat(horizon)[:horizon], actions).float()
    return lambda params: codes.unsqueeze(1).expand(-1, len(params), -1)


def within(limit: float, norm: float = torch.inf) -> Callable[[Tensor], Tensor]:
    return lambda p: torch.linalg.vector_norm(p, norm, dim=1) <= limit


CITIES = {
    "SmallMap": Bus("small_map"),
    "Map": Bus("map"),
    "VanillaBus": Bus("vanilla"),
    "DistractingBus": Bus("distraction"),
}
CASES = [
    Case(PointGoal(horizon=8), within(1.0), "bayesmeta/PointGoal-v1"),
    Case(
        PointGoal(sparse=True, horizon=12),
        lambda p: p[:, 1] > -1e-6,  # sin(pi) is not quite 0 in float32
        "bayesmeta/PointGoalSparse-v1",
        fixed_start=True,
        towards=lambda p: p,
    ),
    Case(CheetahDir(horizon=8, threads=1), None, "bayesmeta/CheetahDir-v1"),
    Case(CheetahVel(horizon=8, threads=1), lambda p: (p[:, 0] >= 0) & (p[:, 0] < 3), "bayesmeta/CheetahVel-v1"),
    Case(AntDir(horizon=8, threads=1), None, "bayesmeta/AntDir-v1"),
    Case(
        AntDir(forward_backward=True, horizon=8, threads=1),
        lambda p: p[:, 0].sin().abs() < 1e-6,
        "bayesmeta/AntDirForwardBackward-v1",
    ),
    Case(AntGoal(horizon=8, threads=1), within(3.0, norm=2), "bayesmeta/AntGoal-v1"),
    Case(HumanoidDir(horizon=60, threads=1), None, "bayesmeta/HumanoidDir-v1", falls=True),
    Case(WalkerParams(horizon=60, threads=1), within(3.0), "bayesmeta/WalkerParams-v1", falls=True),
    Case(HopperParams(horizon=60, threads=1), within(3.0), "bayesmeta/HopperParams-v1", falls=True),
    Case(pendulum(), lambda p: (p[:, 0] >= 5) & (p[:, 0] < 12)),
    *(
        Case(family, None, f"bayesmeta/{name}-v1", falls=True, towards=turns(family.spec.horizon, 9, UP, RIDE))
        for name, family in CITIES.items()
    ),
    Case(Cooking(), None, "bayesmeta/Cooking-v1", falls=True, towards=turns(20, 9, RIGHT, PICK_UP)),
    Case(Reveal(), None, "bayesmeta/Reveal-v1", falls=True, fixed_start=True, towards=turns(1, 8, 0)),
]
SUPERVISED: list[SupervisedFamily] = [
    *(LinearGaussian(), NormalNormal(), Sinusoid(resolution=4), BernoulliBandit(), FiniteHypotheses()),
    *(UnknownNoise(), TabularTransitions(), Digits(), Dynamics(steps=20)),
    *(SineOrLine(), PacohSinusoid(), GPFunctions(), Circles(), Circles(positives=2)),
]

every = pytest.mark.parametrize("case", CASES, ids=lambda c: c.family.spec.name)
every_family = pytest.mark.parametrize("family", [*(c.family for c in CASES), *SUPERVISED], ids=lambda f: f.spec.name)


@dataclass(frozen=True)
class Record:
    """One episode: ``obs [T + 1, B, S]`` and ``reward, terminated, truncated [T, B]``."""

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor

    @property
    def over(self) -> Tensor:
        return self.terminated | self.truncated

    def row(self, b: int) -> list[Tensor]:
        return [self.obs[:, b], self.reward[:, b], self.terminated[:, b], self.truncated[:, b]]


def tasks(case: Case, n: int = 4, split: str = "train", seed: int = 0) -> Tensor:
    return case.family.sample(n, split, torch.Generator().manual_seed(seed))


def noise(case: Case, rows: int, steps: int | None = None) -> Tensor:
    """Actions ``[T, B, A]``, the same for a row whatever the number of rows."""
    spec, steps = case.family.spec, steps or case.family.spec.horizon
    uniform = torch.rand((rows, steps, spec.action_dim), generator=torch.Generator().manual_seed(5)).transpose(0, 1)
    return one_hot(uniform.argmax(-1), spec.actions).float() if spec.actions else 2.0 * uniform - 1.0


def episode(
    case: Case, params: Tensor, actions: Tensor | None = None, *, seed: int | None = 3, explore: bool = False
) -> Record:
    env = case.family.env(params)
    obs, _ = env.reset(seed=seed, options={"explore": True} if explore else None)
    seen, kept, rest = [obs], [obs.clone()], []
    for action in noise(case, len(params)) if actions is None else actions:
        obs, *step, _ = env.step(action)
        seen.append(obs)
        kept.append(obs.clone())
        rest.append(step)
    env.close()
    assert torch.equal(torch.stack(seen), torch.stack(kept)), "an observation changed after it was handed out"
    return Record(torch.stack(kept), *(torch.stack(column) for column in zip(*rest, strict=True)))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal to the bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_family
def test_sample_gives_tasks(family):
    for split in ("train", "test"):
        params = family.sample(7, split, torch.Generator().manual_seed(0))
        assert params.shape == (7, family.spec.param_dim) and params.dtype == torch.float32
        assert params.isfinite().all()


@every_family
def test_sample_is_its_generators(family):
    draws = [family.sample(20, "train", torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) or len(draws[0].unique(dim=0)) == 2  # two tasks alternate


@every_family
def test_unknown_split_is_refused(family):
    with pytest.raises(ValueError, match=rf"{family.spec.name}: expected a split of train, test.*got 'valid'"):
        family.sample(3, "valid", torch.Generator())


@every
def test_ood_tasks_lie_outside_training(case):
    if case.trained is None:
        with pytest.raises(ValueError, match="expected a split of train, test; got 'ood'"):
            tasks(case, split="ood")
        return
    assert case.trained(tasks(case, 500)).all() and case.trained(tasks(case, 500, "test")).all()
    assert not case.trained(tasks(case, 500, "ood")).any()


@pytest.mark.parametrize("family", SUPERVISED, ids=lambda f: f.spec.name)
def test_supervised_families_give_contexts(family):
    params = family.sample(3, "train", torch.Generator().manual_seed(0))
    first, again, other = (family.context(params, 5, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first.x.shape == (3, 5, family.spec.x_dim) and first.y.shape == (3, 5, family.spec.y_dim)
    assert first.mask.all() and same([first.x, first.y], [again.x, again.y])
    assert not same([first.x, first.y], [other.x, other.y])


@every
@pytest.mark.filterwarnings("ignore:.*A Box observation space (minimum|maximum) value is:UserWarning")
def test_gymnasium_checker(case):
    if case.id is None:
        check_env(SingleTaskEnv(case.family), skip_render_check=True)
    else:
        settings = {} if isinstance(case.family, Reveal) else {"horizon": case.family.spec.horizon}
        check_env(gymnasium.make(case.id, **settings).unwrapped)


@every
def test_single_form_is_one_row(case):
    """``SingleTaskEnv`` gives what the family's own environment gives, to the bit."""
    params = tasks(case, 1)
    expected = episode(case, params)
    single = SingleTaskEnv(case.family, params[0].numpy())
    obs, info = single.reset(seed=3)
    assert np.array_equal(obs, expected.obs[0, 0]) and np.array_equal(info["task"], params[0])
    for t, action in enumerate(noise(case, 1)):
        obs, reward, terminated, truncated, _ = single.step(action[0].numpy())
        assert np.array_equal(obs, expected.obs[t + 1, 0]) and reward == expected.reward[t, 0]
        assert (terminated, truncated) == (expected.terminated[t, 0], expected.truncated[t, 0])
    single.close()


@every
def test_spaces_shapes_and_types(case):
    spec, env = case.family.spec, case.family.env(tasks(case))
    assert isinstance(case.family, ControlFamily) and isinstance(env, gymnasium.vector.VectorEnv)
    assert env.num_envs == 4 and env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert env.single_observation_space.shape == (spec.obs_dim,) and env.observation_space.shape == (4, spec.obs_dim)
    box = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
    assert env.single_action_space == (gymnasium.spaces.Discrete(spec.actions) if spec.actions else box)
    obs, info = env.reset(seed=0)
    assert obs.shape == (4, spec.obs_dim) and obs.dtype == torch.float32 and isinstance(info, dict)
    obs, reward, terminated, truncated, info = env.step(noise(case, 4)[0])
    assert obs.shape == (4, spec.obs_dim) and obs.dtype == torch.float32 and obs.isfinite().all()
    assert reward.shape == (4,) and reward.dtype == torch.float32 and isinstance(info, dict)
    assert all(flag.shape == (4,) and flag.dtype == torch.bool for flag in (terminated, truncated))


@every
def test_wrong_shapes_and_order_are_refused(case):
    family, size = case.family, case.family.spec.param_dim
    with pytest.raises(ValueError, match=rf"{family.spec.name}: expected params \[B, {size}\].*pass what sample"):
        family.env(torch.zeros(2, size + 1))
    with pytest.raises(ValueError, match=rf"{family.spec.name}: expected params \[B, {size}\] with B >= 1"):
        family.env(torch.zeros(0, size))
    with pytest.raises(ValueError, match=rf"{family.spec.name}: expected finite params"):
        family.env(torch.full((1, size), torch.nan))
    env = family.env(tasks(case))
    with pytest.raises(RuntimeError, match=r"expected an episode to have started; call reset\(\)"):
        env.step(noise(case, 4)[0])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"expected actions \(4, {family.spec.action_dim}\), got \(3,"):
        env.step(noise(case, 3)[0])


@every
def test_actions_are_clipped(case):
    if case.family.spec.actions:
        pytest.skip("there is nothing to clip")
    bang = noise(case, 4).sign()
    assert same([episode(case, tasks(case), 7.0 * bang).obs], [episode(case, tasks(case), bang).obs])
    assert not same([episode(case, tasks(case), 0.5 * bang).obs], [episode(case, tasks(case), bang).obs])


@every
def test_seed_decides_everything(case):
    params = tasks(case)
    first, again, other = (episode(case, params, seed=s) for s in (3, 3, 4))
    assert same(list(vars(first).values()), list(vars(again).values()))
    assert torch.equal(first.obs[0], other.obs[0]) == case.fixed_start


@every
def test_reset_without_seed_goes_on(case):
    """Not begun anew, not drawn from the clock, and the same after the same seed."""
    params = tasks(case)
    streams = []
    for seed in (None, None, 3, 3):
        env = case.family.env(params)
        streams.append([env.reset(seed=seed)[0].clone(), env.reset()[0].clone(), env.reset()[0].clone()])
        env.close()
    assert same(streams[0], streams[1]) and same(streams[2], streams[3])
    for starts in streams:
        assert torch.equal(starts[0], starts[1]) == torch.equal(starts[1], starts[2]) == case.fixed_start


@every
def test_no_global_random_state_is_touched(case):
    def state() -> tuple:
        # Not that of `random`, from which the type checker that runs with the tests draws the items it looks at.
        return torch.get_rng_state().tolist(), repr(np.random.get_state())

    def use() -> Tensor:
        params = tasks(case, split="test")
        record = episode(case, params, seed=None)
        return torch.cat([params.flatten(), record.obs.flatten(), record.reward.flatten()])

    before = state()
    first = use()
    assert state() == before, "a global stream was advanced"
    with torch.random.fork_rng():
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)
        assert torch.equal(use(), first), "a global stream was read"


@every
def test_tasks_differ_and_reset_does_not_tell_which(case):
    pool = tasks(case, 16)
    a = pool[0]
    b = pool[(pool - a).abs().sum(1).argmax()]
    actions = noise(case, 2)
    if case.towards is not None:
        actions = case.towards(a.expand(2, -1)).expand(case.family.spec.horizon, -1, -1)
    explore = case.family.spec.reward_free  # an instruction may depend on the task
    one, two = (episode(case, task.expand(2, -1), actions, explore=explore) for task in (a, b))
    assert torch.equal(one.obs[0], two.obs[0])
    if case.family.spec.dynamics_vary:
        assert not torch.equal(one.obs[1:], two.obs[1:])
    else:
        assert torch.equal(one.obs, two.obs)
        assert not torch.equal(one.reward, two.reward)


@every
def test_row_does_not_depend_on_the_others(case):
    """To the bit: neither on their tasks nor, the first rows, on their number."""
    params, others = tasks(case), tasks(case, seed=1)
    full = episode(case, params)
    for b in (0, 2):
        changed = others.clone()
        changed[b] = params[b]
        assert same(full.row(b), episode(case, changed).row(b))
    assert same(full.row(0), episode(case, params[:1]).row(0))


@every
def test_episodes_end_at_the_horizon_or_before_for_good(case):
    horizon = case.family.spec.horizon
    record = episode(case, tasks(case, 6), noise(case, 6, horizon + 3))
    assert not record.truncated[: horizon - 1].any(), "truncated before the horizon"
    assert record.over[horizon - 1].all(), "not over at the horizon"
    assert torch.equal(record.truncated[horizon - 1], ~record.terminated[horizon - 1])
    assert bool(record.terminated.any()) == case.falls
    for b in range(6):
        last = int(record.over[:, b].int().argmax())  # the step at which the row's episode ended
        assert record.over[last:, b].all()
        assert (record.reward[last + 1 :, b] == 0).all()
        assert (record.obs[last + 1 :, b] == record.obs[last + 1, b]).all()
    env = case.family.env(tasks(case))
    env.reset(seed=0)
    for action in noise(case, 4):
        *_, terminated, truncated, _ = env.step(action)
    assert (terminated | truncated).all()
    if horizon == 1:
        return
    env.reset()
    *_, terminated, truncated, _ = env.step(noise(case, 4)[0])
    assert not (terminated | truncated).any(), "reset did not start a new episode"


@every
def test_collect_runs_on_it(case):
    class Nothing:
        def init(self, batch):
            return Point(torch.zeros(batch, 1))

        def update(self, belief, data):
            return belief

    def policy(obs: Tensor, z: Tensor) -> Distribution:
        shape = (len(obs), case.family.spec.action_dim)
        if case.family.spec.actions:
            return OneHotCategorical(logits=torch.zeros(shape))
        return Independent(Uniform(-torch.ones(shape), torch.ones(shape)), 1)

    spec = case.family.spec
    rollout = collect(case.family.env(tasks(case)), Explorer(policy), Nothing(), spec, episodes=2, seed=0)
    context = rollout.transitions.context(next_obs=spec.dynamics_vary)
    assert context.x.shape[-1] == spec.x_dim and context.y.shape[-1] == spec.y_dim
    assert rollout.returns.shape == (4, 2) and rollout.returns.isfinite().all()
    assert (rollout.transitions.boundary.sum(1) == 2).all()


@every
@pytest.mark.gpu
def test_device(case):
    env = case.family.env(tasks(case), device="cuda")
    obs, _ = env.reset(seed=3)
    expected = episode(case, tasks(case))
    assert obs.device.type == "cuda" and torch.equal(obs.cpu(), expected.obs[0])
    obs, *flags, _ = env.step(noise(case, 4)[0].cuda())
    assert all(tensor.device.type == "cuda" for tensor in (obs, *flags))
    assert torch.allclose(obs.cpu(), expected.obs[1], atol=1e-6)


def limp(family: ControlFamily, obs: Tensor, params: Tensor) -> Tensor:
    return torch.zeros(len(obs), family.spec.action_dim)


def staying(family: ControlFamily, obs: Tensor, params: Tensor) -> Tensor:
    return turns(1, family.spec.actions, STAY)(params)[0]


def oracle(family: PointGoal, obs: Tensor, params: Tensor) -> Tensor:
    return family.oracle_action(obs, params)


# The last column is by how much a return may differ. A limp cheetah drifts at most 0.1 m in an episode and an ant,
# which falls on its legs, 1 m: in the return that is the distance over the control step of 0.05 s, or times the steps.
# None: random starts are averaged, 2000 against the reference's 256, and 5 standard errors fail by chance in 1 of 10^6.
REFERENCES = [
    (PointGoal(), "oracle", oracle, None),
    (PointGoal(), "still", limp, None),
    (PointGoal(sparse=True), "oracle", oracle, 1e-4),
    (PointGoal(sparse=True), "still", limp, 0.0),
    (CheetahDir(horizon=50, threads=1), "still", limp, 0.1 / 0.05),
    (CheetahVel(horizon=50, threads=1), "still", limp, 0.1 / 0.05),
    (AntDir(horizon=50, threads=1), "still", limp, 1.0 / 0.05),
    (AntGoal(horizon=50, threads=1), "still", limp, 1.0 * 50),
    (HumanoidDir(horizon=50, threads=1), "still", limp, 1e-3),
    (WalkerParams(horizon=50, threads=1), "still", limp, 1e-3),
    (HopperParams(horizon=50, threads=1), "still", limp, 1e-3),
    (Bus("small_map"), "still", staying, 1e-5),
    (Cooking(), "still", staying, 1e-5),
]


def simulated(family: ControlFamily, policy: Callable, params: Tensor, episodes: int) -> Tensor:
    """Returns ``[B, episodes]`` of consecutive episodes that start with seed 0."""
    env, returns = family.env(params), []
    for k in range(episodes):
        obs, _ = env.reset(seed=0 if k == 0 else None)
        total = torch.zeros(len(params))
        for _ in range(family.spec.horizon):
            obs, reward, *_ = env.step(policy(family, obs, params))
            total += reward
        returns.append(total)
    return torch.stack(returns, 1)


@pytest.mark.parametrize(
    "family, name, policy, slack", REFERENCES, ids=[f"{r[0].spec.name}-{r[1]}" for r in REFERENCES]
)
def test_reference_returns_are_what_simulation_gives(family, name, policy, slack):
    params = family.sample(2, "train", torch.Generator().manual_seed(0))
    reference = family.reference_returns(params)[name]
    assert reference.shape == (2,)
    if slack is None:
        repeated = simulated(family, policy, params.repeat_interleave(2000, 0), 1).reshape(2, 2000)
        error = repeated.std(1) * (1 / 2000 + 1 / 256) ** 0.5
        assert ((repeated.mean(1) - reference).abs() <= 5 * error).all()
    else:
        # 4 episodes: the number over which the families without a formula average theirs.
        assert ((simulated(family, policy, params, 4).mean(1) - reference).abs() <= slack).all()


@every
def test_no_simulation_beats_the_best_reference(case):
    if isinstance(case.family, GymFamily):
        pytest.skip("a user's family has no references")
    params = tasks(case)
    references = case.family.reference_returns(params)
    worse = [references[name] for name in ("still", "walking") if name in references]
    best = [references[name] for name in ("oracle", "upper_bound") if name in references]
    assert worse and all((value <= bound).all() for value in worse for bound in best)
    if "upper_bound" in references:
        assert (episode(case, params).reward.sum(0) <= references["upper_bound"]).all()


NEED_DATA = {"omniglot", "mini_imagenet"}  # tests/tasks/test_image_files.py makes them small archives
CONFIGS = sorted(
    path for path in (Path(__file__).parents[2] / "configs" / "task").glob("*.yaml") if path.stem not in NEED_DATA
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_gives_a_family_of_the_suite(path):
    config = without_schema(OmegaConf.to_container(OmegaConf.load(path)))
    family, variant = instantiate(config), {key: config[key] for key in ("variant",) if key in config}
    assert family.spec == type(family)(**variant).spec, "the configuration and the class disagree about the defaults"
    names = {c.family.spec.name for c in CASES} | {f.spec.name for f in SUPERVISED}
    assert family.spec.name in names, f"add {family.spec.name} to CASES or SUPERVISED"
    assert family.spec.name == f"{path.stem}-v1"


def test_every_family_has_an_id_and_a_config():
    assert {c.id for c in CASES if c.id} == set(IDS)
    for case in CASES:
        if case.id is not None:
            made = gymnasium.make(case.id).unwrapped.family
            assert type(made) is type(case.family)
            assert made.spec.name == case.family.spec.name, "the id's version or variant is not the family's"
    classes = {type(family) for family in [*(c.family for c in CASES if c.id), *SUPERVISED]}
    configured = {OmegaConf.load(path)["_target_"] for path in CONFIGS}
    assert {f"{found.__module__}.{found.__name__}" for found in classes} == configured
    variants = {c.family.spec.name for c in CASES if isinstance(c.family, Bus)}
    assert variants <= {f"{path.stem}-v1" for path in CONFIGS}


class Broken(PointGoal):
    """A point robot with one fault, each of which one check must find."""

    def __init__(self, fault: str) -> None:
        super().__init__(horizon=8)
        self.fault = fault

    def env(self, params, device="cpu"):
        env = super().env(params, device)
        reset, step, fault = env.reset, env.step, self.fault

        def broken_reset(*, seed=None, options=None):
            obs, info = reset(seed=None if fault == "seed" else seed, options=options)
            if fault == "leak":
                obs = obs + 0.01 * params
            if fault == "global":
                obs = obs + torch.rand(obs.shape)
            return obs, info

        def broken_step(action):
            if fault == "clip":
                env._position = env._position + 0.1 * torch.as_tensor(action)
            obs, reward, terminated, truncated, info = step(action)
            if fault == "rows":
                reward = reward + reward.mean()
            if fault == "horizon":
                truncated = truncated & False
            if fault == "same":
                reward = torch.zeros_like(reward)
            return obs, reward, terminated, truncated, info

        env.reset, env.step = broken_reset, broken_step
        return env


@pytest.mark.parametrize(
    "fault, check",
    [
        ("seed", test_seed_decides_everything),
        ("leak", test_tasks_differ_and_reset_does_not_tell_which),
        ("same", test_tasks_differ_and_reset_does_not_tell_which),
        ("global", test_no_global_random_state_is_touched),
        ("clip", test_actions_are_clipped),
        ("rows", test_row_does_not_depend_on_the_others),
        ("horizon", test_episodes_end_at_the_horizon_or_before_for_good),
    ],
)
def test_a_faulty_family_is_found(fault, check):
    check(Case(Broken("none"), within(1.0)))
    with pytest.raises(AssertionError):
        check(Case(Broken(fault), within(1.0)))
