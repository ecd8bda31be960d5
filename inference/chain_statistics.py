"""Convergence of Markov chains, from draws ``[C, S, *E]`` of ``C`` chains: rank-normalised R-hat and ESS.

Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, "Rank-normalization, folding, and localization". Pyro has split
R-hat, which is used here on ranks, but its ESS is up to twice too large for chains that disagree.
"""

import math

import torch
from jaxtyping import Float
from pyro.ops.stats import gelman_rubin
from torch import Tensor


def rhat(draws: Float[Tensor, "C S *E"]) -> Float[Tensor, "*E"]:
    """Rank-normalised split R-hat: the larger of that of the draws and that of their distance from the median."""
    chains = _split(draws)
    folded = (chains - torch.quantile(chains.flatten(0, 1), 0.5, dim=0)).abs()
    return torch.maximum(gelman_rubin(_rank_normalised(chains)), gelman_rubin(_rank_normalised(folded)))


def ess_bulk(draws: Float[Tensor, "C S *E"]) -> Float[Tensor, "*E"]:
    """Effective sample size for location: that of the rank-normalised split chains."""
    return _ess(_rank_normalised(_split(draws)))


def ess_tail(draws: Float[Tensor, "C S *E"]) -> Float[Tensor, "*E"]:
    """Effective sample size for the tails: the smaller of those of the 5 % and the 95 % quantile."""
    levels = torch.tensor([0.05, 0.95], dtype=draws.dtype, device=draws.device)
    low, high = torch.quantile(draws.flatten(0, 1), levels, dim=0)
    return torch.minimum(*[_ess(_split((draws <= quantile).to(draws.dtype))) for quantile in (low, high)])


def _split(draws: Tensor) -> Tensor:
    """Each chain as its two halves: ``[2 C, S / 2, *E]``."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _rank_normalised(chains: Tensor) -> Tensor:
    """Normal scores of the ranks over all chains, ties sharing their mean rank (equation 14)."""
    columns = chains.reshape(chains.shape[0] * chains.shape[1], -1).T.contiguous()
    ordered = columns.sort(-1).values
    below, up_to = torch.searchsorted(ordered, columns), torch.searchsorted(ordered, columns, right=True)
    rank = (below + up_to + 1).to(chains.dtype) / 2
    score = torch.special.ndtri((rank - 0.375) / (columns.shape[-1] + 0.25))
    return score.T.reshape(chains.shape)


def _ess(chains: Tensor) -> Tensor:
    """``C S / tau`` with Geyer's initial monotone sequence of autocorrelations over all chains (equations 10 to 13)."""
    count, size = chains.shape[:2]
    covariance = _autocovariance(chains).mean(0)
    within = covariance[0] * size / (size - 1)
    total = covariance[0] + chains.mean(1).var(0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    last = (size - 1) // 2
    even, odd = rho[0 : 2 * last : 2], rho[1 : 2 * last : 2]
    pairs = even + odd
    positive = (pairs > 0).cumprod(0)
    positive[-1] = 0  # chains that never forget end the sequence all the same
    ended = torch.cat([torch.ones_like(positive[:1]), positive[:-1]]) - positive  # 1 at the first pair left out
    tau = -1 + 2 * (pairs.cummin(0).values * positive).sum(0) + (even.clamp_min(0) * ended).sum(0)
    return count * size / tau.clamp_min(1 / math.log10(count * size))


def _autocovariance(chains: Tensor) -> Tensor:
    """``[C, S, *E]`` over lags, divided by ``S`` at every lag."""
    size = chains.shape[1]
    spectrum = torch.fft.rfft(chains - chains.mean(1, keepdim=True), n=2 * size, dim=1)
    return torch.fft.irfft(spectrum.abs().square(), n=2 * size, dim=1)[:, :size] / size
