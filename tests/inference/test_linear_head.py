"""The exact posterior of a last layer: against conjugate regression, Gaussian conditioning, Pyro and `check`."""

import dataclasses

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from bayesmeta.diagnostics import check
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.guides import posterior_guide
from bayesmeta.inference.linear_head import LinearHead, MatrixNormal
from bayesmeta.models.architectures import mlp
from bayesmeta.models.feature_head import FeatureHead
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.model_family import ModelFamily
from bayesmeta.types import Context

BATCH = 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(size: int, seed: int = 0) -> Tensor:
    root = drawn(size, size, seed=seed)
    return root @ root.mT + 0.5 * torch.eye(size, dtype=torch.float64)


def head(features: int, targets: int, *, x_dim: int = 2) -> LinearHead:
    """Random features, prior and noise."""
    with torch_seeded(0):
        network = nn.Sequential(mlp(x_dim, features, (8,), activation="tanh"), nn.Tanh()).double()
    noise = 0.3 + 0.4 * torch.arange(targets, dtype=torch.float64)
    model = FeatureHead(network, drawn(features, targets), positive(features), noise, learn_noise=True)
    return LinearHead(model, x_dim=x_dim)


def data(size: int, x_dim: int, y_dim: int, seed: int = 5) -> Context:
    return Context.of(drawn(BATCH, size, x_dim, seed=seed), drawn(BATCH, size, y_dim, seed=seed + 1))


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("shots", [0, 1, 3, 30])
def test_with_the_input_as_features_it_is_conjugate_regression(dim: int, shots: int) -> None:
    """Posterior and predictive of two implementations, in float64, to 1e-10."""
    noise, mean, covariance = 0.6, drawn(dim), positive(dim)
    covariance = (covariance + covariance.mT) / 2
    exact = ConjugateGaussian(LinearGaussianModel(mean, covariance, noise))
    precision = noise**2 * covariance.inverse()
    model = FeatureHead(nn.Identity(), mean.unsqueeze(-1), (precision + precision.mT) / 2, noise)
    ours, seen = LinearHead(model, x_dim=dim), data(shots, dim, 1)
    theirs = exact.update(exact.init(BATCH), seen)
    belief = ours.update(ours.init(BATCH), seen)
    torch.testing.assert_close(belief.posterior.mean, theirs.posterior.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        belief.posterior.covariance_matrix, theirs.posterior.covariance_matrix, rtol=1e-10, atol=1e-10
    )
    x = drawn(BATCH, 7, dim, seed=9)
    one, other = ours.predictive(belief, x), exact.predictive(theirs, x)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.variance, other.variance, rtol=1e-10, atol=1e-10)
    z = model.prior(BATCH).sample()
    torch.testing.assert_close(model.log_joint(z, seen), exact.model.log_joint(z, seen))


