"""Collection with environments, policies and beliefs so small that every number is known."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from bayesmeta.collect import collect
from bayesmeta.guards import NonFiniteError
from bayesmeta.inference.beliefs import Point
from bayesmeta.types import Context, Explorer, Spec

HORIZON = 3
SPEC = Spec.control("steps-v1", obs_dim=2, action_dim=1, horizon=HORIZON, param_names=("length",))


class Steps:
    """Observation ``(episode, t)``, episodes counted from 1; step ``t`` of episode ``k`` pays ``10 k + t``.

    Row ``b`` terminates after ``lengths[b]`` steps and then pays NaN with a NaN observation, which nobody may read.
    ``nan`` is an (episode, t, what) at which the first row's ``obs`` or ``reward`` is NaN.
    """

    def __init__(self, lengths=(9,), nan=None):
        self.num_envs, self.lengths, self.nan = len(lengths), torch.tensor(lengths), nan
        self.episode, self.t, self.seeds, self.actions = 0, 0, [], []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observation(), {}

    def observation(self) -> Tensor:
        obs = torch.tensor([float(self.episode), float(self.t)]).repeat(self.num_envs, 1)
        obs[self.t > self.lengths] = torch.nan
        if self.nan == (self.episode, self.t, "obs"):
            obs[0, 1] = torch.nan
        return obs

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        reward = torch.full((self.num_envs,), 10.0 * self.episode + self.t)
        reward[self.t > self.lengths] = torch.nan
        if self.nan == (self.episode, self.t, "reward"):
            reward[0] = torch.nan
        info = {"training_reward": 100.0 * reward}
        return self.observation(), reward, self.t >= self.lengths, torch.zeros(self.num_envs, dtype=torch.bool), info

    def close(self): ...


class Sum:
    """The belief is a point: the sum of the targets seen. It says what was seen, and how often it was asked."""

    def __init__(self):
        self.updates: list[Context] = []

    def init(self, batch: int) -> Point:
        return Point(torch.zeros(batch, 1))

    def update(self, belief: Point, data: Context) -> Point:
        self.updates.append(data)
        y = data.y.masked_fill(~data.mask.unsqueeze(-1), 0.0)
        assert y.isfinite().all(), "the belief saw a NaN"
        return Point(belief.z + y.sum((1, 2)).unsqueeze(1))


@dataclass(frozen=True)
class Fixed:
    """An action law that is one value."""

    mode: Tensor

    def sample(self) -> Tensor:
        return self.mode


class Echo:
    """Acts out the latent, divided by 1000, and remembers every one."""

    def __init__(self):
        self.seen = []

    def __call__(self, obs, z):
        self.seen.append(z.clone())
        return Fixed(z / 1000)


# The returns of the first four episodes of a row that lives through all 3 steps, and of all so far.
RETURNS = [36.0, 66.0, 96.0, 126.0]
TOTALS = [0.0, 36.0, 102.0, 198.0, 324.0]


def run(env=None, episodes=4, belief=None, seed=None, inference=None, spec=SPEC, **explorer):
    explorer = Explorer(explorer.pop("policy", None) or Echo(), **{"reads": "mean", **explorer})
    return collect(env or Steps(), explorer, inference or Sum(), spec, episodes=episodes, belief=belief, seed=seed)


def test_transitions_are_what_happened():
    rollout = run(episodes=2)
    first, second = rollout.episodes
    assert first.obs.tolist() == [[[1, 0], [1, 1], [1, 2]]] and second.next_obs.tolist() == [[[2, 1], [2, 2], [2, 3]]]
    assert first.reward.tolist() == [[11, 12, 13]] and second.reward.tolist() == [[21, 22, 23]]
    assert second.action.squeeze(-1)[0].tolist() == pytest.approx([0.036] * 3)
    assert first.mask.all() and not first.terminated.any()
    assert first.boundary.tolist() == [
        [False, False, True]
    ]  # the horizon ends an episode that the environment does not
    assert rollout.returns.tolist() == [RETURNS[:2]]
    assert rollout.transitions.reward.tolist() == [[11, 12, 13, 21, 22, 23]]


def test_rows_that_end_early_are_masked():
    env = Steps(lengths=(1, 2, 9))
    first, second = run(env, episodes=2).episodes
    assert first.mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert first.boundary.tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    assert first.terminated.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    assert first.returns().tolist() == [11, 23, 36] and second.returns().tolist() == [21, 43, 66]


def test_episode_stops_when_every_row_has():
    env = Steps(lengths=(1, 2))
    rollout = run(env, episodes=2)
    assert [episode.reward.shape for episode in rollout.episodes] == [(2, 2), (2, 2)] and len(env.actions) == 4
    assert rollout.beliefs[2].z.squeeze(1).tolist() == [11 + 21, 23 + 43]


def test_boundary_of_truncation_is_not_termination():
    class Truncating(Steps):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, truncated, terminated, info

    (episode,) = run(Truncating(lengths=(2, 9)), episodes=1).episodes
    assert episode.boundary.tolist() == [[False, True, False], [False, False, True]] and not episode.terminated.any()


def test_seed_starts_the_trial_only():
    env = Steps()
    run(env, episodes=3, seed=7)
    assert env.seeds == [7, None, None]


def test_no_gradient_is_recorded():
    weight = torch.ones((), requires_grad=True)
    rollout = run(policy=lambda obs, z: Fixed(weight * z), episodes=2)
    assert not rollout.episodes[1].action.requires_grad and not rollout.latents.requires_grad


def test_deterministic_takes_the_mode():
    law = Independent(Normal(torch.full((1, 1), 0.25), 1.0), 1)
    rollout = run(policy=lambda obs, z: law, deterministic=True, episodes=1)
    assert (rollout.episodes[0].action == 0.25).all()
    rollout = run(policy=lambda obs, z: law, episodes=1)
    assert len(rollout.episodes[0].action.unique()) == HORIZON


def test_beliefs_before_and_after_every_episode():
    rollout = run()
    assert [belief.z.item() for belief in rollout.beliefs] == TOTALS


@pytest.mark.parametrize(
    "settings, read",
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"prior_episodes": 3}, [0, 0, 0, 3, 4]),
        ({"prior_episodes": 0}, [0, 1, 2, 3, 4]),
        ({"prior_episodes": 9}, [0, 0, 0, 0, 0]),
        ({"redraw": 2}, [0, 1, 1, 3, 3]),
        ({"redraw": 3, "prior_episodes": 0}, [0, 0, 0, 3, 3]),
        ({"redraw": 2, "prior_episodes": 2}, [0, 0, 2, 2, 4]),
    ],
    ids=str,
)
def test_which_belief_an_episode_acts_on(settings, read):
    """``read[k]``: after how many episodes the belief was, of which episode k's latent is drawn."""
    policy = Echo()
    rollout = run(policy=policy, episodes=5, **settings)
    expected = [[*TOTALS, 324.0 + 156.0][k] for k in read]
    assert rollout.latents[0, :, 0].tolist() == expected
    assert [z.item() for z in policy.seen] == [value for value in expected for _ in range(HORIZON)]
    assert [belief.z.item() for belief in rollout.beliefs] == [*TOTALS, 480.0]  # whatever is read, all is inferred from


