"""The cities: published numbers, agreement with a plain simulation, the exact posterior, nothing told too early."""

import math

import pytest
import torch

from bayesmeta.tasks.bus import Bus, SmallMap
from tests.tasks.worlds import END, RIDE, RIGHT, UP, episode, generator, plain, random_actions

VARIANTS = ("small_map", "vanilla", "map", "distraction")
FAMILIES = {variant: Bus(variant) for variant in VARIANTS}
every = pytest.mark.parametrize("variant", VARIANTS)


def walk(*actions: int, rows: int = 1) -> torch.Tensor:
    return torch.tensor(actions).unsqueeze(1).expand(-1, rows)


@every
@pytest.mark.parametrize("explore", [False, True])
def test_environment_is_the_plain_simulation(variant, explore):
    """Every observation, reward and end, under random actions that rarely end the episode."""
    family, rows = FAMILIES[variant], 40
    params = family.sample(rows, "test", generator())
    actions = random_actions(family, rows, without=() if explore else (END,))
    actions[:3] = torch.tensor([RIGHT, RIDE, RIDE]).unsqueeze(1)  # else hardly anyone rides
    seen = episode(family.env(params), actions, seed=0, explore=explore)
    for b in range(rows):
        city, corner = plain(variant), int(seen.obs[b, 0, -1])
        assert (corner == 0) == explore
        assert seen.obs[b, 0].tolist() == city.begin(int(params[b, 0]), corner)
        for t, action in enumerate(actions[:, b].tolist()):
            obs, reward, over = city.step(action)
            assert seen.next_obs[b, t].tolist() == obs
            assert seen.reward[b, t].item() == pytest.approx(reward, abs=1e-6)
            assert bool(seen.terminated[b, t]) == over
            assert bool(seen.boundary[b, t]) == (over or t + 1 == family.spec.horizon)
            if over:
                break


@pytest.mark.parametrize(
    "variant, oracle, walking", [("small_map", 0.7, 0.1), ("vanilla", 0.8, 0.3), ("map", 0.8, 0.3)]
)
def test_published_returns(variant, oracle, walking):
    family = FAMILIES[variant]
    found = family.reference_returns(family.identifiers("train"))
    assert torch.allclose(found["oracle"], torch.tensor(oracle), atol=1e-5)
    assert torch.allclose(found["walking"], torch.tensor(walking), atol=1e-5)
    assert torch.allclose(found["still"], torch.tensor({"small_map": -3.0}.get(variant, -2.0)))


def test_published_returns_of_the_distracting_bus():
    family = FAMILIES["distraction"]
    params = family.sample(24, "test", generator())
    found = family.reference_returns(params)
    assert torch.allclose(found["oracle"], torch.tensor(0.8), atol=1e-5)
    assert torch.allclose(found["walking"], torch.tensor(0.3), atol=1e-5)


@every
@pytest.mark.parametrize("explore", [False, True])
def test_ending_early_costs_all_steps_that_are_left(variant, explore):
    family = FAMILIES[variant]
    seen = episode(family.env(torch.zeros(1, 1)), walk(UP, END), explore=explore)
    still = -family.city.price * family.spec.horizon
    assert seen.returns().item() == pytest.approx(0.0 if explore else still, abs=1e-5)
    assert seen.terminated.tolist() == [[False, True]]