@pytest.mark.parametrize("shots", [1, 3, 30])
def test_posterior_is_the_conditional_of_the_joint_normal(shots: int) -> None:
    """Two targets with noises of their own, through features: ``z`` and ``y`` are one Gaussian vector."""
    ours, seen = head(4, 2), data(shots, 2, 2)
    model, noise = ours.model, ours.model.noise
    prior, posterior = model.prior(BATCH), ours.update(ours.init(BATCH), seen).posterior
    phi = model.features(seen.x)
    design = torch.stack([torch.block_diag(p, p) for p in phi])  # of all first targets, then all second ones
    y = seen.y.mT.flatten(1)
    covariance = design @ prior.covariance_matrix @ design.mT + noise.square().repeat_interleave(shots).diag()
    gain = prior.covariance_matrix @ design.mT @ covariance.inverse()
    mean = prior.mean + (gain @ (y - (design @ prior.mean.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        posterior.covariance_matrix,
        prior.covariance_matrix - gain @ design @ prior.covariance_matrix,
        rtol=1e-9,
        atol=1e-9,
    )


def test_prior_is_the_matrix_normal_that_is_stated() -> None:
    """``cov(K) = diag(noise^2) kron precision^{-1}``, one target's weights after the other, and back from the root."""
    ours = head(4, 2)
    prior, noise = ours.model.prior(1), torch.tensor([0.3, 0.7], dtype=torch.float64)
    torch.testing.assert_close(ours.model.precision, positive(4))
    torch.testing.assert_close(
        prior.covariance_matrix[0], torch.kron(noise.square().diag(), positive(4).inverse().contiguous())
    )
    torch.testing.assert_close(prior.mean[0], drawn(4, 2).mT.reshape(-1))
    torch.testing.assert_close(kl_divergence(ours.init(2).posterior, ours.model.prior(2)), torch.zeros(2).double())


def test_predictives_multiply_to_the_evidence_and_scan_is_every_prefix() -> None:
    """``log p(y) = sum_n log p(y_n | y_<n)``, with the evidence as that of the joint normal of each target."""
    ours, shots = head(4, 2), 6
    seen = data(shots, 2, 2)
    scanned, total = ours.scan(ours.init(BATCH), seen), torch.zeros(BATCH, dtype=torch.float64)
    for n in range(shots + 1):
        here = MatrixNormal(
            scanned.information[n * BATCH : (n + 1) * BATCH],
            scanned.precision[n * BATCH : (n + 1) * BATCH],
            scanned.noise,
        )
        after = ours.update(ours.init(BATCH), seen.rows(0, n))
        torch.testing.assert_close(here.information, after.information)
        torch.testing.assert_close(here.precision, after.precision)
        if n < shots:
            total = total + ours.predictive(here, seen.rows(n, n + 1).x).log_prob(seen.y[:, n : n + 1]).squeeze(1)
    phi = ours.model.features(seen.x)
    kernel = torch.eye(shots, dtype=torch.float64) + phi @ ours.model.precision.inverse() @ phi.mT
    evidence = [
        MultivariateNormal(phi @ ours.model.mean[:, y], ours.model.noise[y] ** 2 * kernel).log_prob(seen.y[..., y])
        for y in range(2)
    ]
    torch.testing.assert_close(total, evidence[0] + evidence[1])


def test_predictive_is_the_likelihood_averaged_over_the_posterior() -> None:
    """Means within 4.5 standard errors, variances within 10 %."""
    ours, seen = head(3, 2), data(4, 2, 2)
    belief, x = ours.update(ours.init(BATCH), seen), drawn(BATCH, 2, 2, seed=9)
    with torch_seeded(0), torch.no_grad():
        z = belief.posterior.sample((20_000,)).unsqueeze(-2)
        y = ours.model.likelihood(z, Context.of(x, x)).sample()
        law = ours.predictive(belief, x)
    assert ((y.mean(0) - law.mean).abs() < 4.5 * law.stddev / 20_000**0.5).all()
    torch.testing.assert_close(y.var(0), law.variance, rtol=0.1, atol=0)


def test_elbo_at_the_posterior_has_no_variance() -> None:
    """Model, Pyro program and posterior are one: ``log p(z, y) - log q(z)`` is the same for every draw."""
    ours, seen = head(4, 2), data(5, 2, 2)
    posterior = ours.update(ours.init(BATCH), seen).posterior
    with torch_seeded(0), torch.no_grad():
        elbos = [pyro.infer.Trace_ELBO().loss(ours.model, lambda _: posterior_guide(posterior), seen) for _ in range(5)]
    assert max(elbos) - min(elbos) < 1e-8


def test_gradients_of_the_loss_by_finite_differences() -> None:
    """Through the posterior into features, prior and noise."""
    ours, seen = head(3, 2), data(4, 2, 2)
    query, parameters = data(3, 2, 2, seed=11), dict(ours.named_parameters())

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ours = ours

        def forward(self) -> Tensor:
            return ours.predictive(ours.update(ours.init(BATCH), seen), query.x).log_prob(query.y).sum()

    def loss(*values: Tensor) -> Tensor:
        named = {f"ours.{name}": value for name, value in zip(parameters, values, strict=True)}
        return torch.func.functional_call(Loss(), named, ())

    assert set(parameters) >= {"model.mean", "model.log_root", "model.log_noise"}
    assert torch.autograd.gradcheck(loss, [p.detach().clone().requires_grad_() for p in parameters.values()])


class Narrowed:
    """An exact procedure whose posterior has 10 % smaller standard deviations."""

    def __init__(self, exact: LinearHead) -> None:
        self.exact = exact

    def init(self, batch: int) -> MatrixNormal:
        return self.exact.init(batch)

    def update(self, belief: MatrixNormal, data: Context) -> MatrixNormal:
        after = self.exact.update(belief, data)
        return dataclasses.replace(after, noise=0.9 * after.noise)


def test_on_data_of_its_own_model_check_passes_and_ten_percent_fail() -> None:
    with torch_seeded(0):
        features = nn.Sequential(mlp(1, 3, (8,), activation="tanh"), nn.Tanh())
    model = FeatureHead(features, torch.ones(3, 2), positive(3).float(), 0.4)
    exact = LinearHead(model, x_dim=1)

    def inputs(batch: int, shots: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, shots, 1, generator=generator)

    family = ModelFamily(model, inputs, exact=exact)
    options = {"tasks": 300, "draws": 99, "sizes": (6,)}
    found = check(exact, family, **options, queries=4)
    assert found.passed, str(found)
    assert not check(Narrowed(exact), family, reference=None, **options, queries=0).passed


def test_what_cannot_be_is_refused() -> None:
    eye = torch.eye(2)
    with pytest.raises(ValueError, match=r"noise is a standard deviation, expected > 0, got \[0.0\]"):
        FeatureHead(nn.Identity(), torch.zeros(2, 1), eye, 0.0)
    with pytest.raises(ValueError, match="symmetric positive definite precision"):
        FeatureHead(nn.Identity(), torch.zeros(2, 1), -eye, 1.0)
    ours = head(3, 2)
    with pytest.raises(ValueError, match=r"LinearHead: expected data x \[3, N, 2\] and y \[3, N, 2\], got"):
        ours.update(ours.init(BATCH), data(2, 3, 2))
    bad = data(2, 2, 2)
    bad.y[0, 1] = torch.nan
    with pytest.raises(ValueError, match="expected finite data"):
        ours.scan(ours.init(BATCH), bad)
