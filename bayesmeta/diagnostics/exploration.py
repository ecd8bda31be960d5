"""Exploration of a world whose posterior is known: one protocol for every method, and what codes hold, by enumeration.

Information is in nats. Problems are finitely many and equally likely, so that none is worth more than ``log P``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.evaluate import evaluate
from bayesmeta.tasks.world import World
from bayesmeta.types import Agent, Transitions


@dataclass(frozen=True)
class Explored:
    """Trials of ``B`` problems ``params [B, M]``: an episode of exploration, then one of execution.

    ``returns [B]`` are of execution. ``nats [B, T + 1]`` is what exploration has told of the problem before each of its
    steps and after the last, by the exact posterior; it stays what it was when an exploration is over.
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
    exact = family.posterior_over(split)
    weights = exact.scan(exact.init(trials), explore.context(next_obs=True)).log_weights
    weights = weights.unflatten(0, (-1, trials)).transpose(0, 1)
    true = (exact.points == params.unsqueeze(1)).all(-1).float().argmax(1)
    nats = weights.gather(-1, true.view(-1, 1, 1).expand(-1, weights.shape[1], 1)).squeeze(-1)
    return Explored(params, explore, rollout.returns[:, 1], nats + math.log(len(exact.points)))


@torch.no_grad()
def problem_log_weights(code: Distribution, belief: Distribution, draws: int = 100) -> Float[Tensor, "B P"]:
    r"""What beliefs about a code say of the problem: ``log E_{z ~ q} [F_p(z) / sum_{p'} F_{p'}(z)]``.

    ``code`` is the law ``F_p`` of the code of each of ``P`` equally likely problems, ``belief`` is ``q``, of ``B``
    tasks. Problems that a code does not tell apart share their weight.
    """
    return _log_posterior(code, belief.sample(torch.Size((draws,)))).logsumexp(0) - math.log(draws)


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
    return torch.stack([code.log_prob(part.unsqueeze(1)).log_softmax(-1) for part in z])