def test_splits_of_the_distracting_bus():
    family = FAMILIES["distraction"]
    train, test = (family.identifiers(split)[:, 0].long() for split in ("train", "test"))
    assert (len(train), len(test)) == (53, 523)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(576))
    assert train.tolist() == list(range(0, 576, 11))
    assert set((train % 24).tolist()) == set((train // 24).tolist()) == set(range(24))
    assert torch.equal(family.identifiers("all")[:, 0], torch.arange(576.0))


@pytest.mark.parametrize("variant", ["small_map", "vanilla", "map"])
def test_other_cities_are_trained_on_all_problems(variant):
    for split in ("train", "test", "all"):
        assert torch.equal(FAMILIES[variant].identifiers(split)[:, 0], torch.arange(24.0))


@every
def test_posterior_is_the_problems_that_would_have_looked_the_same(variant):
    """Against replaying every problem of the prior in the plain simulation, after every step of two episodes."""
    family, rows = FAMILIES[variant], 4
    params = family.sample(rows, "train", generator(1))
    env = family.env(params)
    actions = [random_actions(family, rows, seed, without=(END,)) for seed in (2, 3)]
    actions[0][:3] = torch.tensor([[RIGHT, RIDE, RIDE], [RIGHT, RIGHT, RIGHT]] * 2).T
    episodes = [
        episode(env, actions[0], seed=0, explore=True),
        episode(env, actions[1]),
    ]
    belief = family.exact.init(rows)
    pool = family.identifiers("train")[:, 0].long().tolist()
    alive = [set(pool) for _ in range(rows)]
    for record, acts in zip(episodes, actions, strict=True):
        steps = int(record.mask.any(0).sum())
        scan = family.exact.scan(belief, record.context(next_obs=True))
        weights = scan.log_weights.exp().reshape(-1, rows, len(pool))
        for b in range(rows):
            for t in range(steps + 1):
                if t and record.mask[b, t - 1]:
                    alive[b] = {i for i in alive[b] if replayed(variant, i, record, acts, b, t)}
                expected = torch.tensor([1.0 / len(alive[b]) if i in alive[b] else 0.0 for i in pool])
                assert torch.allclose(weights[t, b], expected, atol=1e-6)
        belief = family.exact.update(belief, record.context(next_obs=True))
        assert torch.allclose(belief.log_weights.exp(), weights[-1], atol=1e-6)
    assert min(map(len, alive)) < len(pool), "nothing was learned"
    entropy = torch.special.entr(belief.log_weights.exp()).sum(-1)
    assert torch.allclose(entropy, torch.tensor([math.log(len(a)) for a in alive]), atol=1e-5)


def replayed(variant, problem, record, acts, b, steps) -> bool:
    """Whether the first steps of an episode would have looked the same in another problem."""
    city = plain(variant)
    city.begin(problem, int(record.obs[b, 0, -1]))
    return all(city.step(int(acts[t, b]))[0] == record.next_obs[b, t].tolist() for t in range(steps))


@pytest.mark.parametrize("variant, way", [("small_map", (RIGHT, RIGHT)), ("map", (RIGHT, RIGHT, RIGHT, 3))])
def test_map_tells_everything(variant, way):
    family = FAMILIES[variant]
    params = family.identifiers("train")
    seen = episode(family.env(params), walk(*way, rows=24), explore=True)
    belief = family.exact.update(family.exact.init(24), seen.context(next_obs=True))
    assert torch.equal(belief.log_weights.exp(), torch.eye(24))
    assert (seen.obs[..., 3] == 0).all() and torch.equal(seen.next_obs[:, -1, 3], params[:, 0] + 1)


def test_three_useful_lines_imply_the_fourth():
    family = FAMILIES["distraction"]
    params = family.sample(5, "test", generator())
    rides = [a for stop in ((UP,), (RIGHT,), (0,)) for a in (*stop, RIDE, RIDE, {UP: 3, RIGHT: 0, 0: RIGHT}[stop[0]])]
    seen = episode(family.env(params), walk(*rides, rows=5), explore=True)
    exact = family.posterior_over("all")
    belief = exact.update(exact.init(5), seen.context(next_obs=True))
    left = belief.log_weights > -torch.inf
    assert (left.sum(1) == 24).all(), "one useful permutation, and all of the others"
    for b in range(5):
        assert set((left[b].nonzero()[:, 0] % 24).tolist()) == {int(params[b, 0]) % 24}


def test_a_problem_that_the_prior_lacks_is_refused_and_the_test_prior_has_it():
    family = FAMILIES["distraction"]
    params = torch.tensor([[1.0]])  # useful permutation 1 with useless permutation 0
    rides = [UP, RIDE, RIDE, 3, RIGHT, RIDE, RIDE, 0, 0, RIDE, RIDE, UP, RIDE, RIDE, 3, 3, RIDE, RIDE]
    data = episode(family.env(params), walk(*rides), explore=True).context(next_obs=True)
    with pytest.raises(ValueError, match="the list lacks the truth"):
        family.exact.update(family.exact.init(1), data)
    for split in ("test", "all"):
        exact = family.posterior_over(split)
        belief = exact.update(exact.init(1), data)
        where = family.identifiers(split)[:, 0] == 1
        assert belief.log_weights[0, where].exp() > 0


@every
def test_nothing_tells_the_problem_before_a_ride_or_the_map(variant):
    family = FAMILIES[variant]
    pool = family.identifiers("all")
    pool = pool[:: max(1, len(pool) // 24)]
    actions = random_actions(family, 1, 5, without=(END, RIDE)).expand(-1, len(pool))
    x, y = (10, 10) if family.city.map_cell is None else family.city.map_cell
    for explore in (True, False):
        options = {"explore": True} if explore else {"instruction": torch.full((len(pool), 1), 2)}
        seen = episode(family.env(pool), actions, **options)
        on_map = (seen.next_obs[0, :, 0] == x) & (seen.next_obs[0, :, 1] == y)
        before = int(on_map.int().argmax()) if on_map.any() else len(actions)
        assert before > 2
        assert (seen.next_obs[:, :before] == seen.next_obs[:1, :before]).all()
        assert (seen.reward == seen.reward[:1]).all()


def test_best_exploration_of_the_small_map_is_three_steps():
    """Of all sequences of two actions, right-right alone tells the problem for certain; the third ends the episode."""
    family = SmallMap()
    params = family.identifiers("train")
    pairs = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    expected = []
    for first, second in pairs.tolist():
        data = episode(family.env(params), walk(first, second, rows=24), explore=True).context(next_obs=True)
        belief = family.exact.update(family.exact.init(24), data)
        expected.append(torch.special.entr(belief.log_weights.exp()).sum(-1).mean())
    expected = torch.stack(expected)
    best = [tuple(pair) for pair in pairs[expected < 1e-6].tolist()]
    assert best == [(RIGHT, RIGHT)]
    # A ride tells one end of four: ln 24 - ln 6.
    assert expected[pairs.tolist().index([UP, RIDE])] == pytest.approx(math.log(6), abs=1e-5)
    seen = episode(family.env(params), walk(RIGHT, RIGHT, END, rows=24), explore=True)
    assert seen.terminated[:, 2].all() and not seen.terminated[:, :2].any()


def test_wrong_corner_ends_the_small_world_only():
    for variant, last in (("small_map", [UP, UP, RIGHT, RIGHT]), ("vanilla", [UP] * 4 + [RIGHT] * 4)):
        family = FAMILIES[variant]
        env = family.env(torch.zeros(2, 1))
        seen = episode(env, walk(*last, rows=2), instruction=torch.tensor([[1], [2]]))  # corner 2 is the one reached
        price = family.city.price
        ends = len(last) - 1
        assert seen.terminated[:, ends].tolist() == [variant == "small_map", True]
        assert seen.reward[:, ends].tolist() == pytest.approx([-price, 1.0])
        free = episode(env, walk(*last, rows=2), explore=True)
        assert not free.terminated.any(), "a corner ended an episode of exploration"


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="expected a variant of vanilla, map, distraction, small_map; got 'large'"):
        Bus("large")
