"""Counting transitions against plain Python, quadrature, and the Beta posterior that it is for two outcomes."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta, biject_to, kl_divergence
from torch.nn.functional import one_hot

from bayesmeta.inference.conjugate import ConjugateBeta
from bayesmeta.inference.dirichlet import ConjugateDirichlet
from bayesmeta.inference.mcmc import NUTS, ReferenceRejected
from bayesmeta.models.beta_bernoulli import BetaBernoulliModel
from bayesmeta.models.dirichlet import DirichletModel, DirichletRows
from bayesmeta.models.distributions import OneRow
from bayesmeta.tasks.tabular_transitions import TabularTransitions
from bayesmeta.types import Context

CONCENTRATION = torch.tensor([[1.5, 2.0, 0.7], [3.0, 0.5, 1.0]], dtype=torch.float64)


def transitions(pairs: list[list[int]], reached: list[list[int]], rows: int = 2, columns: int = 3) -> Context:
    return Context.of(one_hot(torch.tensor(pairs), rows).double(), one_hot(torch.tensor(reached), columns).double())


def test_posterior_counts() -> None:
    """The prior's concentration plus one for each transition seen, a masked one excepted; and so the predictive."""
    data = transitions([[0, 0, 1, 0], [1, 1, 1, 1]], [[2, 2, 0, 1], [0, 1, 2, 2]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    exact = ConjugateDirichlet(DirichletModel(CONCENTRATION))
    belief = exact.update(exact.init(2), Context(data.x, data.y, mask))
    counted = CONCENTRATION.repeat(2, 1, 1)
    for b, x, y in [(0, 0, 2), (0, 0, 2), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1), (1, 1, 2)]:
        counted[b, x, y] += 1
    assert torch.equal(belief.concentration, counted)
    law = exact.predictive(belief, one_hot(torch.tensor([[0, 1], [1, 0]]), 2).double())
    assert law.batch_shape == (2, 2) and law.event_shape == (3,)
    expected = counted / counted.sum(-1, keepdim=True)
    torch.testing.assert_close(law.mean, torch.stack([expected[0], expected[1].flip(0)]))
    torch.testing.assert_close(belief.posterior.mean, expected.flatten(1))


def unconstrained(law: DirichletRows, cells: int = 1200) -> tuple[Tensor, Tensor]:
    """Tables ``[G, X * Y]`` with two free numbers, and the areas around them, by a rectangle in unconstrained space."""
    axis = torch.linspace(-25.0, 25.0, cells, dtype=torch.float64)
    free = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
    change = biject_to(law.support)
    table = change(free)
    return table, change.log_abs_det_jacobian(free, table).exp() * (50.0 / (cells - 1)) ** 2


@pytest.mark.parametrize("shape", [(1, 3), (2, 2)])
def test_density_integrates_to_one_and_has_the_stated_moments(shape: tuple[int, int]) -> None:
    """In the unconstrained space on which samplers move: one row of three outcomes, or two rows of two."""
    concentration = CONCENTRATION.flatten()[: shape[0] * shape[1]].reshape(1, *shape) + 0.5
    law = DirichletRows(concentration)
    z, area = unconstrained(law)
    log_prob = law.log_prob(z.unsqueeze(1)).squeeze(1)
    weight = log_prob.exp() * area
    assert math.isclose(float(weight.sum()), 1.0, rel_tol=1e-6)
    mean = weight @ z
    torch.testing.assert_close(mean, law.mean[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight @ (z - mean).square(), law.variance[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(-(weight * log_prob).sum(), law.entropy()[0], rtol=1e-5, atol=1e-6)
    other = DirichletRows(concentration.flip(-1) + 0.3)
    kl = weight @ (log_prob - other.log_prob(z.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(kl, kl_divergence(law, other)[0], rtol=1e-5, atol=1e-6)


def test_two_outcomes_are_the_beta_posterior_of_a_bandit() -> None:
    """Rows are arms, the first outcome is a success; agreement with :class:`ConjugateBeta`, scans too."""
    alpha, beta = torch.tensor([2.0, 0.8, 1.0]), torch.tensor([3.0, 1.5, 1.0])
    arms, won = torch.tensor([[0, 1, 0, 2, 1]]), torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]])
    pulls = Context.of(one_hot(arms, 3).float(), won.unsqueeze(-1))
    moves = Context.of(pulls.x, torch.stack([won, 1 - won], -1))
    counting = ConjugateDirichlet(DirichletModel(torch.stack([alpha, beta], -1)))
    bandit = ConjugateBeta(BetaBernoulliModel(alpha, beta))
    tables, rates = counting.scan(counting.init(1), moves).posterior, bandit.scan(bandit.init(1), pulls).posterior
    torch.testing.assert_close(tables.mean[:, ::2], rates.mean)
    torch.testing.assert_close(tables.variance[:, ::2], rates.variance)
    z = torch.tensor([0.3, 0.6, 0.9])
    table = torch.stack([z, 1 - z], -1).flatten()
    torch.testing.assert_close(tables.log_prob(table), rates.log_prob(z))
    one, other = counting.init(1), bandit.init(1)
    predicted = counting.predictive(one, moves.x).log_prob(moves.y)
    torch.testing.assert_close(predicted, bandit.predictive(other, pulls.x).log_prob(pulls.y))


def test_draws_are_tables_with_the_stated_moments() -> None:
    """Rows sum to one; means within 4 standard errors and variances within 5 %; rows do not depend on each other."""
    law = DirichletRows(CONCENTRATION.expand(2, -1, -1))
    torch.manual_seed(0)
    z = law.sample((20_000,))
    assert z.shape == (20_000, 2, 6) and law.support.check(z).all()
    assert not law.support.check(z.flip(-1)[..., [0, 1, 3, 2, 4, 5]]).any()
    assert ((z.mean(0) - law.mean).abs() < 4 * (law.variance / len(z)).sqrt()).all()
    torch.testing.assert_close(z.var(0), law.variance, rtol=0.05, atol=0)
    between = torch.corrcoef(z[:, 0].T)[:3, 3:]
    assert between.abs().max() < 4 / math.sqrt(len(z))
    marginal = Beta(CONCENTRATION[0, 0], CONCENTRATION[0, 1:].sum())
    torch.testing.assert_close(law.variance[0, 0], marginal.variance)


def test_batches_and_the_row_axis() -> None:
    law = DirichletRows(CONCENTRATION.expand(4, -1, -1))
    assert law.expand(torch.Size((5, 4))).sample((6,)).shape == (6, 5, 4, 6)
    row = OneRow(law)
    z = row.sample((2,))
    change = biject_to(row.support)
    free = change.inv(z)
    assert z.shape == (2, 4, 1, 6) and free.shape == (2, 4, 1, 4)
    torch.testing.assert_close(change(free), z)
    torch.testing.assert_close(row.log_prob(z), law.log_prob(z.squeeze(-2)).unsqueeze(-1))
    draw = DirichletRows(CONCENTRATION.clone().requires_grad_().expand(1, -1, -1)).rsample()
    assert draw.requires_grad


def test_likelihood_by_hand_also_of_very_improbable_transitions() -> None:
    """torch clamps probabilities at 1e-7; small concentrations draw smaller ones, and their log counts."""
    model = DirichletModel(torch.ones(2, 2))
    data = Context.of(torch.eye(2).unsqueeze(0), torch.eye(2).flip(0).unsqueeze(0))
    found = model.log_likelihood(torch.tensor([[1.0, 1e-30, 0.25, 0.75]]), data)
    assert math.isclose(float(found), math.log(1e-30) + math.log(0.25), rel_tol=1e-6)


def test_padding_of_any_value_is_not_read() -> None:
    """Zeros, which are no row of the table, and NaN: neither the likelihood nor its gradient notices."""
    model = DirichletModel(CONCENTRATION)
    z = model.prior(1).mean.requires_grad_()
    data = transitions([[0, 1]], [[2, 0]])
    (alone,) = torch.autograd.grad(model.log_likelihood(z, data.rows(0, 1)).sum(), z)
    for padding in (0.0, torch.nan):
        x, y = data.x.clone(), data.y.clone()
        x[:, 1], y[:, 1] = padding, 0.0
        total = model.log_likelihood(z, Context(x, y, torch.tensor([[True, False]])))
        torch.testing.assert_close(total, model.log_likelihood(z, data.rows(0, 1)))
        (gradient,) = torch.autograd.grad(total.sum(), z)
        torch.testing.assert_close(gradient, alone)


def test_family_samples_its_tables() -> None:
    """Pairs are numbered state by state, and where they lead is distributed as the table says: chi-squared by hand."""
    family = TabularTransitions(states=3, actions=2, concentration=2.0)
    generator = torch.Generator().manual_seed(0)
    table = family.sample(1, "train", generator)
    data = family.context(table, 60_000, generator)
    assert family.spec.param_names[2 * 3 + 1] == "p_1_0_1"  # state 1, action 0 is pair 2
    counts = data.x[0].T @ data.y[0]
    expected = counts.sum(1, keepdim=True) * table.reshape(6, 3)
    squares = ((counts - expected) ** 2 / expected).sum()
    assert squares < 32.9  # 99.9 % of chi-squared with 12 degrees of freedom


@pytest.mark.parametrize(
    "x, y, named", [([1.0, 1.0], [1.0, 0.0], "x"), ([0.0, 0.0], [1.0, 0.0], "x"), ([1.0, 0.0], [0.5, 0.5], "y")]
)
def test_data_must_be_transitions(x: list[float], y: list[float], named: str) -> None:
    exact = ConjugateDirichlet(DirichletModel(torch.ones(2, 2)))
    with pytest.raises(ValueError, match=rf"y one-hot in the outcome, got other values of {named}; encode both"):
        exact.update(exact.init(1), Context.of(torch.tensor([[x]]), torch.tensor([[y]])))


def test_samplers_run_on_the_program() -> None:
    """A few steps of NUTS, whose draws lie in the support."""
    family, generator = TabularTransitions(states=3, actions=1), torch.Generator().manual_seed(0)
    data = family.context(family.sample(2, "train", generator), 6, generator)
    nuts = NUTS(family.model, x_dim=3, y_dim=3, draws=8, warmup=4)
    with pytest.raises(ReferenceRejected) as rejected:
        nuts.update(nuts.init(2), data)
    draws = rejected.value.chains.draws
    assert draws.shape[:3] == (4, 8, 2) and family.model.prior(2).support.check(draws).all()


def test_what_is_no_prior_is_refused() -> None:
    for bad in (torch.zeros(2, 2), torch.ones(2, 1)):
        with pytest.raises(ValueError, match="expected a positive concentration of two or more outcomes"):
            DirichletModel(bad)
    with pytest.raises(ValueError, match="expected states >= 2 and actions >= 1, got 1 and 2"):
        TabularTransitions(states=1)