@dataclass(frozen=True)
class Broad:
    """A belief that is its own inference and never changes: N(3, 2^2) in two dimensions."""

    batch: int = 1

    @property
    def posterior(self) -> Independent:
        return Independent(Normal(torch.full((self.batch, 2), 3.0), 2.0), 1)

    def init(self, batch: int) -> "Broad":
        return Broad(batch)

    def update(self, belief: "Broad", data: Context) -> "Broad":
        return belief


@pytest.mark.parametrize("redraw, distinct", [(1, 4), (2, 3)])
def test_latent_is_drawn_anew_for_every_prior_episode_and_held_within(redraw, distinct):
    policy = Echo()
    run(policy=policy, inference=Broad(), reads="sample", prior_episodes=2, redraw=redraw)
    assert len(torch.stack(policy.seen)[..., 0].unique()) == distinct


def test_what_is_read_of_the_belief():
    log_sd = float(torch.tensor(2.0).log())
    rollout = run(Steps((9, 9)), policy=lambda obs, z: Fixed(z[:, :1]), inference=Broad(), reads="moments", episodes=1)
    assert rollout.latents.tolist() == [[pytest.approx([3.0, 3.0, log_sd, log_sd])]] * 2
    rollout = run(policy=lambda obs, z: Fixed(z[:, :1]), inference=Broad(), reads="mean", episodes=1)
    assert rollout.latents.tolist() == [[[3.0, 3.0]]]


