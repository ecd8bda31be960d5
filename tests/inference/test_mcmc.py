"""NUTS as a reference: agrees with exact posteriors, is reproducible, and refuses chains that have not converged."""

import re

import pyro
import pytest
import torch

from bayesmeta.inference.mcmc import NUTS, Chains, ReferenceRejected
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context, SupervisedFamily


def data_of(family: SupervisedFamily, tasks: int, shots: int) -> Context:
    generator = torch.Generator().manual_seed(0)
    return family.context(family.sample(tasks, "train", generator), shots, generator)


def sampler(family: SupervisedFamily, **options: int) -> NUTS:
    return NUTS(family.model, x_dim=family.spec.x_dim, y_dim=family.spec.y_dim, **options)


def assert_agrees(family: SupervisedFamily, data: Context, chains: Chains) -> None:
    """Means within 4 Monte-Carlo standard errors; standard deviations too (``sd / sqrt(2 ESS)`` for a Gaussian)."""
    exact = family.exact
    truth = exact.update(exact.init(data.batch), data).posterior
    ess = torch.minimum(chains.ess_bulk, chains.ess_tail)
    error = truth.stddev / ess.sqrt()
    assert ((chains.posterior.mean - truth.mean).abs() < 4 * error).all()
    assert ((chains.posterior.stddev - truth.stddev).abs() < 4 * error).all()


def draw(nuts: NUTS, belief: Chains, data: Context) -> Chains:
    """The chains, accepted or not: short ones, which still are draws from the posterior."""
    try:
        return nuts.update(belief, data)
    except ReferenceRejected as rejected:
        return rejected.chains


def test_draws_are_from_the_conjugate_posterior() -> None:
    family = NormalNormal()
    data = data_of(family, tasks=1, shots=6)
    padded = Context(data.x, data.y, torch.arange(6).unsqueeze(0) < 5)
    nuts = sampler(family, draws=80, warmup=40, seed=1)
    chains = draw(nuts, nuts.init(1), padded)
    assert chains.draws.shape == (4, 80, 1, 1)
    assert chains.ess_bulk.min() > 50
    assert_agrees(family, padded, chains)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "draws"),
    [(LinearGaussian(dim=3), 350), (BernoulliBandit(arms=2), 350), (Sinusoid(noise=0.5), 700)],
    ids=lambda value: value if isinstance(value, int) else value.spec.name,
)
def test_agrees_with_the_exact_posterior_of_several_tasks(family: SupervisedFamily, draws: int) -> None:
    data = data_of(family, tasks=2, shots=12)
    nuts = sampler(family, draws=draws, warmup=150)
    assert_agrees(family, data, nuts.update(nuts.init(2), data))


def test_without_data_the_draws_are_the_priors() -> None:
    family = LinearGaussian(dim=2, prior_mean=1.0)
    prior = sampler(family).init(3)
    assert_agrees(family, Context.empty(3, 2, 1), prior)
    assert sampler(family).update(prior, Context.empty(3, 2, 1)) is prior


def short_chains(seed: int, pieces: tuple[int, ...] = (4,)) -> Chains:
    family = NormalNormal()
    data, nuts = data_of(family, tasks=2, shots=4), sampler(family, draws=8, warmup=3, seed=seed)
    belief, start = nuts.init(2), 0
    for stop in pieces:
        belief, start = draw(nuts, belief, data.rows(start, stop)), stop
    return belief


def test_seed_decides_the_draws_and_nothing_else_is_touched() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = short_chains(seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(short_chains(seed=0).draws, first.draws)
    assert not torch.equal(short_chains(seed=1).draws, first.draws)
    distinct = first.draws.flatten(1)
    assert all(not torch.equal(distinct[i], distinct[j]) for i in range(4) for j in range(i))


def test_data_in_pieces_are_run_on_together() -> None:
    pieces, whole = short_chains(0, (1, 4)), short_chains(0)
    assert torch.equal(pieces.draws, whole.draws)
    assert torch.equal(pieces.data.y, whole.data.y)


def test_chains_take_their_gradients_where_none_are_recorded() -> None:
    family = NormalNormal()
    nuts = sampler(family, draws=10, warmup=5)
    with torch.no_grad():
        chains = draw(nuts, nuts.init(1), data_of(family, 1, 3))
    assert not chains.draws.requires_grad and chains.draws.std() > 0


def test_short_chains_are_no_reference() -> None:
    family = NormalNormal()
    nuts = sampler(family, draws=8, warmup=4)
    with pytest.raises(ReferenceRejected, match=r"chains that have converged, got .*ESS .* < 400.* invalid") as caught:
        nuts.update(nuts.init(1), data_of(family, tasks=1, shots=4))
    assert caught.value.chains.draws.shape == (4, 8, 1, 1)


@pytest.mark.slow
def test_chains_in_different_modes_are_no_reference() -> None:
    """Data at one place only: ``a sin(1.5 - phi)`` is the same on both sides of its maximum."""
    family = Sinusoid(noise=0.05)
    data = Context.of(torch.full((1, 6, 1), 1.5), torch.full((1, 6, 1), 0.3))
    nuts = sampler(family, draws=100, warmup=50)
    with pytest.raises(ReferenceRejected, match="R-hat"):
        nuts.update(nuts.init(1), data)


NOISE = torch.randn(4, 500, 1, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "draws, divergences, fault",
    [
        (NOISE, 0, None),
        (NOISE, 1, "1 divergences"),
        (NOISE[:, :60], 0, "ESS .* < 400"),
        (NOISE + 0.3 * torch.arange(4).reshape(4, 1, 1, 1), 0, "R-hat .* > 1.01"),
        (torch.zeros_like(NOISE), 0, "R-hat nan"),
    ],
)
def test_each_gate(draws: torch.Tensor, divergences: int, fault: str | None) -> None:
    chains = Chains(draws, Context.empty(1, 1, 1), divergences)
    assert bool(chains.faults()) == (fault is not None)
    if fault is not None:
        assert re.search(fault, str(ReferenceRejected(chains)))


def test_too_few_chains_and_bad_data_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 chains of 8 draws, got 2 of 500"):
        sampler(NormalNormal(), chains=2)
    with pytest.raises(ValueError, match="at least 4 chains of 8 draws, got 4 of 7"):
        sampler(NormalNormal(), draws=7)
    nuts = sampler(NormalNormal())
    with pytest.raises(ValueError, match=r"NUTS: expected data x \[1, N, 1\]"):
        nuts.update(nuts.init(1), Context.of(torch.zeros(1, 2, 3), torch.zeros(1, 2, 1)))
