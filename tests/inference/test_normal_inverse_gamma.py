"""Regression with unknown noise against quadrature, the textbook's formulas, and regression with known noise."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import biject_to, kl_divergence

from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.mcmc import NUTS, ReferenceRejected
from bayesmeta.inference.normal_inverse_gamma import ConjugateNormalInverseGamma
from bayesmeta.models.distributions import OneRow
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.normal_inverse_gamma import NormalInverseGamma, NormalInverseGammaModel
from bayesmeta.tasks.unknown_noise import UnknownNoise
from bayesmeta.types import Context

BATCH = 3


def regression(dim: int, concentration: float = 3.0, rate: float = 0.8) -> NormalInverseGammaModel:
    """A prior with correlations and a mean."""
    generator = torch.Generator().manual_seed(dim)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    return NormalInverseGammaModel(mean, root @ root.mT + 0.5 * torch.eye(dim), concentration, rate).double()


def some_data(dim: int, shots: int) -> Context:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, shots, dim, generator=generator, dtype=torch.float64)
    return Context.of(x, torch.randn(BATCH, shots, 1, generator=generator, dtype=torch.float64))


def one_law(concentration: float = 3.0, rate: float = 0.8) -> NormalInverseGamma:
    """Batch [1], event [2]: one weight."""
    numbers = (torch.tensor([value], dtype=torch.float64) for value in (concentration, rate))
    return NormalInverseGamma(torch.tensor([[0.4]]).double(), torch.tensor([[[1.3]]]).double(), *numbers)


def quadrature(law: NormalInverseGamma, cells: int = 1000) -> tuple[Tensor, Tensor]:
    """Points ``(w, v) [G, 2]`` and the areas around them: a rectangle in the unconstrained space of the support."""
    axes = [torch.linspace(-25.0, 25.0, cells, dtype=torch.float64), torch.linspace(-8.0, 9.0, cells).double()]
    free = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
    change = biject_to(law.support)
    point = change(free)
    area = change.log_abs_det_jacobian(free, point).exp() * (50.0 / (cells - 1)) * (17.0 / (cells - 1))
    return point, area


def test_density_integrates_to_one_and_has_the_stated_moments() -> None:
    """In the unconstrained space on which samplers move, so that support and Jacobian are tried too."""
    law = one_law(concentration=6.0)
    z, area = quadrature(law)
    weight = law.log_prob(z.unsqueeze(1)).exp().squeeze(1) * area
    assert math.isclose(float(weight.sum()), 1.0, rel_tol=1e-6)
    mean = weight @ z
    torch.testing.assert_close(mean, law.mean[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight @ (z - mean).square(), law.variance[0], rtol=1e-3, atol=0)
    entropy = -(weight * law.log_prob(z.unsqueeze(1)).squeeze(1)).sum()
    torch.testing.assert_close(entropy, law.entropy()[0], rtol=1e-5, atol=1e-5)
    other = one_law(concentration=2.0, rate=1.5)
    kl = weight @ (law.log_prob(z.unsqueeze(1)) - other.log_prob(z.unsqueeze(1))).squeeze(1)
    torch.testing.assert_close(kl, kl_divergence(law, other)[0], rtol=1e-5, atol=1e-5)


def test_density_is_the_product_of_its_conditionals() -> None:
    """In several dimensions, with correlations, against scipy."""
    prior = regression(3).prior(1)
    torch.manual_seed(0)
    z = prior.sample((5,))
    covariance = (prior.scale_tril @ prior.scale_tril.mT)[0].numpy()
    for value, found in zip(z[:, 0].numpy(), prior.log_prob(z)[:, 0].tolist(), strict=True):
        normal = stats.multivariate_normal(prior.loc[0].numpy(), value[3] * covariance).logpdf(value[:3])
        assert math.isclose(found, normal + stats.invgamma(3.0, scale=0.8).logpdf(value[3]), rel_tol=1e-9)
    outside = torch.cat([z[..., :3], -z[..., 3:]], -1)
    assert (prior.log_prob(outside) == -torch.inf).all()


def test_divergence_in_several_dimensions_is_the_mean_log_ratio() -> None:
    """Within 4 standard errors over draws, which have the moments too."""
    p = regression(3, concentration=8.0).prior(1)
    loc, scale_tril = torch.full_like(p.loc, 0.3), 1.5 * p.scale_tril.tril(-1) + torch.eye(3, dtype=torch.float64)
    q = NormalInverseGamma(loc, scale_tril, p.concentration - 2.0, p.rate * 1.3)
    torch.manual_seed(0)
    z = p.rsample((20_000,))
    ratio = p.log_prob(z) - q.log_prob(z)
    error = ratio.std() / math.sqrt(len(z))
    assert abs(float(ratio.mean() - kl_divergence(p, q))) < 4 * float(error)
    assert ((z.mean(0) - p.mean).abs() < 4 * (p.variance / len(z)).sqrt()).all()
    torch.testing.assert_close(z.var(0), p.variance, rtol=0.1, atol=0)


def test_draws_are_differentiable_in_every_parameter() -> None:
    """The mean of the draws moves with each parameter as the closed-form mean does, within 4 standard errors."""
    count = 20_000
    loc, scale_tril, a, b = (
        value.double().expand(count, *value.shape).clone().requires_grad_()
        for value in (torch.zeros(1), torch.ones(1, 1), torch.tensor(8.0), torch.tensor(2.0))
    )
    law = NormalInverseGamma(loc, scale_tril, a, b)
    torch.manual_seed(0)
    along = torch.autograd.grad(law.rsample().sum(), (loc, scale_tril, a, b))
    expected = torch.autograd.grad(law.mean.sum(), (loc, a, b))
    assert torch.equal(along[0], expected[0])
    for found, mean in zip(along[1:], (torch.zeros(count), *expected[1:]), strict=True):
        assert abs(float(found.mean() - mean[0])) < 4 * float(found.std() / math.sqrt(count))


@pytest.mark.parametrize("concentration, finite", [(0.4, 0), (0.9, 1), (1.5, 3), (2.5, 4)])
def test_moments_that_do_not_exist_say_so(concentration: float, finite: int) -> None:
    """Mean of the weight from 1/2 on, of the noise and variance of the weight from 1, variance of the noise from 2."""
    law = one_law(concentration)
    moments = torch.cat([law.mean[0], law.variance[0]])
    assert int(moments.isfinite().sum()) == finite
    assert moments[1:].isfinite().logical_or(moments[1:] == torch.inf).all()
    assert bool(moments[0].isnan()) == (concentration <= 0.5)


def test_batches_and_the_row_axis() -> None:
    """Expansion, draws of any shape, and the support beside a datum axis, where samplers need it."""
    law = regression(2).prior(4)
    assert law.expand(torch.Size((5, 4))).sample((6,)).shape == (6, 5, 4, 3)
    assert law.log_prob(law.sample((6,))).shape == (6, 4)
    row = OneRow(law)
    z = row.sample((2,))
    assert z.shape == (2, 4, 1, 3) and row.support.check(z).all() and not row.support.check(-z.abs()).any()
    change = biject_to(row.support)
    torch.testing.assert_close(change(change.inv(z)), z)
    assert change.log_abs_det_jacobian(change.inv(z), z).shape == (2, 4, 1)


def test_posterior_is_prior_times_likelihood_by_quadrature() -> None:
    """One weight: mean, variance and log evidence of a two-dimensional integral."""
    model, data = regression(1), some_data(1, 6)
    belief = (exact := ConjugateNormalInverseGamma(model)).update(exact.init(BATCH), data)
    z, area = quadrature(model.prior(1), cells=1000)
    for b in range(BATCH):
        single = Context.of(data.x[b : b + 1], data.y[b : b + 1])
        weight = torch.cat([model.log_joint(part.unsqueeze(1), single) for part in z.split(100_000)])[:, 0].exp() * area
        evidence = weight.sum()
        mean = weight @ z / evidence
        torch.testing.assert_close(belief.posterior.mean[b], mean, rtol=1e-4, atol=1e-5)
        variance = weight @ (z - mean).square() / evidence
        torch.testing.assert_close(belief.posterior.variance[b], variance, rtol=1e-3, atol=1e-6)
        ratio = model.log_joint(mean.unsqueeze(0), single) - belief.posterior.log_prob(mean)[b]
        assert math.isclose(float(ratio), float(evidence.log()), rel_tol=1e-4)


@pytest.mark.parametrize("dim, shots", [(1, 1), (2, 9), (5, 3), (5, 40)])
def test_posterior_is_the_textbooks(dim: int, shots: int) -> None:
    """``b_N = b_0 + (y^T y + mu_0^T L_0 mu_0 - mu_N^T L_N mu_N) / 2``; fewer data than weights included."""
    model, data = regression(dim), some_data(dim, shots)
    belief = (exact := ConjugateNormalInverseGamma(model)).update(exact.init(BATCH), data)
    before = model.covariance.inverse()
    after = before + data.x.mT @ data.x
    mean = torch.linalg.solve(after, (before @ model.mean).unsqueeze(-1) + data.x.mT @ data.y)
    squares = data.y.square().sum((1, 2)) + model.mean @ before @ model.mean - (mean.mT @ after @ mean).squeeze((1, 2))
    torch.testing.assert_close(belief.weights.mean, mean.squeeze(-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(belief.weights.covariance_matrix, after.inverse(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(belief.concentration, torch.full((BATCH,), 3.0 + shots / 2).double())
    torch.testing.assert_close(belief.rate, 0.8 + squares / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.scan(exact.init(BATCH), data).rate[-BATCH:], belief.rate, rtol=1e-9, atol=1e-9)


def test_noise_is_found_where_targets_are_ten_thousand_times_as_large() -> None:
    """In float32 the textbook's rate is a difference of numbers near 10^10, of which nothing is left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 200, 2, generator=generator)
    large = torch.tensor([1e4, -1e4])
    y = x @ large.unsqueeze(-1) + torch.randn(1, 200, 1, generator=generator)
    model = NormalInverseGammaModel(large, torch.eye(2), 3.0, 1.0)
    exact = ConjugateNormalInverseGamma(model)
    single = exact.update(exact.init(1), Context.of(x, y))
    scanned = exact.scan(exact.init(1), Context.of(x, y))
    exact = exact.double()
    double = exact.update(exact.init(1), Context.of(x.double(), y.double()))
    torch.testing.assert_close(single.rate.double(), double.rate, rtol=1e-2, atol=0)
    torch.testing.assert_close(scanned.rate[-1:].double(), double.rate, rtol=1e-2, atol=0)
    mean, precision = single.weights.mean, single.precision
    squares = y.square().sum() + large @ large - (mean.unsqueeze(1) @ precision @ mean.unsqueeze(-1)).squeeze()
    textbook = 1.0 + 0.5 * squares
    assert abs(float(textbook / double.rate) - 1.0) > 1.0


