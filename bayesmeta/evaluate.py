"""Meta-test: adapt to tasks by posterior inference and report every episode."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.collect import Rollout, collect
from bayesmeta.types import Algorithm, ControlFamily


def evaluate(
    algorithm: Algorithm,
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
