"""Conjugate posteriors against Gaussian conditioning, quadrature, and each other's laws."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from bayesmeta.inference.conjugate import ConjugateBeta, ConjugateGaussian
from bayesmeta.models.beta_bernoulli import BetaBernoulliModel
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.types import Context
from tests.laws.cases import EXACT, Case

BATCH = 3


def linear_model(dim: int) -> LinearGaussianModel:
    """A prior with correlations and a mean."""
    generator = torch.Generator().manual_seed(dim)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return LinearGaussianModel(
        torch.randn(dim, generator=generator, dtype=torch.float64), root @ root.mT + 0.5 * torch.eye(dim), noise=0.7
    ).double()


def linear_data(dim: int, shots: int) -> Context:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, shots, dim, generator=generator, dtype=torch.float64)
    return Context.of(x, torch.randn(BATCH, shots, 1, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("shots", [1, 3, 40])
def test_linear_gaussian_is_the_conditional_of_the_joint_normal(dim: int, shots: int) -> None:
    """Fewer data than dimensions included; the formula used here inverts an ``N x N`` matrix instead."""
    model, data = linear_model(dim), linear_data(dim, shots)
    posterior = (exact := ConjugateGaussian(model)).update(exact.init(BATCH), data).posterior
    x, y = data.x, data.y.squeeze(-1)
    gain = (
        model.covariance @ x.mT @ (x @ model.covariance @ x.mT + 0.49 * torch.eye(shots, dtype=torch.float64)).inverse()
    )
    mean = model.mean + (gain @ (y - x @ model.mean).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-10, atol=1e-10)
    covariance = model.covariance - gain @ x @ model.covariance
    torch.testing.assert_close(posterior.covariance_matrix, covariance, rtol=1e-10, atol=1e-10)


def test_normal_normal_by_hand() -> None:
    """tau2 = 0.7, s2 = 0.3, one datum y = 2: variance 0.21, mean 1.4; twenty data: variance 0.0147."""
    model = LinearGaussianModel(torch.zeros(1), torch.tensor([[0.7]]), noise=math.sqrt(0.3)).double()
    exact = ConjugateGaussian(model)
    ones = torch.ones(1, 20, 1, dtype=torch.float64)
    data = Context.of(ones, 2 * ones)
    one = exact.update(exact.init(1), data.rows(0, 1)).posterior
    assert math.isclose(float(one.variance), 0.21, rel_tol=1e-6) and math.isclose(float(one.mean), 1.4, rel_tol=1e-6)
    twenty = exact.update(exact.init(1), data).posterior
    assert math.isclose(float(twenty.variance), 1 / (1 / 0.7 + 20 / 0.3), rel_tol=1e-6)


def test_beta_bernoulli_moments_by_quadrature() -> None:
    model = BetaBernoulliModel(torch.tensor([2.0, 0.8]), torch.tensor([3.0, 1.5])).double()
    arms = torch.tensor([[0, 0, 1, 0]])
    data = Context.of(one_hot(arms, 2).double(), torch.tensor([[[1.0], [0.0], [1.0], [1.0]]]).double())
    exact = ConjugateBeta(model)
    posterior = exact.update(exact.init(1), data).posterior
    p = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for arm, (wins, losses) in enumerate([(2, 1), (1, 0)]):
        alpha, beta = float(model.alpha[arm]), float(model.beta[arm])
        weight = p ** (alpha - 1 + wins) * (1 - p) ** (beta - 1 + losses)
        mean = float((weight * p).sum() / weight.sum())
        variance = float((weight * (p - mean) ** 2).sum() / weight.sum())
        assert math.isclose(float(posterior.mean[0, arm]), mean, rel_tol=1e-4)
        assert math.isclose(float(posterior.variance[0, arm]), variance, rel_tol=1e-4)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_scan_is_an_update_on_every_prefix(case: Case) -> None:
    """Row ``n B + b`` of the scan is task ``b`` after ``n`` rows, padding and an earlier belief included."""
    exact, shots = case.double(), 4
    generator = torch.Generator().manual_seed(0)
    data = case.family.context(case.family.sample(BATCH, "train", generator), shots + 2, generator)
    mask = torch.rand(BATCH, shots + 2, generator=generator) < 0.7
    data = Context(data.x.double(), data.y.double(), mask)
    start, rest = exact.update(exact.init(BATCH), data.rows(0, 2)), data.rows(2, shots + 2)
    scanned = exact.scan(start, rest).posterior
    assert scanned.batch_shape == ((shots + 1) * BATCH,)
    for n in range(shots + 1):
        after = exact.update(start, rest.rows(0, n)).posterior
        rows = slice(n * BATCH, (n + 1) * BATCH)
        torch.testing.assert_close(scanned.mean[rows], after.mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(scanned.variance[rows], after.variance, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_data_that_cannot_be_are_refused(case: Case) -> None:
    exact, spec = case.family.exact, case.family.spec
    data = case.family.context(case.family.sample(BATCH, "train", torch.Generator()), 4, torch.Generator())
    prior = exact.init(BATCH)
    wide = Context.of(torch.cat([data.x, data.x], -1), data.y)
    expected = rf"expected data x \[3, N, {spec.x_dim}\] and y \[3, N, {spec.y_dim}\], got \(3, 4, "
    with pytest.raises(ValueError, match=expected):
        exact.update(prior, wide)
    with pytest.raises(ValueError, match=r"expected data x \[3, N, .*pass the data of the tasks"):
        exact.update(prior, Context(data.x[:2], data.y[:2], data.mask[:2]))
    y = data.y.clone()
    y[1, 2] = torch.nan
    bad = Context(data.x, y, data.mask.clone())
    with pytest.raises(
        ValueError, match="expected finite data, got a NaN or an infinity in 1 rows, the first being row 2 of"
    ):
        exact.update(prior, bad)
    with pytest.raises(ValueError, match="mask=False"):
        exact.scan(prior, bad)
    bad.mask[1, 2] = False
    assert exact.update(prior, bad).posterior.mean.isfinite().all()


@pytest.mark.parametrize("x, y", [([1.0, 1.0], 1.0), ([0.5, 0.5], 1.0), ([0.0, 0.0], 0.0), ([1.0, 0.0], 0.5)])
def test_bandit_data_must_be_pulls(x: list[float], y: float) -> None:
    exact = ConjugateBeta(BetaBernoulliModel(torch.ones(2), torch.ones(2)))
    with pytest.raises(ValueError, match=r"expected x one-hot in the pulled arm and y in \{0, 1\}"):
        exact.update(exact.init(1), Context.of(torch.tensor([[x]]), torch.tensor([[[y]]])))
