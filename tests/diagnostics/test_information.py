"""Contraction and information against closed forms."""

import math
from itertools import pairwise

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from bayesmeta.diagnostics.information import (
    active_dimensions,
    contraction,
    marginal_kl,
    marginals,
    mixture_information,
    recovered_information,
    total_kl,
)
from bayesmeta.inference.beliefs import FullGaussian, Point
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.grid import grid
from bayesmeta.models.cells import Cells
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context


def normal_normal(n: int, tau: float, sigma: float, y: float):
    """Prior and posterior after ``n`` data of value ``y``, from the library; the closed form is in the test."""
    exact = ConjugateGaussian(LinearGaussianModel(torch.zeros(1), torch.tensor([[tau**2]]), sigma))
    data = Context.of(torch.ones(1, n, 1), torch.full((1, n, 1), y))
    return exact.update(exact.init(1), data).posterior, exact.init(1).posterior


@pytest.mark.parametrize("n", [1, 5, 50])
def test_normal_normal(n):
    tau, sigma, y = 1.5, 0.5, 0.7
    posterior, prior = normal_normal(n, tau, sigma, y)
    variance = 1 / (1 / tau**2 + n / sigma**2)
    mean = variance * n * y / sigma**2
    kl = 0.5 * (variance / tau**2 + mean**2 / tau**2 - 1 - np.log(variance / tau**2))
    torch.testing.assert_close(contraction(posterior, prior), torch.tensor([[1 - variance / tau**2]]))
    torch.testing.assert_close(
        marginal_kl(posterior, prior), torch.tensor([[kl]], dtype=torch.float32), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(total_kl(posterior, prior, prior.sample((1,)))[0].item(), kl, rtol=1e-5, atol=1e-5)


def test_correlated_gaussian_by_hand():
    """A bivariate normal of correlation 0.6 against N(0, I): total KL = marginal KLs + mutual information."""
    rho = 0.6
    covariance = torch.tensor([[0.5, rho * 0.5], [rho * 0.5, 0.5]])
    belief = FullGaussian(torch.zeros(1, 2), torch.linalg.inv(covariance)[None])
    prior = FullGaussian(torch.zeros(1, 2), torch.eye(2)[None])
    each = 0.5 * (0.5 - 1 - np.log(0.5))
    mutual = -0.5 * np.log(1 - rho**2)
    marginal = marginal_kl(belief.posterior, prior.posterior)
    total = total_kl(belief.posterior, prior.posterior, torch.zeros(1, 1, 2))
    torch.testing.assert_close(marginal, torch.full((1, 2), each), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, torch.tensor([2 * each + mutual], dtype=torch.float32), rtol=1e-5, atol=1e-6)


@given(
    mean=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    sd=st.lists(st.floats(0.1, 3), min_size=2, max_size=2),
)
def test_factorised_information_adds_up(mean, sd):
    q = dist.Normal(torch.tensor([mean]), torch.tensor([sd])).to_event(1)
    p = dist.Normal(torch.zeros(1, 2), 1.0).to_event(1)
    total = total_kl(q, p, torch.zeros(1, 1, 2))
    torch.testing.assert_close(marginal_kl(q, p).sum(-1), total, rtol=1e-4, atol=1e-5)
    assert (total >= -1e-5).all()


def test_more_data_contract_more():
    found = [contraction(*normal_normal(n, 1.0, 1.0, 0.0)).item() for n in range(1, 20)]
    assert all(b > a for a, b in pairwise(found))


def test_a_wider_belief_shows_as_negative():
    wide = dist.Normal(torch.zeros(1, 1), 2.0).to_event(1)
    prior = dist.Normal(torch.zeros(1, 1), 1.0).to_event(1)
    assert contraction(wide, prior).item() == pytest.approx(-3.0)


def test_finite_hypotheses_by_hand():
    """Three points in the plane, two of which share a coordinate."""
    points = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    prior = Cells(points, torch.zeros(1, 3), torch.zeros(2))
    posterior = Cells(points, torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.zeros(2))
    total = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)
    first = 0.75 * np.log(0.75 / (2 / 3)) + 0.25 * np.log(0.25 / (1 / 3))
    second = 0.5 * np.log(0.5 / (1 / 3)) + 0.5 * np.log(0.5 / (2 / 3))
    assert total_kl(posterior, prior, torch.zeros(1, 1, 2)).item() == pytest.approx(total, rel=1e-5)
    assert marginal_kl(posterior, prior)[0].tolist() == pytest.approx([first, second], rel=1e-5)


def test_ruled_out_hypotheses_are_no_nan():
    points = torch.arange(2.0).reshape(1, 2, 1)
    certain = Cells(points, torch.tensor([[0.0, -torch.inf]]), torch.zeros(1))
    even = Cells(points, torch.zeros(1, 2), torch.zeros(1))
    assert total_kl(certain, even, torch.zeros(1, 1, 1)).item() == pytest.approx(np.log(2))
    assert marginal_kl(certain, even).item() == pytest.approx(np.log(2))


