"""A user's own environment as a family: what the environments are told, what comes back, and what goes wrong."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from bayesmeta.collect import collect
from bayesmeta.guards import NonFiniteError
from bayesmeta.inference.beliefs import Point
from bayesmeta.tasks.gym_family import GymFamily
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.types import Explorer


class Line(gymnasium.Env):
    """Walk on a line to ``goal``: reward ``-|x - goal|``, terminated beyond 1, truncated by itself after 5 steps.

    ``log`` is shared by all copies and keeps every call; ``fault`` makes one of them misbehave in ``step``.
    """

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, log=None, low=-1.0, high=1.0, fault=None):
        self.action_space = Box(np.float32(low), np.float32(high), (1,), np.float32)
        self.log = [] if log is None else log
        self.fault, self.goal = fault, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.log.append(("reset", self.goal, seed, options))
        self.x, self.t = self.np_random.uniform(-0.1, 0.1), 0
        return np.array([self.x]), {}

    def step(self, action):
        self.log.append(("step", self.goal, action.copy()))
        self.t += 1
        self.x += float(action[0])
        obs, reward = np.array([self.x]), -abs(self.x - self.goal)
        if self.fault is not None and self.goal > 0.5:
            return self.fault(obs, reward)
        return obs, reward, abs(self.x) > 1, self.t == 5, {}


def set_goal(env, task):
    env.unwrapped.goal = float(task[0])


def family(horizon=4, sample=None, **settings) -> GymFamily:
    return GymFamily(
        name="line-v1",
        make=lambda: Line(**settings),
        set_task=set_goal,
        sample=sample or (lambda n, split, generator: torch.rand(n, 1, generator=generator)),
        param_names=("goal",),
        horizon=horizon,
    )


GOALS = torch.tensor([[0.25], [0.75]])


def test_spec_is_read_off_the_spaces():
    spec = family().spec
    assert (spec.obs_dim, spec.action_dim, spec.horizon, spec.x_dim, spec.y_dim) == (1, 1, 4, 2, 1)
    assert spec.name == "line-v1" and spec.param_names == ("goal",) and not spec.dynamics_vary


def test_task_is_set_before_every_reset_and_options_reach_every_row():
    log = []
    env = family(log=log).env(GOALS)
    env.reset(seed=0)
    env.reset(options={"easy": True})
    assert [(goal, options) for _, goal, _, options in log] == [
        *((0.25, None), (0.75, None)),
        *((0.25, {"easy": True}), (0.75, {"easy": True})),
    ]


def test_seeds_of_rows_differ_and_come_from_the_seed():
    log = []
    for seed in (0, 0, 1, None):
        family(log=log).env(GOALS).reset(seed=seed)
    seeds = [own for _, _, own, _ in log]
    assert all(isinstance(own, int) for own in seeds)
    assert seeds[0:2] == seeds[2:4] == seeds[6:8]  # without one the first reset counts as seed 0
    assert len(set(seeds[0:2] + seeds[4:6])) == 4
    env = family(log=log).env(GOALS)
    env.reset(seed=5)
    env.reset()
    assert [own for _, _, own, _ in log[-2:]] == [None, None]  # the environments' own streams go on


def test_rewards_are_the_environments():
    env = family().env(GOALS)
    start, _ = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(torch.tensor([[0.5], [-0.25]]))
    assert torch.allclose(obs, start + torch.tensor([[0.5], [-0.25]]))
    assert torch.allclose(reward, -(obs - GOALS).abs().squeeze(1)) and obs.dtype == reward.dtype == torch.float32
    assert not terminated.any() and not truncated.any() and torch.equal(info["training_reward"], reward)


@pytest.mark.parametrize(
    "low, high, sent, received",
    [
        (-1.0, 1.0, [0.1, -0.7, 1.0, 5.0], [0.1, -0.7, 1.0, 1.0]),  # the same to the bit, and clipped
        (-2.0, 2.0, [0.1, -1.0, 1.0, 0.0], [0.2, -2.0, 2.0, 0.0]),
        (0.0, 3.0, [-1.0, 0.0, 1.0, -9.0], [0.0, 1.5, 3.0, 0.0]),
    ],
)
def test_actions_are_mapped_onto_the_environments_range(low, high, sent, received):
    log = []
    rows = family(log=log, low=low, high=high).env(torch.zeros(4, 1))
    rows.reset(seed=0)
    rows.step(torch.tensor(sent).unsqueeze(1))
    commands = np.concatenate([entry[2] for entry in log if entry[0] == "step"])
    assert commands.dtype == np.float32 and commands.tolist() == np.float32(received).tolist()


def test_range_that_float32_cannot_hit_is_never_left():
    log = []
    space = Box(np.float32(0.1), np.float32(0.7), (1,), np.float32)
    env = family(log=log, low=0.1, high=0.7).env(torch.zeros(200, 1))
    env.reset(seed=0)
    env.step(torch.linspace(-1, 1, 200).unsqueeze(1))
    assert all(entry[2] in space for entry in log if entry[0] == "step")


def test_terminated_row_is_not_stepped_and_the_others_go_on():
    log = []
    env = family(log=log, horizon=4).env(GOALS)
    env.reset(seed=0)
    outward = torch.tensor([[1.0], [0.0]])
    flags = [env.step(outward)[2:4] for _ in range(4)]
    assert [terminated[0].item() for terminated, _ in flags] == [False, True, True, True]
    assert [truncated[1].item() for _, truncated in flags] == [False, False, False, True]
    assert not any(terminated[1] or truncated[0] for terminated, truncated in flags)
    assert [entry[1] for entry in log if entry[0] == "step"].count(0.25) == 2


def test_truncation_of_the_environment_itself_is_kept():
    env = family(horizon=9).env(GOALS)
    env.reset(seed=0)
    for t in range(1, 10):
        _, reward, _, truncated, _ = env.step(torch.zeros(2, 1))
        assert truncated.tolist() == [t >= 5] * 2
        assert (reward == 0).all() == (t > 5)


def test_training_reward_comes_from_info():
    log = []
    env = family(log=log, fault=lambda obs, reward: (obs, reward, False, False, {"training_reward": 7.0})).env(GOALS)
    env.reset(seed=0)
    _, reward, *_, info = env.step(torch.zeros(2, 1))
    assert info["training_reward"].tolist() == [reward[0].item(), 7.0] and reward[1] < 0


def broken(obs, reward):
    raise ZeroDivisionError("no brakes")


@pytest.mark.parametrize(
    "fault, message",
    [
        (broken, "ZeroDivisionError: no brakes"),
        (
            lambda obs, reward: (obs[:0], reward, False, False, {}),
            r"expected an observation \(1,\) as in its space, got",
        ),
        (lambda obs, reward: (obs, "much", False, False, {}), "ValueError: could not convert"),
        (lambda obs, reward: (obs, reward, False, {}), "ValueError: not enough values to unpack"),  # the API of old gym
    ],
)
def test_exceptions_name_row_and_task(fault, message):
    env = family(fault=fault).env(GOALS)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"line-v1: step of row 1 with the task {'goal': 0.75} raised .*" + message):
        env.step(torch.zeros(2, 1))


def test_exception_of_set_task_names_row_and_task():
    user = GymFamily(
        name="line-v1",
        make=Line,
        set_task=lambda env, task: env.unwrapped.set_target(task),
        sample=lambda n, split, generator: torch.rand(n, 1, generator=generator),
        param_names=("goal",),
        horizon=4,
    )
    with pytest.raises(
        RuntimeError, match=r"reset of row 0 with the task {'goal': 0.25} raised AttributeError"
    ) as error:
        user.env(GOALS).reset(seed=0)
    assert isinstance(error.value.__cause__, AttributeError)


def test_nan_action_is_refused_before_the_environment_sees_it():
    log = []
    env = family(log=log).env(GOALS)
    env.reset(seed=0)
    with pytest.raises(FloatingPointError, match=r"expected finite actions, got \[nan\] in row 1"):
        env.step(torch.tensor([[0.0], [torch.nan]]))
    assert not any(entry[0] == "step" for entry in log)


def test_nan_observation_stops_collection():
    class Nothing:
        def init(self, batch):
            return Point(torch.zeros(batch, 1))

        def update(self, belief, data):
            raise AssertionError("the belief saw a NaN")

    user = family(fault=lambda obs, reward: (obs * np.nan, reward, False, False, {}))
    explorer = Explorer(lambda obs, z: torch.distributions.Independent(torch.distributions.Normal(obs, 1.0), 1))
    with pytest.raises(NonFiniteError, match="`observation`"):
        collect(user.env(GOALS), explorer, Nothing(), user.spec)


def test_task_array_is_the_environments_own():
    """An environment that writes to its task does not change the family's."""

    def careless(env, task):
        set_goal(env, task)
        task += 1.0

    log = []
    user = GymFamily(
        name="line-v1",
        make=lambda: Line(log),
        set_task=careless,
        sample=lambda n, split, generator: torch.rand(n, 1, generator=generator),
        param_names=("goal",),
        horizon=4,
    )
    env = user.env(GOALS)
    env.reset()
    env.reset()
    assert [entry[1] for entry in log] == [0.25, 0.75, 0.25, 0.75] and GOALS.tolist() == [[0.25], [0.75]]


