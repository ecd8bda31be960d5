"""The product of Gaussian factors against the conjugate posterior: hand-set factors to 1e-10, trained ones in nats."""

import math

import pytest
import torch
from torch import Tensor

from bayesmeta.inference.beliefs import DiagonalGaussian, FullGaussian
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.types import Context
from benchmarks.product_vs_exact import (
    NOISE_VARIANCE,
    SIZES,
    Family,
    encoder_of,
    kl_by_size,
    plane_family,
    published_kl,
    scalar_family,
    train,
    tuned_for,
)

PRIOR_VARIANCE, DATUM_VARIANCE = 0.7, 0.3


def set_linear(encoder: ProductOfGaussians, weight: Tensor, bias: Tensor) -> ProductOfGaussians:
    """Give an encoder of one linear layer its weights."""
    with torch.no_grad():
        encoder.net.weights[0].copy_(weight)
        encoder.net.biases[0].copy_(bias)
    return encoder


def scalar_encoder(shrinkage: float, variance: float, *, prior_factor: bool) -> ProductOfGaussians:
    """Every datum gives the factor ``N(shrinkage * y, variance)``; the rows it reads are ``(x, y)``."""
    encoder = ProductOfGaussians(1, 1, 1, widths=(), prior_factor=prior_factor).double()
    raw = math.log(math.expm1(variance))  # softplus(raw) = variance
    weight, bias = [[0.0, shrinkage], [0.0, 0.0]], [0.0, raw]
    return set_linear(encoder, torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64))


