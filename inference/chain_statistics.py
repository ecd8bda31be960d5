"""Convergence of Markov chains, from draws ``[C, S, *E]`` of ``C`` chains: rank-normalised R-hat and ESS.

Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, "Rank-normalization, folding, and localization". What is done
here is the ranking; the variances and autocorrelations of the ranked chains are Pyro's.
"""

import torch
from jaxtyping import Float
from pyro.ops.stats import effective_sample_size, gelman_rubin
from torch import Tensor


def rhat(draws: Float[Tensor, "C S *E"]) -> Float[Tensor, "*E"]:
    """Rank-normalised split R-hat: the larger of that of the draws and that of their distance from the median."""
    chains = _split(draws)
    folded = (chains - torch.quantile(_flat(chains), 0.5, dim=0)).abs()
    return torch.maximum(gelman_rubin(_rank_normalised(chains)), gelman_rubin(_rank_normalised(folded)))


def ess_bulk(draws: Float[Tensor, "C S *E"]) -> Float[Tensor, "*E"]:
    """Effective sample size for location: that of the rank-normalised split chains."""
    return effective_sample_size(_rank_normalised(_split(draws)))


def ess_tail(draws: Float[Tensor, "C S *E"]) -> Float[Tensor, "*E"]:
    """Effective sample size for the tails: the smaller of those of the 5 % and the 95 % quantile."""
    chains = _split(draws)
    levels = torch.tensor([0.05, 0.95], dtype=draws.dtype, device=draws.device)
    low, high = torch.quantile(_flat(chains), levels, dim=0)
    tails = [(chains <= quantile).to(draws.dtype) for quantile in (low, high)]
    return torch.minimum(*[effective_sample_size(tail) for tail in tails])


def _split(draws: Tensor) -> Tensor:
    """Each chain as its two halves: ``[2 C, S / 2, *E]``."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _flat(chains: Tensor) -> Tensor:
    return chains.flatten(0, 1)


def _rank_normalised(chains: Tensor) -> Tensor:
    """Normal scores of the ranks over all chains, ties sharing their mean rank (equation 14)."""
    flat = _flat(chains)
    columns = flat.reshape(len(flat), -1).T.contiguous()
    ordered = columns.sort(-1).values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    rank = (below + up_to + 1).to(chains.dtype) / 2
    score = torch.special.ndtri((rank - 0.375) / (len(flat) + 0.25))
    return score.T.reshape(chains.shape)
