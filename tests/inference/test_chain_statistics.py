"""Rank-normalised R-hat and ESS against ArviZ."""

import arviz
import pytest
import torch

from bayesmeta.inference import chain_statistics


def autoregressive(rho: float, draws: int, shift: float = 0.0) -> torch.Tensor:
    """Four chains with lag-one correlation ``rho`` and unit variance, the last one shifted."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, draws, generator=generator, dtype=torch.float64)
    chain = [noise[:, 0]]
    for t in range(1, draws):
        chain.append(rho * chain[-1] + (1 - rho**2) ** 0.5 * noise[:, t])
    chains = torch.stack(chain, 1)
    chains[-1] += shift
    return chains


@pytest.mark.parametrize("rho, shift", [(0.0, 0.0), (0.5, 0.0), (0.95, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.5, 2.0)])
@pytest.mark.parametrize("draws", [251, 1000])
def test_as_arviz_has_it(rho: float, shift: float, draws: int) -> None:
    """Well and badly mixed chains, and chains that disagree; an odd number of draws loses its middle one."""
    chains = autoregressive(rho, draws, shift)
    assert float(chain_statistics.rhat(chains)) == pytest.approx(float(arviz.rhat(chains.numpy())), rel=1e-6)
    for ours, method in ((chain_statistics.ess_bulk, "bulk"), (chain_statistics.ess_tail, "tail")):
        theirs = float(arviz.ess(chains.numpy(), method=method))
        assert float(ours(chains)) == pytest.approx(theirs, rel=1e-6)


def test_ties_share_their_rank() -> None:
    chains = torch.randint(0, 4, (4, 400), generator=torch.Generator().manual_seed(0)).double()
    assert float(chain_statistics.rhat(chains)) == pytest.approx(float(arviz.rhat(chains.numpy())), rel=1e-6)


def test_every_coordinate_by_itself() -> None:
    chains = torch.stack([autoregressive(0.5, 300), autoregressive(0.0, 300, 1.0)], -1).unsqueeze(-1)
    for statistic in (chain_statistics.rhat, chain_statistics.ess_bulk, chain_statistics.ess_tail):
        together = statistic(chains)
        assert together.shape == (2, 1)
        alone = torch.stack([statistic(chains[:, :, d, 0]) for d in range(2)])
        torch.testing.assert_close(together.squeeze(-1), alone)


def test_a_chain_of_another_width_is_seen_by_the_folded_rank_only() -> None:
    generator = torch.Generator().manual_seed(0)
    chains = torch.randn(4, 500, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [1.0], [1.0], [3.0]])
    assert float(chain_statistics.rhat(chains)) > 1.05
