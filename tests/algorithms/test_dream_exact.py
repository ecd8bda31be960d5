"""DREAM where everything is tabular and the optimum is known: one action tells the problem, one is paid."""

import math

import pytest
import torch

from bayesmeta.algorithms.dream import DREAM
from bayesmeta.diagnostics.exploration import explored, information_about, problem_log_weights
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.rl.q_learner import Schedule
from bayesmeta.tasks.reveal import TELLS, Reveal
from bayesmeta.types import Spec

ACTIONS, IDLE = 3, 4
SCHEDULE = Schedule(
    trials=64,
    trials_per_iteration=512,
    execute_after=64,
    explore_after=512,
    epsilon_steps=1000,
    target_every=50,
    lr=3e-3,
)


class RevealAndIdle(Reveal):
    """As ``Reveal``, with a second number in the identifier that nothing depends on."""

    def __init__(self) -> None:
        super().__init__(actions=ACTIONS)
        problems = torch.cartesian_prod(torch.arange(ACTIONS), torch.arange(IDLE))
        spec = Spec.discrete(
            "reveal_and_idle",
            obs_sizes=(1 + ACTIONS, 2),
            actions=ACTIONS,
            horizon=1,
            params={"problem": ACTIONS, "idle": IDLE},
        )
        super(Reveal, self).__init__(
            spec, action_names=self.action_names, splits={"train": problems, "test": problems}, reward_tells=True
        )

    def advance(self, state, action, params):
        return super().advance(state, action, params[..., :1])

    def observe(self, state, params):
        return super().observe(state, params[..., :1])

    def instructions(self, params):
        return super().instructions(params[..., :1])

    def pay(self, stage, action, after, instruction, params):
        return super().pay(stage, action, after, instruction, params[..., :1])


def trained(family: Reveal, bottleneck: str, iterations: int) -> DREAM:
    with torch_seeded(0):
        agent = DREAM(
            family.spec, latent_dim=4, bottleneck=bottleneck, kl_weight=1e-2, cost=0.01, warmup=300, schedule=SCHEDULE
        )
        agent.setup(family, 0)
        for _ in range(iterations):
            agent.step()
    return agent


@pytest.mark.parametrize("bottleneck", ["kl", "hinge"])
def test_the_known_optimum_is_reached(bottleneck):
    """Exploration takes the action that tells, execution the one that is paid, in every problem."""
    family = Reveal(actions=ACTIONS)
    agent = trained(family, bottleneck, 2)
    found = explored(agent, family, trials=60)
    assert len(found.params.unique()) == ACTIONS
    assert (found.explore.action[:, 0].argmax(-1) == TELLS).all()
    assert (found.returns == 1).all()
    torch.testing.assert_close(found.nats[:, -1], torch.full((60,), math.log(ACTIONS)))

    problems = family.identifiers("train")
    told = family.sample(60, "train", torch.Generator().manual_seed(0))
    start = agent.inference.init(60)
    end = agent.inference.update(start, found.explore.context(next_obs=True))
    with torch_seeded(0), torch.no_grad():
        nats = [problem_log_weights(agent.told(problems), b.posterior) + math.log(ACTIONS) for b in (start, end)]
    rows = torch.arange(60)
    after = nats[1][rows, told[:, 0].long()]
    assert 0.9 * math.log(ACTIONS) < after.mean() <= math.log(ACTIONS)
    if bottleneck == "kl":  # a belief of fixed width cannot say that it does not know
        assert abs(nats[0][rows, told[:, 0].long()].mean()) < 0.1


@pytest.mark.slow
def test_the_bottleneck_removes_exactly_what_is_irrelevant():
    """By enumeration, in nats: all of what matters stays, of the rest nothing. The published hinge leaves more."""
    nothing = 0.02 * math.log(IDLE)
    family = RevealAndIdle()
    problems = family.identifiers("train")
    held = {}
    for bottleneck in ("kl", "hinge"):
        agent = trained(family, bottleneck, 5)
        assert (explored(agent, family, trials=60).returns == 1).all()
        with torch_seeded(0), torch.no_grad():
            code = agent.told(problems)
            held[bottleneck] = [information_about(code, problems[:, column].long()) for column in (0, 1)]
    assert held["kl"][0] > 0.9 * math.log(ACTIONS) and held["kl"][1] < nothing
    assert held["hinge"][0] > 0.9 * math.log(ACTIONS) and held["hinge"][1] > nothing
