"""What exploration tells, against enumeration: of scripted agents, and of codes whose truth is known."""

import math

import pyro.distributions as dist
import pytest
import torch

from bayesmeta.diagnostics.exploration import explored, information_about, problem_log_weights
from bayesmeta.inference.beliefs import Point
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.bus import SmallMap
from bayesmeta.tasks.cooking import Cooking
from bayesmeta.types import Explorer

FAMILY = SmallMap()
RIGHT, END, NOOP, PICK_UP = 2, 6, 4, 7


class Scripted:
    """Explores by a list of actions, then does nothing."""

    def __init__(self, actions):
        self.actions = actions
        self.setup = self.step = self.state_dict = self.load_state_dict = lambda *_: None  # it has learned

        class Nothing:
            def init(self, batch):
                return Point(torch.zeros(batch, 1))

            def update(self, belief, data):
                return belief

        self.inference = Nothing()

    @property
    def explorer(self):
        return Explorer(lambda obs, z: self.law(NOOP, obs), exploration=self, deterministic=True)

    def begin(self, batch):
        return 0

    def act(self, obs, previous, z, memory):
        return self.law(self.actions[memory], obs), memory + 1

    def law(self, action, obs):
        return dist.OneHotCategorical(torch.eye(9)[action].expand(len(obs), -1))


def test_reading_the_map_tells_everything_and_is_priced_as_it_happens():
    found = explored(Scripted([RIGHT, RIGHT, END]), FAMILY, trials=50)
    assert found.steps.tolist() == [3.0] * 50
    torch.testing.assert_close(found.nats, torch.tensor([0.0, 0.0, math.log(24), math.log(24)]).expand(50, -1))
    torch.testing.assert_close(found.returns, torch.full((50,), -3.0))


def test_ending_at_once_tells_nothing():
    found = explored(Scripted([END]), FAMILY, trials=50)
    assert found.steps.tolist() == [1.0] * 50 and not found.nats.any()


def test_nobody_knows_that_the_one_test_kitchen_is_the_one():
    """One drawer of three with one of four ingredients each."""
    found = explored(Scripted([RIGHT, PICK_UP, END]), Cooking(), trials=5)
    torch.testing.assert_close(found.nats, torch.tensor([0.0, 0.0, math.log(4), math.log(4)]).expand(5, -1))


def code(mean, scale):
    return dist.Normal(mean, scale, validate_args=False).to_event(1)


def test_codes_that_tell_problems_apart_give_beliefs_about_problems():
    law = code(10.0 * torch.eye(4), torch.full((4, 4), 0.1))
    with torch_seeded(0):
        torch.testing.assert_close(problem_log_weights(law, law).exp(), torch.eye(4))
        unsure = code(torch.zeros(1, 4), torch.full((1, 4), 0.1))
        weights = problem_log_weights(law, unsure, draws=4000).exp()
    assert weights.sum() == pytest.approx(1.0, abs=1e-5) and weights.std() < 0.03


def test_problems_with_one_code_share_their_weight():
    law = code(10.0 * torch.eye(2).repeat(2, 1), torch.full((4, 2), 0.1))
    with torch_seeded(0):
        weights = problem_log_weights(law, law).exp()
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]]).repeat(2, 1))


def test_information_about_what_a_code_holds_and_what_it_does_not():
    """Six problems, a pair of properties: the code holds the first (of three) and nothing of the second."""
    first, second = torch.arange(6) % 3, torch.arange(6) // 3
    law = code(10.0 * torch.eye(3)[first], torch.full((6, 3), 0.1))
    with torch_seeded(0):
        assert information_about(law, first) == pytest.approx(math.log(3), abs=1e-4)
        assert information_about(law, second) == pytest.approx(0.0, abs=1e-4)
        assert information_about(law, torch.arange(6)) == pytest.approx(math.log(3), abs=1e-4)


def test_information_of_a_noisy_code_is_that_of_quadrature():
    """Two problems a distance of two standard deviations apart."""
    law = code(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p = torch.sigmoid(2 * z)
    density = torch.distributions.Normal(1.0, 1.0).log_prob(z).exp()
    entropy = torch.special.entr(p) + torch.special.entr(1 - p)
    exact = math.log(2) - float(torch.trapezoid(density * entropy, z))
    with torch_seeded(0):
        found = information_about(law, torch.arange(2), draws=40_000)
    sd = float((torch.trapezoid(density * entropy.square(), z) - (math.log(2) - exact) ** 2).sqrt())
    assert abs(found - exact) < 5 * sd / math.sqrt(80_000)  # one in two million by chance
