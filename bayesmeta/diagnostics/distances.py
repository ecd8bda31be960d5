r"""How far a belief is from the reference: exact, on a grid, or accepted chains.

Per task, for a belief ``q`` and the reference ``p``: ``KL(p || q)`` in nats where both have densities; the error of the
mean and the ratio of standard deviations in units of the reference's; and the sliced Wasserstein distance, which needs
draws alone. The importance weights ``p / q`` say whether ``q`` can be corrected: their tail index k-hat.
"""

import math

import torch
from jaxtyping import Float
from pyro.distributions import Delta
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from bayesmeta.models.cells import Cells

MIN_DRAWS = 25  # for a tail index
_DIRECTIONS = 20
_VALUES = 1 << 22  # coordinates of cells given to a density at once


def distances(
    q: Distribution, p: Distribution, q_draws: Float[Tensor, "L B D"], p_draws: Float[Tensor, "L B D"]
) -> dict[str, Tensor]:
    """``kl_reference [B]``, ``mean_error`` and ``sd_ratio [B, D]``, ``sliced_wasserstein [B]``.

    A coordinate that the reference knows without error has no standard deviation to measure in: NaN there.
    """
    sd = p.variance.sqrt()
    sd = torch.where(sd > 1e-6 * (1 + p.mean.abs()), sd, torch.nan)
    return {
        "kl_reference": reference_kl(p, q, p_draws),
        "mean_error": (q.mean - p.mean) / sd,
        "sd_ratio": q.variance.sqrt() / sd,
        "sliced_wasserstein": sliced_wasserstein(q_draws, p_draws, sd),
    }


def reference_kl(p: Distribution, q: Distribution, p_draws: Float[Tensor, "L B D"]) -> Float[Tensor, "B"]:
    """``KL(p || q)`` per task: closed form, else a sum over the reference's cells, else the mean over its draws.

    Infinite where ``q`` gives no probability to what ``p`` thinks possible, NaN where one has a density and the other
    has not (point masses and particles).
    """
    if is_discrete(p) != is_discrete(q):
        return p_draws.new_full(p_draws.shape[1:2], torch.nan)
    if isinstance(p, Cells) and isinstance(q, Cells) and torch.equal(p.points, q.points):
        return _weighted_difference(p.log_weights, q.log_weights)
    if isinstance(p, Cells):
        centres = p.points.movedim(-2, 0)
        log_q = torch.cat([q.log_prob(part) for part in centres.split(max(1, _VALUES // centres[0].numel()))])
        return _weighted_difference(p.log_weights, log_q.movedim(0, -1) + p.log_volume)
    try:
        return kl_divergence(p, q)
    except NotImplementedError:
        return (p.log_prob(p_draws) - q.log_prob(p_draws)).mean(0)


def _weighted_difference(log_p: Float[Tensor, "B G"], log_q: Float[Tensor, "B G"]) -> Float[Tensor, "B"]:
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def is_discrete(law: Distribution) -> bool:
    """Whether the law has points with probability, so that its ``log_prob`` is no density."""
    return isinstance(law, Delta) or (isinstance(law, Cells) and not bool((law.cell > 0).all()))


def sliced_wasserstein(
    a: Float[Tensor, "L B D"], b: Float[Tensor, "L B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B"]:
    """``sqrt(mean over directions of W_2^2)`` of the projected draws, in units of ``scale``.

    Two sets of draws of one law are not at zero: with L draws about ``sqrt(2 log log L / L)``; compare with the
    distance between two sets of the reference's own. Coordinates of scale NaN are left out; equally many draws needed.
    """
    weights = torch.where(scale.isnan(), 0.0, scale.reciprocal().nan_to_num())
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(a.shape[-1], _DIRECTIONS, generator=generator, dtype=torch.float32).to(a)
    directions = directions / directions.norm(dim=0)
    first, second = (((draws * weights) @ directions).movedim(0, -1).contiguous().sort(-1).values for draws in (a, b))
    return (first - second).square().mean((1, 2)).sqrt()


def k_hat(log_weights: Float[Tensor, "S B"]) -> Float[Tensor, "B"]:
    """Tail index of the importance weights ``p / q`` at draws of ``q``, by a Pareto fit to the largest of each task.

    Below ``min(1 - 1 / log10 S, 0.7)`` importance sampling can correct ``q``; above 1 the weights have no mean (Vehtari
    et al. 2024, section 3.2.4). -inf where the weights are equal but for rounding, as they are for the exact posterior.
    The fit is Pyro's, one task at a time.
    """
    count = len(log_weights)
    tail = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
    if count < MIN_DRAWS:
        raise ValueError(f"k_hat: expected at least {MIN_DRAWS} draws for a tail of 5 weights, got {count}")
    ordered = (log_weights - log_weights.max(0).values).double().sort(0).values
    largest, cutoff = ordered[-tail:], ordered[-tail - 1]
    found = log_weights.new_full(log_weights.shape[1:], -torch.inf)
    for b in range(log_weights.shape[1]):
        if float(-cutoff[b]) > 1e-3:  # the largest is 0
            excess = largest[:, b].exp() - cutoff[b].exp()
            found[b] = fit_generalized_pareto(excess.clamp_min(torch.finfo(torch.float64).tiny))[0]
    return found


def k_hat_threshold(draws: int) -> float:
    """``min(1 - 1 / log10 S, 0.7)``."""
    return min(1 - 1 / math.log10(draws), 0.7)
