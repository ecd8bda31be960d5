"""Results of an agent in a world of finitely many problems: what its exploration told, and what its belief kept of it.

Which problem it is has no place on a line, so that nothing is decoded by regression here. The exact posterior over the
problems is enumerated after every step of exploration. Of an agent whose belief is about a code of the problem, as
DREAM's is, two things are compared with it:

- the probabilities of problems that the belief stands for, read through the codes of one who is told the problem
  (:func:`~bayesmeta.diagnostics.exploration.implied_log_weights`), and the nats that it holds of the true one;
- the belief itself, with the mixture of codes that is the exact posterior of the code
  (:class:`~bayesmeta.diagnostics.codes.CodePosterior`). The truth to rank is a draw of the true problem's code.

The code of a problem that was never trained on means nothing. Tasks are of the test split where all of its problems are
trained on too, and else of the train split; what the agent is paid in test problems then stands beside.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.algorithms.dream import DREAM
from bayesmeta.collect import Rollout
from bayesmeta.diagnostics.calibration import calibration, ranks
from bayesmeta.diagnostics.codes import CodeMixture, CodePosterior
from bayesmeta.diagnostics.exploration import exact_log_weights, implied_log_weights, nats_of, numbers
from bayesmeta.diagnostics.export import MAX_NUMBERS, posterior_after, results_from
from bayesmeta.diagnostics.information import discrete_kl
from bayesmeta.diagnostics.results import array
from bayesmeta.diagnostics.scores import ece, reliability
from bayesmeta.diagnostics.truth import reference_returns
from bayesmeta.evaluate import evaluate
from bayesmeta.tasks.world import World
from bayesmeta.train import derived_seed, seeded
from bayesmeta.trial_replay import Trials
from bayesmeta.types import Agent, Transitions

BINS = 10  # of probability
_CODES = 50  # draws of each task's code
_STEPS = ("context_step", "task")


def world_results(
    agent: Agent,
    family: World,
    *,
    tasks: int = 100,
    episodes: int = 2,
    draws: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """The results of an agent's beliefs after every step of an episode of exploration, and what it is paid afterwards.

    ``episodes`` of a trial include the exploration; beliefs after it are not looked at. Beside the groups that any
    agent has there are ``exploration`` and, where the test problems were not trained on, ``unseen``. Everything is
    computed with ``draws`` of the belief, of which the file keeps fewer where they are more than four million numbers.
    Raises ValueError for fewer than two episodes.
    """
    if episodes < 2:
        raise ValueError(f"episodes = {episodes}: expected at least 2, one of exploration and one that is paid")
    split = judged_split(family)
    params = family.sample(tasks, split, _generator(seed, "diagnostics tasks")).to(device)
    rollout, references = _trials(agent, family, params, split, episodes, seed)
    explore = rollout.episodes[0]
    problems = family.posterior_over(split).to(device)
    true = numbers(problems.points, params)
    code = truth = reference = None
    if isinstance(agent, DREAM):
        with torch.no_grad(), seeded(derived_seed(seed, "diagnostics codes")):
            code = agent.told(problems.points)
            truth, reference = agent.told(params).sample(), CodePosterior(problems, code)
    tree = results_from(
        rollout,
        params,
        agent.inference,
        family.spec,
        sizes=range(explore.mask.shape[1] + 1),
        draws=draws,
        seed=derived_seed(seed, "diagnostics draws"),
        truth=truth,
        reference=reference,
        references=references,
        attrs={**(attrs or {}), "split": split, "exploration_episodes": 1},
    )
    exact = exact_log_weights(problems, explore)
    group = explored_group(family, explore, exact, true)
    if isinstance(agent, DREAM) and code is not None and truth is not None:
        group = group.merge(_belief_group(agent, params, rollout, code, exact, true, seed))
        tree.attrs["bonus_unit"] = "shares of the code" if agent.bottleneck == "kl" else "squared distance"
        with seeded(derived_seed(seed, "diagnostics ranks")):
            context = rollout.transitions.context(next_obs=True)
            sbc = ranks(tree, context, truth, seed=derived_seed(seed, "diagnostics ranks"))
        tree["prior_sbc"], tree["calibration"] = xr.DataTree(sbc), xr.DataTree(calibration(sbc))
    _thin(tree)
    group = group.assign_coords({name: array(tree, "posterior", name) for name in _STEPS})
    tree["exploration"] = xr.DataTree(group)
    if split != "test":
        tree["unseen"] = xr.DataTree(_unseen(agent, family, tasks, episodes, seed, device))
    return tree


def judged_split(family: World) -> str:
    """``test`` if all its problems are trained on too, else ``train``."""
    test, train = family.identifiers("test"), family.identifiers("train")
    return "test" if bool((test.unsqueeze(1) == train).all(-1).any(1).all()) else "train"


def explored_group(
    family: World, explore: Transitions, exact: Float[Tensor, "T1 B P"], true: Int[Tensor, "B"]
) -> xr.Dataset:
    """What was done and what it told exactly: the group ``exploration`` of any agent.

    At every number of steps: ``state``, the ``action`` that led there (-1 at the start), whether it was ``real``, and
    of the exact posterior ``exact_probability`` of every problem and ``exact_nats`` of the ``true`` one. ``problem`` is
    the row of the true one.
    """
    shown = explore.obs.shape[-1] - family.instruction_dim
    seen = torch.cat([explore.obs, explore.next_obs[:, -1:]], 1)[..., :shown].long()
    first = torch.ones_like(explore.mask[:, :1])
    action = torch.cat([-first.long(), explore.action.argmax(-1)], 1)
    real = torch.cat([first, explore.mask], 1)
    return xr.Dataset(
        {
            "state": ((*_STEPS, "state_dim"), _array(family.recover(seen).transpose(0, 1))),
            "action": (_STEPS, _array(action.masked_fill(~real, -1).T)),
            "real": (_STEPS, _array(real.T)),
            "exact_probability": ((*_STEPS, "problem_row"), _array(exact.exp())),
            "exact_nats": (_STEPS, _array(nats_of(exact, true))),
            "problem": (("task",), _array(true)),
        },
        {"problem_row": np.arange(exact.shape[-1]), "state_dim": np.arange(len(family.start))},
    )


def implied_group(
    implied: Float[Tensor, "T1 B P"], exact: Float[Tensor, "T1 B P"], true: Int[Tensor, "B"]
) -> xr.Dataset:
    """What a belief says of the problem, ``implied``, beside the exact posterior; log probabilities.

    At every number of steps: ``probability`` of each problem; ``nats`` of the true one, on average never more than the
    exact posterior's, which are never more than ``log P``; ``kl``, that of the exact posterior from it. ``confidence``
    in the problem that is thought most probable and ``accuracy``, how often it is the true one, in bins of
    ``count`` tasks, and their expected difference ``ece``; ``exact_ece`` is that of the exact posterior, which is
    calibrated, so that it is the noise of so many tasks.
    """
    weights, labels = implied.exp().double().cpu().numpy(), true.cpu().numpy()
    tables = [reliability(part, labels, BINS) for part in weights]
    best = [reliability(part, labels, BINS) for part in exact.exp().double().cpu().numpy()]
    kl = discrete_kl(exact, implied)
    return xr.Dataset(
        {
            "probability": ((*_STEPS, "problem_row"), weights.astype(np.float32)),
            "nats": (_STEPS, _array(nats_of(implied, true))),
            "kl": (_STEPS, _array(kl)),
            "ece": (("context_step",), [ece(table) for table in tables]),
            "exact_ece": (("context_step",), [ece(table) for table in best]),
            **{
                name: (("context_step", "bin"), np.stack([getattr(table, name) for table in tables]))
                for name in ("confidence", "accuracy", "count")
            },
        },
        {"bin": np.arange(BINS)},
    )


@torch.no_grad()
def _belief_group(
    agent: DREAM, params: Tensor, rollout: Rollout, code: Distribution, exact: Tensor, true: Tensor, seed: int
) -> xr.Dataset:
    r"""What DREAM's belief says after every step, and what the step was paid: ``bonus``, 0 at the start.

    ``code_nats`` are those of the code that the belief has recovered, ``E_{z ~ F_mu}[log q(z | tau) - log p(z)]`` with
    the codes of all problems as ``p``: on average, too, at most ``log P`` (Barber and Agakov 2003), unlike the sum of
    the bonuses, which are gains over the belief that an exploration begins with, in shares of the code.
    """
    explore = rollout.episodes[0]
    context = explore.context(next_obs=True)
    implied, recovered = [], []
    with seeded(derived_seed(seed, "diagnostics problems")):
        z = agent.told(params).sample(torch.Size((_CODES,)))
        unknown = CodeMixture(code, torch.zeros_like(exact[0])).log_prob(z)
        for step in range(context.size + 1):
            belief = posterior_after(agent.inference, context.rows(0, step))
            implied.append(implied_log_weights(code, belief))
            recovered.append((belief.log_prob(z) - unknown).mean(0))
    paid = agent.bonus(Trials(params, explore, rollout.episodes[1]))
    group = implied_group(torch.stack(implied), exact.to(implied[0]), true)
    return group.assign(
        code_nats=(_STEPS, _array(torch.stack(recovered))),
        bonus=(_STEPS, _array(torch.cat([torch.zeros_like(paid[:, :1]), paid], 1).T)),
    )


def _unseen(
    agent: Agent, family: World, tasks: int, episodes: int, seed: int, device: torch.device | str
) -> xr.Dataset:
    """Returns in test problems, with those of others, and what exploring them told exactly, in all.

    Nobody knows that a problem is one of these: the exact posterior, and those who draw from it, begin with all.
    """
    params = family.sample(tasks, "test", _generator(seed, "diagnostics unseen tasks")).to(device)
    rollout, references = _trials(agent, family, params, "all", episodes, seed)
    problems = family.posterior_over("all").to(device)
    exact = exact_log_weights(problems, rollout.episodes[0])[-1:]
    return xr.Dataset(
        {
            "return": (("unseen_task", "episode"), _array(rollout.returns)),
            "problem": (("unseen_task", "param"), _array(params)),
            "exact_nats": (("unseen_task",), _array(nats_of(exact, numbers(problems.points, params))[0])),
            **{f"reference_{name}": (("unseen_task",), _array(value)) for name, value in references.items()},
        },
        {
            "unseen_task": np.arange(tasks),
            "episode": np.arange(1, 1 + episodes),
            "param": list(family.spec.param_names),
        },
    )


def _trials(
    agent: Agent, family: World, params: Tensor, split: str, episodes: int, seed: int
) -> tuple[Rollout, dict[str, Tensor]]:
    """The agent's trials in some tasks, and what others are paid in them."""
    rollout = evaluate(agent, family, params, episodes=episodes, seed=derived_seed(seed, "diagnostics episodes"))
    references = reference_returns(
        family, params, episodes=episodes, seed=derived_seed(seed, "diagnostics references"), split=split
    )
    return rollout, references


def _thin(tree: xr.DataTree) -> None:
    """Leave as many draws of the belief as a file should have."""
    z = tree["posterior"].to_dataset()["z"]
    kept = max(1, MAX_NUMBERS // (z.size // z.sizes["draw"]))
    for name in ("posterior", "sample_stats"):
        if name in tree.children:
            tree[name] = xr.DataTree(tree[name].to_dataset().isel(draw=slice(kept)))


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