def test_environments_are_closed():
    closed = []

    class Closing(Line):
        def close(self):
            closed.append(self.goal)

    user = GymFamily(
        name="line-v1",
        make=Closing,
        set_task=set_goal,
        sample=lambda n, split, generator: torch.rand(n, 1, generator=generator),
        param_names=("goal",),
        horizon=4,
    )
    assert closed == [None]  # the one that showed its spaces
    env = user.env(GOALS)
    env.reset()
    env.close()
    env.close()
    assert closed == [None, 0.25, 0.75]


@pytest.mark.parametrize(
    "space, message",
    [
        (Discrete(3), r"observation space \[S\], got Discrete\(3\); wrap .*FlattenObservation"),
        (Dict({"x": Box(-1, 1, (1,))}), "observation space .*FlattenObservation"),
        (Box(-1, 1, (2, 2)), "observation space .*FlattenObservation"),
    ],
)
def test_unsuitable_observation_spaces_are_refused(space, message):
    class Other(Line):
        observation_space = space

    with pytest.raises(ValueError, match=f"GymFamily line-v1: expected a Box {message}"):
        GymFamily(
            name="line-v1", make=Other, set_task=set_goal, sample=lambda *_: None, param_names=("goal",), horizon=4
        )


@pytest.mark.parametrize(
    "space",
    [Discrete(3), Box(-np.inf, np.inf, (1,)), Box(0, np.inf, (1,)), Box(-1, 1, (1, 1)), Box(0, 5, (1,), np.int64)],
    ids=str,
)
def test_unsuitable_action_spaces_are_refused(space):
    class Other(Line):
        def __init__(self):
            super().__init__()
            self.action_space = space

    with pytest.raises(ValueError, match=r"expected a bounded Box action space \[A\] of floats, got .*TransformAction"):
        GymFamily(
            name="line-v1", make=Other, set_task=set_goal, sample=lambda *_: None, param_names=("goal",), horizon=4
        )