def scalar_data(size: int) -> tuple[Context, ConjugateGaussian]:
    """Data of the normal-normal model, in units in which the prior variance is 1, and its exact procedure."""
    one = torch.ones(1, dtype=torch.float64)
    model = LinearGaussianModel(0 * one, one.reshape(1, 1), noise=math.sqrt(DATUM_VARIANCE / PRIOR_VARIANCE))
    y = torch.randn(5, size, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Context.of(torch.ones_like(y), y), ConjugateGaussian(model)


@pytest.mark.parametrize("size", [0, *SIZES])
def test_true_factors_with_the_prior_are_exact_at_every_size(size: int) -> None:
    data, exact = scalar_data(size)
    encoder = scalar_encoder(1.0, DATUM_VARIANCE / PRIOR_VARIANCE, prior_factor=True)
    q, p = (f.update(f.init(5), data).posterior for f in (encoder, exact))
    torch.testing.assert_close(q.mean, p.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.variance, p.variance, rtol=1e-10, atol=1e-10)
    variance = 1 / (1 / PRIOR_VARIANCE + size / DATUM_VARIANCE)
    torch.testing.assert_close(q.variance * PRIOR_VARIANCE, torch.full_like(p.mean, variance), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size, published, exact", [(1, 0.30, 0.21), (5, 0.06, 0.055263), (20, 0.0150, 0.014685)])
def test_true_factors_without_the_prior_are_too_wide(size: int, published: float, exact: float) -> None:
    """The published product: variance s2/n, however the factors know the noise; 0.30 for 0.21 after one datum."""
    data, conjugate = scalar_data(size)
    encoder = scalar_encoder(1.0, DATUM_VARIANCE / PRIOR_VARIANCE, prior_factor=False)
    q, p = (f.update(f.init(5), data).posterior.variance * PRIOR_VARIANCE for f in (encoder, conjugate))
    torch.testing.assert_close(q, torch.full_like(q, published), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(p, torch.full_like(p, exact), rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_a_published_factor_tuned_for_five_data_is_wrong_elsewhere(size: int) -> None:
    data, conjugate = scalar_data(size)
    encoder = scalar_encoder(*tuned_for(5, NOISE_VARIANCE), prior_factor=False)
    q, p = (f.update(f.init(5), data).posterior for f in (encoder, conjugate))
    if size == 5:
        torch.testing.assert_close(q.mean, p.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(q.variance, p.variance, rtol=1e-10, atol=1e-10)
    else:
        ratio = 5 * (1 + NOISE_VARIANCE / size) / (5 + NOISE_VARIANCE)
        torch.testing.assert_close(q.variance / p.variance, torch.full_like(p.mean, ratio), rtol=1e-10, atol=1e-10)
        assert abs(ratio - 1) > 0.03


def test_closed_form_of_the_published_error_is_what_sampling_gives() -> None:
    encoder = scalar_encoder(*tuned_for(5, NOISE_VARIANCE), prior_factor=False).float()
    sampled = kl_by_size(scalar_family(), encoder, tasks=20_000)
    torch.testing.assert_close(
        torch.tensor(sampled),
        torch.tensor(published_kl(*tuned_for(5, NOISE_VARIANCE), NOISE_VARIANCE)),
        rtol=0.05,
        atol=1e-4,
    )


@pytest.mark.parametrize("dim", [2, 5])
def test_full_factors_hold_the_exact_linear_gaussian_posterior(dim: int) -> None:
    """A datum ``(x, y)`` observes ``x^T z = y`` in noise: ``(A, b) = (x, y) / noise``, linear in the datum."""
    family = LinearGaussian(dim=dim, noise=0.4)
    encoder = ProductOfGaussians(dim, 1, dim, widths=(), covariance="full").double()
    set_linear(encoder, torch.eye(dim + 1) / 0.4, torch.zeros(dim + 1))
    exact = family.exact.double()
    generator = torch.Generator().manual_seed(0)
    for size in (0, 1, 3, 50):
        x = torch.randn(4, size, dim, generator=generator, dtype=torch.float64)
        data = Context.of(x, torch.randn(4, size, 1, generator=generator, dtype=torch.float64))
        q, p = (f.update(f.init(4), data).posterior for f in (encoder, exact))
        torch.testing.assert_close(q.mean, p.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(q.covariance_matrix, p.covariance_matrix, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "family, options, tasks, steps, limit",
    [(scalar_family(), {}, 32, 300, 0.01), (plane_family(), {"covariance": "full", "rank": 2}, 64, 400, 0.05)],
    ids=["normal_normal", "linear_gaussian"],
)
def test_trained_with_the_prior_factor_it_reaches_the_exact_posterior(
    family: Family, options: dict[str, object], tasks: int, steps: int, limit: float
) -> None:
    """KL(exact || q) at every context size, after seconds of training."""
    encoder = encoder_of(family, seed=0, **options)
    before = kl_by_size(family, encoder)
    after = kl_by_size(family, train(family, encoder, steps=steps, tasks=tasks))
    assert min(before) > 0.1
    assert max(after) < limit, dict(zip(SIZES, after, strict=True))


def test_trained_without_it_the_product_keeps_its_error() -> None:
    """The published form, trained the same way: no factor serves one datum and fifty."""
    family = scalar_family()
    encoder = train(family, encoder_of(family, seed=0, prior_factor=False), steps=300, tasks=32)
    found = dict(zip(SIZES, kl_by_size(family, encoder), strict=True))
    assert found[1] > 0.05 and found[50] > 0.02, found


def test_belief_is_a_sum_of_natural_parameters() -> None:
    encoder = ProductOfGaussians(2, 1, 3, widths=(8,))
    data = Context.of(torch.randn(2, 4, 2), torch.randn(2, 4, 1))
    belief = encoder.update(encoder.init(2), data)
    assert isinstance(belief, DiagonalGaussian)
    one = [encoder.update(encoder.init(2), data.rows(n, n + 1)) for n in range(4)]
    torch.testing.assert_close(belief.precision - 1, sum(b.precision - 1 for b in one))
    torch.testing.assert_close(belief.information, sum(b.information for b in one))


@pytest.mark.parametrize("rank", [1, 2])
def test_rank_of_a_full_factor(rank: int) -> None:
    """One datum observes ``rank`` directions of the latent."""
    encoder = ProductOfGaussians(2, 1, 3, widths=(), covariance="full", rank=rank).double()
    datum = Context.of(torch.ones(1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64))
    belief = encoder.update(encoder.init(1), datum)
    assert isinstance(belief, FullGaussian)
    assert int(torch.linalg.matrix_rank(belief.precision - torch.eye(3), atol=1e-9)) == rank


def test_gradients_reach_the_encoder_and_padding_gives_none() -> None:
    encoder = ProductOfGaussians(1, 1, 2, widths=(8,))
    x = torch.randn(2, 3, 1, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    posterior = encoder.update(encoder.init(2), Context(x, torch.randn(2, 3, 1), mask)).posterior
    (posterior.rsample().sum() + posterior.variance.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert (x.grad[~mask] == 0).all() and (x.grad[mask] != 0).any()


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 'diagonal' or 'full', got 'low'"):
        ProductOfGaussians(1, 1, 1, covariance="low")
    with pytest.raises(ValueError, match="needs prior_factor=True"):
        ProductOfGaussians(1, 1, 1, covariance="full", prior_factor=False)
    encoder = ProductOfGaussians(2, 1, 1)
    with pytest.raises(ValueError, match=r"expected data with x \[B, N, 2\] and y \[B, N, 1\], got \(1, 4, 3\)"):
        encoder.update(encoder.init(1), Context.of(torch.zeros(1, 4, 3), torch.zeros(1, 4, 1)))
