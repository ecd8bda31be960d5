"""Simulation-based calibration of a procedure against a model (Talts et al. 2018; Modrak et al. 2023).

Truths come from the prior and data from the truths; under exact inference the rank of a quantity at the truth among its
values at posterior draws is uniform. Marginal ranks cannot tell a posterior that ignores the data from the exact one;
the joint log-likelihood can.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

from bayesmeta.diagnostics.uniformity import pit
from bayesmeta.types import Belief, Inference, SupervisedFamily


def pits(
    family: SupervisedFamily,
    inference: Inference,
    *,
    tasks: int,
    shots: int,
    draws: int,
    seed: int,
    distort: Callable[[Belief], Belief] = lambda belief: belief,
) -> dict[str, np.ndarray]:
    """Uniform-under-exactness ranks in (0, 1) of the joint log-likelihood and of every coordinate, one per task.

    ``distort`` replaces the posterior by another one, whose error is to be found.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = family.sample(tasks, "train", generator)
    data = family.context(truth, shots, generator)
    belief = distort(inference.update(inference.init(tasks), data))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        z = belief.posterior.sample((draws,))
    log_likelihood = family.model.log_likelihood
    pairs = {"log_likelihood": (log_likelihood(truth, data), log_likelihood(z, data))}
    pairs |= {name: (truth[:, d], z[..., d]) for d, name in enumerate(family.spec.param_names)}
    random = np.random.default_rng(0)
    return {name: pit(at_truth.numpy(), at_draws.numpy(), random) for name, (at_truth, at_draws) in pairs.items()}


def p_value(pit: np.ndarray, bins: int = 20) -> float:
    """Of the hypothesis that the ranks are uniform: chi-squared for their shape, Cramer-von Mises for shifts.

    Another statistic than the library's, and less attentive to the tails.

    The smaller of the two, doubled (Bonferroni).
    """
    counts = np.histogram(pit, bins=bins, range=(0.0, 1.0))[0]
    return min(1.0, 2.0 * min(stats.chisquare(counts).pvalue, stats.cramervonmises(pit, "uniform").pvalue))


def rejected(ranks: dict[str, np.ndarray], alpha: float) -> set[str]:
    """The quantities whose ranks are not uniform, at family-wise failure rate ``alpha``."""
    return {name for name, values in ranks.items() if p_value(values) < alpha / len(ranks)}