def test_redraw_at_every_step():
    policy, inference = Echo(), Sum()
    rollout = run(policy=policy, inference=inference, redraw=0, episodes=2)
    assert [z.item() for z in policy.seen] == [0, 11, 23, 36, 57, 79]
    assert [belief.z.item() for belief in rollout.beliefs] == TOTALS[:3]
    assert rollout.latents[0, :, 0].tolist() == [0, 36]  # what each episode began with
    assert len(inference.updates) == 2 * HORIZON  # and not a second time at the end of the episode


def test_redraw_at_every_step_skips_rows_that_have_ended():
    policy = Echo()
    rollout = run(Steps(lengths=(1, 9)), policy=policy, redraw=0, episodes=2)
    assert torch.stack(policy.seen)[..., 0].tolist() == [[0, 0], [11, 11], [11, 23], [11, 36], [32, 57], [32, 79]]
    assert rollout.beliefs[2].z.squeeze(1).tolist() == [32, 102]


def test_trial_continues_from_a_given_belief():
    start = Point(torch.full((1, 1), 1000.0))
    rollout = run(belief=start, prior_episodes=2)
    assert rollout.beliefs[0] is start
    assert rollout.latents[0, :, 0].tolist() == [1000, 1000, 1102, 1198]


def test_window_keeps_the_last_data_only():
    rollout = run(window=4, belief=Point(torch.full((1, 1), 1000.0)))
    last = [11 + 12 + 13, 13 + 21 + 22 + 23, 23 + 31 + 32 + 33, 33 + 41 + 42 + 43]
    assert [belief.z.item() for belief in rollout.beliefs] == [1000, *(1000 + total for total in last)]


def test_window_moves_with_every_step_across_episodes():
    policy = Echo()
    run(policy=policy, window=2, redraw=0, episodes=2)
    assert [z.item() for z in policy.seen] == [0, 11, 11 + 12, 12 + 13, 13 + 21, 21 + 22]


def test_window_counts_real_data_of_each_task():
    """A row that ended early keeps its older data: padding does not push them out."""
    inference = Sum()
    rollout = run(Steps(lengths=(1, 9)), inference=inference, window=2)
    short, long = zip(*(belief.z.squeeze(1).tolist() for belief in rollout.beliefs), strict=True)
    assert short == (0, 11, 11 + 21, 21 + 31, 31 + 41)
    assert long == (0, 12 + 13, 22 + 23, 32 + 33, 42 + 43)
    assert inference.updates[-1].size == 2 * HORIZON  # what is older than every window was dropped


def test_training_reward_is_apart_from_what_is_reported_and_inferred_from():
    rollout = run(episodes=2)
    assert rollout.episodes[0].training_reward.tolist() == [[1100, 1200, 1300]]
    assert rollout.returns.tolist() == [RETURNS[:2]] and rollout.beliefs[2].z.item() == TOTALS[2]


def test_training_reward_is_the_reward_where_there_is_no_other():
    class Plain(Steps):
        def step(self, action):
            *rest, _ = super().step(action)
            return *rest, {}

    (episode,) = run(Plain(), episodes=1).episodes
    assert torch.equal(episode.training_reward, episode.reward)


@pytest.mark.parametrize("redraw", [1, 0])
def test_bonus_goes_to_the_training_reward_only(redraw):
    def bonus(before, after, episode):
        return (after.z - before.z) + episode.reward

    rollout = run(bonus=bonus, redraw=redraw, episodes=2)
    gains = [episode.training_reward - 100 * episode.reward - episode.reward for episode in rollout.episodes]
    assert [gain.tolist() for gain in gains] == [[[36.0] * 3], [[66.0] * 3]]
    assert rollout.returns.tolist() == [RETURNS[:2]] and rollout.beliefs[2].z.item() == TOTALS[2]


