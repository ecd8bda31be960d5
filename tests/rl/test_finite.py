"""Planning: the values against recursion in a plain simulation, and the policy against what it earns."""

from functools import cache

import pytest
import torch

from bayesmeta.rl.finite import plan
from bayesmeta.tasks.bus import Bus, SmallMap
from bayesmeta.tasks.cooking import Cooking
from bayesmeta.tasks.grid import END, RIDE, RIGHT, STAY, UP
from bayesmeta.tasks.reveal import Reveal
from tests.tasks.worlds import plain


def pairs(family, problems: list[int]):
    """All pairs of these problems and their instructions."""
    params = torch.tensor(problems).unsqueeze(1)
    choices = family.instructions(params)
    return params.repeat_interleave(choices.shape[1], 0), choices.flatten(0, 1)


def recursive(variant: str, problem: int, corner: int):
    """The best return from a position with so many steps left, by trying everything."""

    @cache
    def best(at: tuple[int, int], left: int) -> float:
        if left == 0:
            return 0.0
        values = []
        for action in range(9):
            city = plain(variant)
            city.begin(problem, corner)
            city.at, city.t = at, city.horizon - left
            _, reward, over = city.step(action)
            values.append(reward + (0.0 if over else best(city.at, left - 1)))
        return max(values)

    return best


@pytest.mark.parametrize("variant, problem, corner, steps", [("small_map", 5, 2, 10), ("vanilla", 17, 3, 6)])
def test_values_are_those_of_trying_everything(variant, problem, corner, steps):
    """In every cell that is no goal, with every number of steps left."""
    family, best = Bus(variant), recursive(variant, problem, corner)
    found = plan(family, torch.tensor([[problem]]), torch.tensor([[corner]]))
    size, corners = family.city.size, family.city.corners
    ends = corners if family.city.any_corner else (corners[corner - 1],)
    cells = [(x, y) for x in range(size) for y in range(size) if (x, y) not in ends]
    zero = torch.zeros(len(cells), dtype=torch.long)
    for left in range(steps + 1):
        expected = [best(at, left) for at in cells]
        assert found.value(zero, torch.tensor(cells), zero, left).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "family, problems",
    [
        (SmallMap(), [0, 7, 23]),
        (Bus("map"), [3]),
        (Bus("distraction"), [1, 575]),
        (Cooking(), [10, 36]),
        (Reveal(actions=4), [0, 3]),
    ],
    ids=lambda value: value.spec.name if hasattr(value, "spec") else None,
)
def test_greedy_policy_earns_its_values(family, problems):
    params, instruction = pairs(family, problems)
    found = plan(family, params, instruction)
    pair, stage = torch.arange(len(params)), torch.zeros(len(params), dtype=torch.long)
    env = family.env(params.float())
    env.reset(options={"instruction": instruction})
    alive, total = torch.ones(len(params), dtype=torch.bool), torch.zeros(len(params))
    for left in range(family.spec.horizon, 0, -1):
        state = torch.where(alive.unsqueeze(1), env.state, torch.tensor(family.start))
        action = found.optimal(pair, state, torch.where(alive, stage, 0), left).int().argmax(1)
        _, reward, terminated, truncated, _ = env.step(action)
        total += reward
        stage = family.pay(stage, action, env.state, instruction, params).stage
        alive = alive & ~(terminated | truncated)
    assert torch.allclose(total.double(), found.start_values, atol=1e-5)


def test_actions_as_good_as_the_best_are_all_found():
    family = SmallMap()
    params, goal = torch.tensor([[0]]), torch.tensor([[2]])  # corner (4, 4); the stop (2, 3) leads there
    zero, start = torch.tensor([0]), torch.tensor([[2, 2]])
    found = plan(family, params, goal)
    assert found.optimal(zero, start, zero, 10)[0].nonzero()[:, 0].tolist() == [UP]
    on_foot = plan(family, params, goal, forbidden=(RIDE,))
    assert on_foot.optimal(zero, start, zero, 10)[0].nonzero()[:, 0].tolist() == [UP, RIGHT]
    assert on_foot.start_values.tolist() == pytest.approx([0.1])
    values = found.action_values(zero, start, zero, 10)[0]
    assert values[END].item() == pytest.approx(-3.0) and values[STAY].item() == pytest.approx(0.4)
    # With one step left and the corner out of reach everything costs one step.
    assert found.optimal(zero, start, zero, 1).all()
    assert found.action_values(zero, start, zero, 1)[0].tolist() == pytest.approx([-0.3] * 9)


def test_pairs_are_planned_for_independently():
    family = Bus("distraction")
    params, instruction = pairs(family, [0, 300, 575])
    together = plan(family, params, instruction)
    alone = plan(family, params[5:6], instruction[5:6])
    states = torch.cartesian_prod(torch.arange(1, 8), torch.arange(9))
    zero = torch.zeros(len(states), dtype=torch.long)
    for left in (1, 7, 20):
        assert torch.equal(together.value(zero + 5, states, zero, left), alone.value(zero, states, zero, left))


def test_what_cannot_be_reached_is_refused():
    found = plan(SmallMap(), torch.tensor([[0]]), torch.tensor([[1]]))
    zero, corner = torch.tensor([0]), torch.tensor([[4, 4]])
    assert not found.knows(zero, corner, zero).any()
    with pytest.raises(ValueError, match=r"reached from \(2, 2\), got \[4, 4\] at stage 0 of pair 0"):
        found.value(zero, corner, zero, 3)
