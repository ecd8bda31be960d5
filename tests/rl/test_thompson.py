"""Thompson sampling: what it is worth where that can be worked out by hand, and the published values.

Means over trials are compared at five standard errors, which fail by chance in 6 of 10^7 cases.
"""

import math

import pytest
import torch

from bayesmeta.rl.thompson import Thompson, ThompsonTrial
from bayesmeta.tasks.bus import Bus, SmallMap
from bayesmeta.tasks.cooking import Cooking
from bayesmeta.tasks.reveal import Reveal
from tests.tasks.worlds import generator

RESAMPLE = ("contradicted", "episode")
both = pytest.mark.parametrize("resample", RESAMPLE)
SMALL, LARGE = SmallMap(), Bus("vanilla")
AGENTS = {family.spec.name: Thompson(family, family.identifiers("train")) for family in (SMALL, LARGE)}


def trials(family, resample: str, count: int, seed: int = 0, agent: Thompson | None = None, **options) -> ThompsonTrial:
    random = generator(seed)
    agent = agent or AGENTS[family.spec.name]
    return agent.trial(family.sample(count, "train", random), resample=resample, generator=random, **options)


def agrees(returns: torch.Tensor, expected: float, rounding: float = 0.0) -> bool:
    error = returns.double().std().item() / len(returns) ** 0.5
    return abs(returns.double().mean().item() - expected) <= 5 * error + rounding


@both
def test_small_map_by_hand(resample):
    """Exploring is one ride, which tells one line of four. One corner in four is the one it leads to: 0.7. For any
    other a line is drawn among three: 0.7 for the right one and -0.6 for a wrong one, whose corner ends the episode.
    """
    expected = 0.25 * 0.7 + 0.75 * (0.7 / 3 - 0.6 * 2 / 3)
    assert expected == pytest.approx(0.05)
    found = trials(SMALL, resample, 20000)
    assert agrees(found.returns, expected)
    assert not agrees(found.returns, 0.10), "could not be told from walking"
    assert set(found.returns.mul(10).round().tolist()) == {7.0, -6.0}
    entropy = torch.special.entr(found.explored.exp()).sum(1)
    assert torch.allclose(entropy, torch.tensor(math.log(6.0), dtype=torch.float64))


@both
def test_small_map_without_exploring(resample):
    found = trials(SMALL, resample, 5000, explore=False)
    assert agrees(found.returns, 0.25 * 0.7 + 0.75 * -0.6)
    assert torch.allclose(found.explored, torch.tensor(-math.log(24.0), dtype=torch.float64))


def test_published_values_of_the_large_city():
    """Published to two digits. Which of the two it is makes the difference between a good agent and a bad one."""
    published = {"contradicted": 0.70, "episode": -0.60}
    for resample, value in published.items():
        returns = trials(LARGE, resample, 3000).returns
        assert agrees(returns, value, rounding=0.005)
        assert not agrees(returns, published[next(r for r in RESAMPLE if r != resample)], rounding=0.005)
    assert agrees(trials(LARGE, "contradicted", 3000, explore=False).returns, 0.20, rounding=0.005)


@both
@pytest.mark.parametrize("actions", [2, 5])
def test_reveal_by_hand(resample, actions):
    """The action that tells is the best one of one problem in ``A``; else any problem is as likely as another."""
    family = Reveal(actions=actions)
    found = trials(family, resample, 20000, agent=Thompson(family, family.identifiers("train")))
    told = 1 / actions
    assert agrees(found.returns, told + (1 - told) / actions)
    assert not agrees(found.returns, told)


@both
@pytest.mark.parametrize("family, problem", [(SMALL, 7.0), (Bus("distraction"), 300.0), (Cooking(), 10.0)])
def test_one_who_knows_the_problem_is_the_oracle(family, problem, resample):
    params = torch.tensor([[problem]])
    agent = Thompson(family, params)
    returns = agent.trial(params.expand(500, -1), resample=resample, generator=generator(1)).returns
    choices = len(agent.choices[0])
    values = agent.plan.start_values
    assert all((values - value).abs().min() < 1e-5 for value in returns)
    assert values.mean().item() == pytest.approx(family.reference_returns(params)["oracle"].item(), abs=1e-5)
    spread = values.std().item() / (500 - choices) ** 0.5
    assert abs(returns.mean().item() - values.mean().item()) <= 5 * spread + 1e-5


def test_instruction_is_evidence_where_it_depends_on_the_problem():
    """Of kitchens of one ingredient it tells all, and nothing needs exploring; of others it does not."""
    family = Cooking()
    same = torch.tensor([[0.0], [21.0], [42.0], [63.0]])
    for explore in (True, False):
        found = Thompson(family, same).trial(
            same.repeat(50, 1), resample="episode", generator=generator(), explore=explore
        )
        assert torch.allclose(found.returns, torch.tensor(0.6), atol=1e-5)
    mixed = torch.tensor([[16.0], [4.0], [1.0], [24.0], [33.0]])
    agent, values = Thompson(family, mixed), {}
    for resample in RESAMPLE:
        values[resample] = agent.trial(mixed.repeat(200, 1), resample=resample, generator=generator()).returns.mean()
    best = family.reference_returns(mixed)["oracle"].mean()
    assert values["episode"] < values["contradicted"] < best


def test_generator_decides_everything():
    first, again, other = (trials(LARGE, "contradicted", 50, seed) for seed in (0, 0, 1))
    assert torch.equal(first.returns, again.returns) and torch.equal(first.explored, again.explored)
    assert not torch.equal(first.returns, other.returns)


def test_a_task_that_the_prior_lacks_is_refused():
    agent = Thompson(SMALL, torch.tensor([[0.0], [1.0]]))
    with pytest.raises(ValueError, match=r"among the 2 problems of the agent's prior.*give it a prior that has it"):
        agent.trial(torch.full((20, 1), 23.0), resample="contradicted", generator=generator())
