"""Meta-test: adapt to tasks by posterior inference and report every stage of it."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.collect import Rollout, collect
from bayesmeta.inference.predictive import log_predictive, per_datum
from bayesmeta.types import Agent, Algorithm, ControlFamily, SupervisedFamily


def evaluate(
    algorithm: Agent,
    family: ControlFamily,
    params: Float[Tensor, "B M"],
    *,
    episodes: int,
    seed: int = 0,
) -> Rollout:
    """Adapt to each task from the prior, one episode at a time, with fresh data only.

    The belief is updated after every episode and every episode's return is in the result, not only the last one's
    (reporting the last alone hides that the first ones act on the prior). The global random state is left as it was
    found, so that evaluating more often never changes training.
    """
    device = params.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        env = family.env(params, device=device)
        try:
            return collect(env, algorithm.explorer, algorithm.inference, family.spec, episodes=episodes, seed=seed)
        finally:
            env.close()


@torch.no_grad()
def predictive_curve(
    algorithm: Algorithm,
    family: SupervisedFamily,
    params: Float[Tensor, "B M"],
    *,
    shots: Sequence[int],
    queries: int = 20,
    draws: int = 50,
    seed: int = 0,
) -> Float[Tensor, "B K"]:
    """The mean log predictive density of a task's ``queries`` data after each number of ``shots``, in nats per datum.

    The data of fewer shots are among those of more, the queries are the same for all, and none is in both. Densities
    are averaged over ``draws`` of the belief. Queries are predicted one by one (no transduction). The global random
    state is left as it was found.
    """
    device = params.device
    model = algorithm.inference.model
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        data = family.context(params, max(shots) + queries, torch.Generator(device).manual_seed(seed))
        query = data.rows(max(shots), data.size)
        found = []
        for count in shots:
            seen, belief = data.rows(0, count), algorithm.inference.init(len(params))
            posterior = (algorithm.inference.update(belief, seen) if count else belief).posterior
            several = 1 if isinstance(posterior, dist.Delta) else draws
            found.append(per_datum(log_predictive(model, posterior, query, support=seen, draws=several), query))
    return torch.stack(found, 1)