def test_what_the_messages_advise_works():
    """FlattenObservation and TransformAction do make a Dict observation and an unbounded action fit."""

    class Wild(Line):
        observation_space = Dict({"x": Box(-np.inf, np.inf, (1,), np.float64)})

        def __init__(self):
            super().__init__()
            self.action_space = Box(-np.inf, np.inf, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed, options=options)
            return {"x": obs}, info

        def step(self, action):
            obs, *rest = super().step(action)
            return {"x": obs}, *rest

    def make():
        env = gymnasium.wrappers.FlattenObservation(Wild())
        return gymnasium.wrappers.TransformAction(env, lambda a: 3 * a, Box(-1, 1, (1,), np.float32))

    user = GymFamily(
        name="wild-v1",
        make=make,
        set_task=set_goal,
        sample=lambda n, split, generator: torch.rand(n, 1, generator=generator),
        param_names=("goal",),
        horizon=4,
    )
    env = user.env(GOALS)
    start, _ = env.reset(seed=0)
    obs, *_ = env.step(torch.tensor([[0.1], [-0.1]]))
    assert torch.allclose(obs, start + torch.tensor([[0.3], [-0.3]]))


def test_make_must_build_an_environment():
    with pytest.raises(ValueError, match=r"expected make\(\) to return a gymnasium.Env, got str"):
        GymFamily(
            name="x", make=lambda: "env", set_task=set_goal, sample=lambda *_: None, param_names=("a",), horizon=4
        )


@pytest.mark.parametrize("settings", [{"horizon": 0, "param_names": ("a",)}, {"horizon": 3, "param_names": ()}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="a name for each task parameter and a horizon of at least 1 step"):
        GymFamily(name="x", make=Line, set_task=set_goal, sample=lambda *_: None, **settings)


@pytest.mark.parametrize("drawn", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(3, 2)])
def test_sample_of_the_wrong_shape_is_refused(drawn):
    user = family(sample=lambda n, split, generator: drawn)
    with pytest.raises(ValueError, match=r"expected sample\(3, 'train', generator\) to return \[3, 1\].*got \("):
        user.sample(3, "train", torch.Generator())


def test_sample_may_return_an_array_and_is_told_the_split():
    splits = []
    user = family(sample=lambda n, split, generator: splits.append(split) or np.ones((n, 1)))
    assert user.sample(3, "ood", torch.Generator()).dtype == torch.float32 and splits == ["ood"]
    with pytest.raises(ValueError, match="expected a split of train, test, ood; got 'trian'"):
        user.sample(3, "trian", torch.Generator())


def test_agrees_with_the_tensor_simulator():
    """Point robot written again as a gymnasium.Env gives the returns of the library's own, from the same starts."""
    own = PointGoal(horizon=6)
    goals = own.sample(3, "train", torch.Generator().manual_seed(0))
    tensors = own.env(goals)
    starts, _ = tensors.reset(seed=0)

    class Robot(gymnasium.Env):
        observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        action_space = Box(-0.1, 0.1, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            row = np.flatnonzero((goals.numpy() == self.goal).all(1))[0]
            self.place = starts[row].numpy().astype(np.float64)
            return self.place, {}

        def step(self, action):
            self.place = self.place + action
            return self.place, -np.linalg.norm(self.place - self.goal), False, False, {}

    user = GymFamily(
        name="robot-v1",
        make=Robot,
        set_task=lambda env, task: setattr(env, "goal", task),
        sample=own.sample,
        param_names=("goal_x", "goal_y"),
        horizon=6,
    )
    env = user.env(goals)
    env.reset(seed=0)
    for t in range(6):
        action = 2 * torch.rand(3, 2, generator=torch.Generator().manual_seed(t)) - 1
        for theirs, ours in zip(env.step(action)[:4], tensors.step(action)[:4], strict=True):
            assert torch.allclose(theirs.float(), ours.float(), atol=1e-6)
