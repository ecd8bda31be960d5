"""The engine of the finite worlds: exploration, instructions, actions, options, and what is refused."""

from copy import deepcopy

import gymnasium
import pytest
import torch
from torch.distributions import OneHotCategorical
from torch.nn.functional import one_hot

from bayesmeta.collect import collect
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.bus import Bus, SmallMap
from bayesmeta.tasks.cooking import Cooking
from bayesmeta.tasks.grid import ACTIONS, moved
from bayesmeta.tasks.reveal import Reveal
from bayesmeta.types import Context, Explorer, Transitions
from tests.tasks.worlds import END, LEFT, RIDE, RIGHT, STAY, UP, episode, generator, random_actions

FAMILIES = [SmallMap(), Bus("vanilla"), Bus("map"), Bus("distraction"), Cooking(), Reveal(actions=5)]
every = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.spec.name)


@every
def test_exploration_pays_nothing_asks_for_nothing_and_ends_at_the_end_only(family):
    env = family.env(family.sample(200, "train", generator()))
    actions = random_actions(family, 200)
    actions[:, 100:] = random_actions(family, 100, 1, without=() if family.end is None else (family.end,))
    seen = episode(env, actions, explore=True)
    assert (seen.reward == 0).all() and (seen.obs[..., -family.instruction_dim :] == 0).all()
    assert (seen.next_obs[..., -family.instruction_dim :] == 0).all()
    ends = (seen.action.argmax(-1) == family.end) & seen.mask if family.end is not None else seen.terminated & False
    assert torch.equal(seen.terminated, ends)
    last = torch.zeros_like(seen.mask)
    last[:, -1] = True
    assert torch.equal(seen.boundary, (ends | last) & seen.mask)


@every
def test_instructions_are_uniform_and_drawn_anew(family):
    """Each of the problem's own is as likely as it stands there, whatever was drawn before."""
    rows = 4000
    params = family.sample(1, "test", generator(3)).expand(rows, -1)
    env = family.env(params)
    choices = family.instructions(params[:1].long())[0]
    draws = [env.reset(seed=5 if k == 0 else None)[0][:, -family.instruction_dim :].long() for k in range(2)]
    kinds, counts = choices.unique(dim=0, return_counts=True)
    chance = counts / len(choices)
    if len(kinds) == 1:
        assert (draws[0] == kinds).all()
        return
    which = [(draw.unsqueeze(1) == kinds).all(-1).int().argmax(1) for draw in draws]
    joint = torch.zeros(len(kinds), len(kinds))
    joint.index_put_((which[0], which[1]), torch.ones(rows), accumulate=True)
    expected = rows * chance.unsqueeze(1) * chance
    cells = expected.numel()
    statistic = ((joint - expected) ** 2 / expected).sum()
    # Wilson and Hilferty: a chi-square to the third root is normal; 4.75 standard deviations are one in a million.
    z = ((statistic / (cells - 1)) ** (1 / 3) - (1 - 2 / (9 * (cells - 1)))) / (2 / (9 * (cells - 1))) ** 0.5
    assert z < 4.75
    repeated = torch.diag(rows * chance)  # what an instruction that is kept would look like
    assert ((repeated - expected) ** 2 / expected).sum() > 10 * cells


@every
def test_seed_restarts_the_instructions_and_exploration_does_not_advance_them(family):
    params = family.sample(64, "train", generator())
    env = family.env(params)
    first = [env.reset(seed=7)[0], env.reset()[0]]
    env.reset(options={"explore": True}, seed=7)
    again = [env.reset()[0], env.reset()[0]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every
def test_given_instruction_is_followed(family):
    params = family.sample(32, "train", generator())
    given = family.instructions(params.long())[:, -1]
    env = family.env(params)
    obs, _ = env.reset(options={"instruction": given})
    assert torch.equal(obs[:, -family.instruction_dim :], given.float())
    assert torch.equal(env.instruction, given)


@every
def test_numbers_and_codes_of_actions_are_the_same(family):
    params = family.sample(50, "train", generator())
    actions = random_actions(family, 50)
    env = family.env(params)
    by_number = episode(env, actions, seed=3)
    env.reset(seed=3)
    for t, action in enumerate(actions):
        code = one_hot(action, family.spec.actions)
        obs, reward, *_ = env.step(code.float() if t % 2 else code)
        running = by_number.mask[:, t]
        assert torch.equal(obs[running], by_number.next_obs[running, t])
        assert torch.equal(reward, by_number.reward[:, t])


@every
def test_a_batch_is_its_rows_alone(family):
    params = family.sample(6, "test", generator())
    actions = random_actions(family, 6)
    given = family.instructions(params.long())[:, 0]
    full = episode(family.env(params), actions, instruction=given)
    for b in range(6):
        alone = episode(family.env(params[b : b + 1]), actions[:, b : b + 1], instruction=given[b : b + 1])
        for name in vars(full):
            assert torch.equal(getattr(alone, name)[0], getattr(full, name)[b])


@every
def test_observations_are_integers_within_their_sizes(family):
    seen = episode(family.env(family.sample(300, "train", generator())), random_actions(family, 300), seed=0)
    sizes = torch.tensor(family.spec.obs_sizes)
    for obs in (seen.obs, seen.next_obs):
        assert obs.dtype == torch.float32 and torch.equal(obs, obs.round())
        assert (obs >= 0).all() and (obs < sizes).all()


@every
def test_recovered_states_look_as_they_did(family):
    """What is seen tells the state: nothing but the problem is hidden."""
    params = family.sample(100, "train", generator())
    env = family.env(params)
    env.reset(seed=0)
    for action in random_actions(family, 100, without=() if family.end is None else (family.end,)):
        obs, *_ = env.step(action)
        seen = obs[:, : -family.instruction_dim].long()
        assert torch.equal(family.recover(seen), env.state)
        assert torch.equal(family.observe(env.state, params.long()), seen)


def test_moves_stop_at_the_border():
    corner = torch.tensor([[0, 0], [2, 2]]).unsqueeze(1).expand(-1, 4, -1)
    after = moved(corner, torch.arange(4), 3)
    assert after[0].tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]
    assert after[1].tolist() == [[1, 2], [2, 2], [2, 2], [2, 1]]
    still = moved(corner[:, :1].expand(-1, 5, -1), torch.arange(4, 9), 3)
    assert (still == corner[:, :1]).all()
    assert ACTIONS[:5] == ("left", "up", "right", "down", "stay")