@pytest.mark.parametrize("shots", [0, 4])
def test_predictive_is_the_normal_averaged_over_the_noise(shots: int) -> None:
    """Student t by quadrature over the noise variance: density at some targets, and the moments."""
    model, data = regression(2), some_data(2, 4).rows(0, shots)
    belief = (exact := ConjugateNormalInverseGamma(model)).update(exact.init(BATCH), data)
    x = torch.randn(BATCH, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = exact.predictive(belief, x)
    assert law.batch_shape == (BATCH, 5) and law.event_shape == (1,)
    log_noise = torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64)
    weights = belief.weights
    for b, n, y in [(0, 0, -1.0), (1, 3, 0.5), (2, 4, 7.0)]:
        noise = stats.invgamma(float(belief.concentration[b]), scale=float(belief.rate[b]))
        density = torch.tensor(noise.pdf(log_noise.exp().numpy())) * log_noise.exp() * (24.0 / 20_000)
        spread = 1.0 + x[b, n] @ weights.covariance_matrix[b] @ x[b, n]
        normal = torch.distributions.Normal(x[b, n] @ weights.mean[b], (log_noise.exp() * spread).sqrt())
        target = torch.tensor(y, dtype=torch.float64)
        found = law.log_prob(target.expand(BATCH, 5, 1))[b, n]
        assert math.isclose(float(found), float((density @ normal.log_prob(target).exp()).log()), rel_tol=1e-6)
        torch.testing.assert_close(law.mean[b, n, 0], normal.mean[0])
        torch.testing.assert_close(law.variance[b, n, 0], density @ normal.variance, rtol=1e-6, atol=0)


