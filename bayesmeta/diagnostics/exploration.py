"""Exploration of a world whose posterior is known: one protocol for every method, and what codes hold, by enumeration.

Information is in nats. Problems are finitely many and equally likely, so that none is worth more than ``log P``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.diagnostics.codes import log_densities
from bayesmeta.evaluate import evaluate
from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.tasks.world import World
from bayesmeta.types import Agent, Transitions

DRAWS = 400  # of a belief, to read what it says of the problems


@dataclass(frozen=True)
class Explored:
    """Trials of ``B`` problems ``params [B, M]``: an episode of exploration, then one of execution.

    ``returns [B]`` are of execution. ``nats [B, T + 1]`` is what exploration has told of the problem before each of its
    steps and after the last, by the exact posterior over the problems of all splits; it stays what it was when an
    exploration is over.
    """

    params: Float[Tensor, "B M"]
    explore: Transitions
    returns: Float[Tensor, "B"]
    nats: Float[Tensor, "B T1"]

    @property
    def steps(self) -> Float[Tensor, "B"]:
        """How many steps each exploration took."""
        return self.explore.mask.sum(1).float()


def explored(agent: Agent, family: World, split: str = "test", *, trials: int = 1000, seed: int = 0) -> Explored:
    """The protocol: ``trials`` fresh problems of a split, explored and then executed from the prior by ``agent``."""
    params = family.sample(trials, split, torch.Generator().manual_seed(seed))
    rollout = evaluate(agent, family, params, episodes=2, seed=seed)
    explore = rollout.episodes[0]
    exact = family.posterior_over("all")
    found = nats_of(exact_log_weights(exact, explore), numbers(exact.points, params))
    return Explored(params, explore, rollout.returns[:, 1], found.T)


def exact_log_weights(exact: FiniteFilter, explore: Transitions) -> Float[Tensor, "T1 B P"]:
    """What is known of the problem before each step of an exploration and after the last: log probabilities."""
    tasks = len(explore.mask)
    found = exact.scan(exact.init(tasks), explore.context(next_obs=True)).log_weights
    return found.unflatten(0, (-1, tasks))


def numbers(points: Float[Tensor, "P M"], params: Float[Tensor, "B M"]) -> Int[Tensor, "B"]:
    """The row of each task's parameters among those of the problems."""
    return (points == params.unsqueeze(1)).all(-1).int().argmax(1)


def nats_of(log_weights: Float[Tensor, "T1 B P"], true: Int[Tensor, "B"]) -> Float[Tensor, "T1 B"]:
    """What is told of the true problem where ``P`` are equally likely: its log probability plus ``log P``."""
    index = true.view(1, -1, 1).expand(len(log_weights), -1, 1)
    return log_weights.gather(-1, index).squeeze(-1) + math.log(log_weights.shape[-1])


@torch.no_grad()
def problem_log_weights(code: Distribution, belief: Distribution, draws: int = 100) -> Float[Tensor, "B P"]:
    r"""What beliefs about a code say of the problem: ``log E_{z ~ q} [F_p(z) / sum_{p'} F_{p'}(z)]``.

    ``code`` is the law ``F_p`` of the code of each of ``P`` equally likely problems, ``belief`` is ``q``, of ``B``
    tasks. Problems that a code does not tell apart share their weight.
    """
    return _log_posterior(code, belief.sample(torch.Size((draws,)))).logsumexp(0) - math.log(draws)


def implied_log_weights(code: Distribution, belief: Distribution, draws: int = DRAWS) -> Float[Tensor, "B P"]:
    """:func:`problem_log_weights` to the resolution of ``draws``: none is so small that no number of draws could tell.

    As if one more draw had been of no problem in particular. A belief that is wider than the codes, in many dimensions,
    gives to problems none of whose codes is the nearest to any draw a probability that is 0 for all that one can tell.
    """
    found = problem_log_weights(code, belief, draws) + math.log(draws)
    return torch.logaddexp(found, found.new_tensor(-math.log(found.shape[-1]))) - math.log(draws + 1)


@torch.no_grad()
def information_about(code: Distribution, labels: Int[Tensor, "P"], draws: int = 200) -> float:
    """``I(z; label)``: what a code tells of a property ``labels`` of the problem, at most the label's entropy.

    Problems are equally likely. The posterior given a code is enumerated, the codes are drawn.
    """
    _, index = labels.unique(return_inverse=True)
    found = _log_posterior(code, code.sample(torch.Size((draws,)))).exp()  # draws, problems, posterior
    by_label = found.new_zeros(*found.shape[:2], int(index.max()) + 1).index_add_(2, index, found)
    prior = torch.bincount(index).to(by_label) / len(index)
    return float(torch.special.entr(prior).sum() - torch.special.entr(by_label).sum(-1).mean())


def _log_posterior(code: Distribution, z: Float[Tensor, "S B D"]) -> Float[Tensor, "S B P"]:
    """The exact posterior over the problems given each code."""
    return log_densities(code, z).log_softmax(-1).to(z.dtype)