def test_grid_agrees_with_the_conjugate_posterior():
    model = LinearGaussianModel(torch.zeros(2), torch.eye(2), 0.7)
    x = torch.tensor([[[1.0, 0.3], [0.2, -1.0], [0.5, 0.5]]])
    data = Context.of(x, torch.tensor([[[0.4], [-0.8], [0.1]]]))
    exact = ConjugateGaussian(model)
    cells = grid(model, torch.full((2,), -5.0), torch.full((2,), 5.0), (150, 150), x_dim=2, y_dim=1)
    laws = [(i.update(i.init(1), data).posterior, i.init(1).posterior) for i in (exact, cells)]
    draws = torch.zeros(1, 1, 2)
    (q, p), (q_grid, p_grid) = laws
    torch.testing.assert_close(marginal_kl(q_grid, p_grid), marginal_kl(q, p), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(total_kl(q_grid, p_grid, draws), total_kl(q, p, draws), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(contraction(q_grid, p_grid), contraction(q, p), rtol=1e-2, atol=1e-3)


def test_without_a_closed_form_the_total_is_estimated_from_draws():
    """A mixture of two equal halves is the normal itself, whose divergence is known."""
    torch.manual_seed(0)
    normal = dist.Normal(torch.full((1, 1), 1.0), 0.5).to_event(1)
    halves = dist.Normal(torch.full((1, 2, 1), 1.0), 0.5).to_event(1)
    mixture = MixtureSameFamily(torch.distributions.Categorical(torch.ones(1, 2)), halves)
    prior = dist.Normal(torch.zeros(1, 1), 1.0).to_event(1)
    draws = mixture.sample((20_000,))
    log_ratio = mixture.log_prob(draws) - prior.log_prob(draws)
    error = log_ratio.std() / len(draws) ** 0.5
    assert abs(total_kl(mixture, prior, draws) - kl_divergence(normal, prior)) < 4 * error
    assert marginals(mixture) is None
    assert marginal_kl(mixture, prior).isnan().all()


def test_particles_have_no_divergence_from_other_particles():
    few = Cells(torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1))
    other = Cells(torch.ones(1, 1, 1), torch.zeros(1, 1), torch.zeros(1))
    assert total_kl(few, other, torch.zeros(2, 1, 1)).isnan().all()
    assert marginal_kl(few, other).isnan().all()


def test_point_mass_is_infinitely_informed_or_undefined_but_no_error():
    point = Point(torch.zeros(2, 3)).posterior
    prior = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    assert marginal_kl(point, prior).shape == (2, 3)
    assert total_kl(point, prior, torch.zeros(4, 2, 3)).shape == (2,)
    torch.testing.assert_close(contraction(point, prior), torch.ones(2, 3))


def test_active_dimensions():
    kl = np.array([[0.5, 0.005, 0.0, 0.02], [0.5, 0.005, 0.0, 0.004]])
    assert active_dimensions(kl).tolist() == [True, False, False, True]
    assert active_dimensions(np.full((2, 1), np.nan)).tolist() == [False]


def codes(mean: float, sd: float = 1.0) -> MultivariateNormal:
    """Two tasks at plus and minus ``mean``."""
    return MultivariateNormal(torch.tensor([[mean], [-mean]]), sd**2 * torch.eye(1))


@pytest.mark.parametrize("mean", [0.0, 0.7, 30.0])
def test_mixture_information_is_the_mutual_information_and_never_above_the_ceiling(mean):
    """Of a balanced pair of normals, by quadrature; 0 where they are one, log 2 where they are far apart."""
    where = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    first, second = (Normal(m, 1.0).log_prob(where) for m in (mean, -mean))
    log_mixture = torch.logaddexp(first, second) - math.log(2)
    exact = float((first.exp() * (first - log_mixture)).sum() * 80 / 80_000)
    with torch_seeded(0):
        found = float(mixture_information(codes(mean), draws=20_000).mean())
    assert found == pytest.approx(exact, abs=0.02) and found <= math.log(2) + 1e-6


def test_recovered_information_is_bounded_by_that_of_the_code():
    """All of it where the belief is the code, less where it is wider, and none where it is the codes' mixture."""
    code = codes(3.0)
    with torch_seeded(0):
        ceiling = float(mixture_information(code, draws=5000).mean())
        same, wide = (
            float(recovered_information(belief, code, draws=5000).mean()) for belief in (code, codes(3.0, sd=2.0))
        )
    assert same == pytest.approx(ceiling, abs=0.02) and wide < ceiling
    # KL(N(0, 1) || N(0, 4)) is what the wider one loses.
    assert ceiling - wide == pytest.approx(float(kl_divergence(Normal(0.0, 1.0), Normal(0.0, 2.0))), abs=0.03)


def test_mixture_information_takes_tasks_a_few_at_a_time(monkeypatch):
    code = codes(0.7)
    with torch_seeded(0):
        whole = mixture_information(code)
    monkeypatch.setattr("bayesmeta.diagnostics.information._PAIRS", 3)
    with torch_seeded(0):
        torch.testing.assert_close(mixture_information(code), whole)