def test_time_truncates_and_a_row_that_is_over_stays_as_it_is():
    env = SmallMap().env(torch.zeros(2, 1))
    env.reset(options={"instruction": torch.tensor([[1], [2]])})
    env.step(torch.tensor([END, STAY]))
    for _ in range(8):
        kept, reward, terminated, truncated, _ = env.step(torch.tensor([RIGHT, STAY]))
        assert kept[0, :2].tolist() == [2, 2] and reward[0] == 0
        assert terminated.tolist() == [True, False] and not truncated.any()
    *_, terminated, truncated, _ = env.step(torch.tensor([RIGHT, STAY]))
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]
    kept, reward, terminated, truncated, _ = env.step(torch.tensor([RIGHT, RIGHT]))
    assert kept[:, :2].tolist() == [[2, 2]] * 2 and not reward.any()
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]


@every
def test_sampling_is_uniform_over_the_split(family):
    for split in ("train", "test"):
        pool = family.identifiers(split)
        draws = family.sample(200 * len(pool), split, generator())
        counts = (draws == pool[:, 0]).sum(0)
        assert counts.sum() == len(draws)
        assert ((counts - 200).abs() < 6 * 200**0.5).all()  # six standard deviations


@every
def test_no_split_beyond_the_two(family):
    for call in (family.identifiers, family.posterior_over, lambda split: family.sample(2, split, generator())):
        with pytest.raises(ValueError, match="expected a split of train, test; got 'ood'"):
            call("ood")


@every
def test_posterior_is_untouched_by_nothing_and_by_padding(family):
    params = family.sample(8, "train", generator())
    seen = episode(family.env(params), random_actions(family, 8), explore=True)
    data, exact = seen.context(next_obs=True), family.exact
    prior = exact.init(8)
    assert torch.equal(exact.update(prior, data.rows(0, 0)).log_weights, prior.log_weights)
    belief = exact.update(prior, data)
    noisy = Transitions(**{**vars(seen), "next_obs": seen.next_obs.masked_fill(~seen.mask.unsqueeze(-1), torch.nan)})
    assert torch.equal(exact.update(prior, noisy.context(next_obs=True)).log_weights, belief.log_weights)
    assert belief.log_weights.gather(1, truth(family, params)).isfinite().all(), "the truth was ruled out"
    halves = exact.update(exact.update(prior, data.rows(0, 1)), data.rows(1, data.size))
    assert torch.allclose(halves.log_weights.exp(), belief.log_weights.exp())


@every
def test_a_trial_explores_first_and_its_evidence_is_exact_in_both_precisions(family):
    def policy(obs: torch.Tensor, z: torch.Tensor) -> OneHotCategorical:
        return OneHotCategorical(logits=torch.zeros(len(obs), family.spec.actions))

    params = family.sample(16, "train", generator())
    with torch_seeded(0):
        trial = collect(family.env(params), Explorer(policy), family.exact, family.spec, episodes=2, seed=0)
    asked = [episode.obs[..., -family.instruction_dim :] for episode in trial.episodes]
    assert (asked[0] == 0).all() and (asked[1] > 0).all() and (trial.returns[:, 0] == 0).all()
    mass = [belief.log_weights.gather(1, truth(family, params)) for belief in trial.beliefs]
    assert (mass[0] <= mass[1] + 1e-6).all() and (mass[1] <= mass[2] + 1e-6).all(), "the truth lost mass"
    data = trial.transitions.context(next_obs=True)
    double, exact = Context(data.x.double(), data.y.double(), data.mask), deepcopy(family.exact).double()
    belief = exact.update(exact.init(16), double)
    assert belief.log_weights.dtype == torch.float64
    assert torch.allclose(belief.log_weights.exp().float(), trial.beliefs[-1].log_weights.exp(), atol=1e-6)