def test_context_holds_next_observations_where_dynamics_vary():
    spec = Spec.control("x-v1", obs_dim=2, action_dim=1, horizon=3, param_names=("a",), dynamics_vary=True)
    inference = Sum()
    rollout = run(inference=inference, spec=spec, episodes=1)
    assert inference.updates[0].y.tolist() == [[[11, 1, 1], [12, 1, 2], [13, 1, 3]]]
    assert inference.updates[0].x.tolist() == [[[1, 0, 0], [1, 1, 0], [1, 2, 0]]]
    assert rollout.beliefs[1].z.item() == 36 + 3 + 6


@pytest.mark.parametrize("redraw", [1, 0])
@pytest.mark.parametrize(
    "t, what, name", [(2, "reward", "reward"), (2, "obs", "observation"), (0, "obs", "observation")]
)
def test_nan_stops_before_belief_and_policy_see_it(redraw, t, what, name):
    def policy(obs, z):
        assert obs.isfinite().all() and z.isfinite().all(), "the policy saw a NaN"
        return Fixed(z)

    env = Steps(lengths=(9, 9), nan=(2, t, what))
    with pytest.raises(NonFiniteError, match=f"`{name}`") as error:
        run(env, policy=policy, redraw=redraw)  # `Sum` refuses NaN
    assert error.value.name == name and env.episode == 2
    if what == "obs":
        assert env.t == t


def test_nan_training_reward_is_named():
    class Shaped(Steps):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {"training_reward": info["training_reward"] * torch.inf}

    with pytest.raises(NonFiniteError, match="`training_reward`"):
        run(Shaped())


def test_nan_of_a_finished_row_is_nobodys_business():
    rollout = run(Steps(lengths=(1, 9)), policy=lambda obs, z: Fixed(z))
    assert rollout.transitions.reward.isnan().any()  # the trap was armed
    assert rollout.returns.tolist() == [[11, 21, 31, 41], RETURNS]


class Counting:
    """Acts with how many observations it has seen in this episode, plus what it did last, plus the latent."""

    def __init__(self):
        self.seen: list[tuple[Tensor, Tensor]] = []

    def begin(self, batch):
        return torch.zeros(batch, 1)

    def act(self, obs, previous, z, memory):
        self.seen.append((obs, previous))
        return Independent(Normal(memory + 1 + previous, 1e-6), 1), memory + 1


def test_a_recurrent_policy_remembers_its_episode_and_its_last_action():
    policy, env = Counting(), Steps((9, 9))
    rollout = collect(env, Explorer(policy, deterministic=True), Sum(), SPEC, episodes=2)
    for episode in rollout.episodes:  # 1, then 2 + 1, then 3 + 3: both begin anew
        assert episode.action[..., 0].tolist() == [[1.0, 3.0, 6.0]] * 2
    assert not policy.seen[0][1].any() and not policy.seen[3][1].any()


class Phases(Steps):
    """Steps that also note which episodes were asked for as exploration."""

    def __init__(self):
        super().__init__((9,))
        self.options = []

    def reset(self, *, seed=None, options=None):
        self.options.append(options)
        return super().reset(seed=seed)


@pytest.mark.parametrize("prior_episodes", [0, 1, 2])
def test_exploration_is_a_policy_and_a_kind_of_episode_of_its_own(prior_episodes):
    spec, env = dataclasses.replace(SPEC, reward_free=True), Phases()
    explore, execute = (lambda obs, z, v=v: Independent(Normal(torch.full((1, 1), v), 1e-6), 1) for v in (0.25, 0.75))
    explorer = Explorer(execute, deterministic=True, exploration=explore, prior_episodes=prior_episodes)
    collect(env, explorer, Sum(), spec, episodes=3)
    first = [k < prior_episodes for k in range(3)]
    assert env.options == [{"explore": f} for f in first]
    assert [float(env.actions[3 * k]) for k in range(3)] == [0.25 if f else 0.75 for f in first]


def test_families_with_rewards_throughout_are_reset_without_options():
    env = Phases()
    collect(env, Explorer(Counting(), deterministic=True), Sum(), SPEC, episodes=1)
    assert env.options == [None]