def test_noise_that_is_all_but_known_gives_linear_regression() -> None:
    """A shape of 10^7 with mean 0.49, which eight data cannot move by more than some 10^-6 of itself."""
    certain = regression(3, concentration=1e7, rate=0.49e7)
    known = LinearGaussianModel(certain.mean, 0.49 * certain.covariance, noise=0.7).double()
    data, x = some_data(3, 8), some_data(3, 4).x
    inferences = ConjugateNormalInverseGamma(certain), ConjugateGaussian(known)
    unknown, exact = (inference.update(inference.init(BATCH), data) for inference in inferences)
    torch.testing.assert_close(unknown.posterior.mean[:, :3], exact.posterior.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unknown.posterior.variance[:, :3], exact.posterior.variance, rtol=1e-5, atol=1e-5)
    laws = (i.predictive(belief, x) for i, belief in zip(inferences, (unknown, exact), strict=True))
    y = torch.full((BATCH, 4, 1), 0.3, dtype=torch.float64)
    one, other = (law.log_prob(y) for law in laws)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_likelihood_by_hand() -> None:
    model = NormalInverseGammaModel(torch.zeros(2), torch.eye(2), 3.0, 1.0)
    data = Context.of(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5]]]))
    by_hand = -0.5 * (0.5 - 1.0) ** 2 / 0.25 - 0.5 * math.log(2 * math.pi * 0.25)
    assert math.isclose(float(model.log_likelihood(torch.tensor([[3.0, 1.0, 0.25]]), data)), by_hand, rel_tol=1e-6)
    assert math.isclose(float(model.prior(1).mean[0, 2]), 0.5)


def test_samplers_run_on_the_program() -> None:
    """A few steps of NUTS, whose draws lie in the support."""
    family, generator = UnknownNoise(dim=2), torch.Generator().manual_seed(0)
    data = family.context(family.sample(2, "train", generator), 6, generator)
    nuts = NUTS(family.model, x_dim=2, y_dim=1, draws=8, warmup=4)
    with pytest.raises(ReferenceRejected) as rejected:
        nuts.update(nuts.init(2), data)
    draws = rejected.value.chains.draws
    assert draws.shape[:3] == (4, 8, 2) and family.model.prior(2).support.check(draws).all()


def test_what_is_no_prior_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected concentration, rate > 0, got 0\.0 and 1\.0"):
        NormalInverseGammaModel(torch.zeros(2), torch.eye(2), 0.0, 1.0)
    with pytest.raises(ValueError, match="expected a symmetric positive definite covariance"):
        NormalInverseGammaModel(torch.zeros(2), -torch.eye(2), 1.0, 1.0)
    with pytest.raises(ValueError, match="expected concentration > 2, so that the prior has a variance"):
        UnknownNoise(concentration=2.0)