def truth(family, params: torch.Tensor) -> torch.Tensor:
    return (family.identifiers("train")[:, 0] == params).int().argmax(1, keepdim=True)


def test_observations_that_are_none_are_refused():
    family = SmallMap()
    seen = episode(family.env(torch.zeros(1, 1)), torch.tensor([[UP], [LEFT]]), explore=True)
    data = Transitions(**{**vars(seen), "next_obs": seen.next_obs + 30.0}).context(next_obs=True)
    with pytest.raises(ValueError, match="map_5-v1: expected observations of integers below"):
        family.exact.update(family.exact.init(1), data)


@pytest.mark.parametrize("params", [[[24.0]], [[-1.0]], [[0.5]]])
def test_params_that_are_no_problem_are_refused(params):
    with pytest.raises(ValueError, match=r"map_5-v1: expected integer params below \(24,\) for \('problem',\)"):
        SmallMap().env(torch.tensor(params))


@pytest.mark.parametrize(
    "action, message",
    [
        (torch.zeros(2, 8), r"expected actions \(2, 9\), got \(2, 8\); give every task the one-hot code"),
        (torch.zeros(3, dtype=torch.long), r"expected actions \(2, 9\), got \(3,\)"),
        (torch.full((2, 9), torch.nan), r"expected finite actions, got \[nan.* in row 0"),
        (torch.tensor([0, 9]), r"expected integers 0, \.\.\., 8 as actions, got \[0, 9\]"),
        (torch.tensor([0, -1]), r"expected integers 0, \.\.\., 8 as actions, got \[0, -1\]"),
        (torch.tensor([0.0, 1.0]), r"expected integers .* \(torch\.float32\)"),
    ],
)
def test_bad_actions_are_refused(action, message):
    env = SmallMap().env(torch.zeros(2, 1))
    env.reset()
    with pytest.raises(ValueError, match=f"map_5-v1: {message}"):
        env.step(action)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"explor": True}, r"expected the options `explore` or `instruction`.*got \['explor'\]"),
        ({"explore": True, "instruction": torch.ones(2, 1).long()}, r"one of them, got \['explore', 'instruction'\]"),
        ({"instruction": torch.ones(2).long()}, r"expected an instruction of integers \(2, 1\).*got \(2,\)"),
        ({"instruction": torch.tensor([[0], [1]])}, r"from 1 to \[4\].*\[\[0\], \[1\]\]"),
        ({"instruction": torch.tensor([[5], [1]])}, r"from 1 to \[4\].*\[\[5\], \[1\]\]"),
        ({"instruction": torch.ones(2, 1)}, r"expected an instruction of integers .*float32"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"map_5-v1: .*{message}"):
        SmallMap().env(torch.zeros(2, 1)).reset(options=options)


def test_pictures_show_the_world():
    env = gymnasium.make("bayesmeta/SmallMap-v1", task=[0.0], render_mode="ansi")
    env.reset(seed=0, options={"explore": True})
    for action in (RIGHT, RIGHT):
        env.step(action)
    lines = env.render().splitlines()
    assert lines[:5] == ["b . . . c", ". . c . .", ". d . b @", ". . a . .", "a . . . d"]
    assert lines[5] == "explore; step 2 of 10"
    env = gymnasium.make("bayesmeta/SmallMap-v1", task=[0.0], render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(UP)
    after = env.render()
    assert before.shape == after.shape == (80, 80, 3) and before.dtype == "uint8"
    changed = (before != after).any(-1).nonzero()
    assert set(changed[0] // 16) == {1, 2} and set(changed[1] // 16) == {2}
    env.step(RIDE)
    env.close()


def test_pictures_are_for_worlds_in_known_modes():
    with pytest.raises(ValueError, match=r"point_goal-v1: expected a render_mode of \[None\]; got 'ansi'"):
        gymnasium.make("bayesmeta/PointGoal-v1", render_mode="ansi")
    with pytest.raises(ValueError, match=r"map_5-v1: expected a render_mode of \['ansi', 'rgb_array'\]; got 'human'"):
        gymnasium.make("bayesmeta/SmallMap-v1", render_mode="human")
    env = gymnasium.make("bayesmeta/SmallMap-v1", render_mode="ansi").unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        env.render()
    assert gymnasium.make("bayesmeta/SmallMap-v1").unwrapped.render() is None
