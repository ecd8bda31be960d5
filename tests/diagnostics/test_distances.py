"""Distances from a reference, and k-hat, against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from bayesmeta.diagnostics.distances import (
    distances,
    is_discrete,
    k_hat,
    k_hat_threshold,
    reference_kl,
    sliced_wasserstein,
)
from bayesmeta.models.cells import Cells
from bayesmeta.models.randomness import torch_seeded


def gaussian(mean, sd) -> MultivariateNormal:
    return MultivariateNormal(torch.tensor(mean), torch.diag_embed(torch.tensor(sd).square()))


P = gaussian([[0.0, 1.0], [2.0, 0.0]], [[1.0, 0.5], [0.3, 2.0]])
Q = gaussian([[0.5, 1.0], [2.0, 1.0]], [[1.0, 1.0], [0.6, 2.0]])


def draws(law, count=199, seed=0):
    with torch_seeded(seed):
        return law.sample((count,))


def lattice(law, width=0.05, reach=8.0) -> Cells:
    """A law on a grid, one row of the batch."""
    axis = torch.arange(-reach, reach, width) + width / 2
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return Cells(points.expand(2, -1, -1), law.log_prob(points.unsqueeze(1)).mT, torch.full((2,), width))


def test_moments_in_units_of_the_reference():
    found = distances(Q, P, draws(Q), draws(P))
    torch.testing.assert_close(found["mean_error"], torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    torch.testing.assert_close(found["sd_ratio"], torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    torch.testing.assert_close(found["kl_reference"], kl_divergence(P, Q))


def test_kl_from_a_grid_is_that_of_its_law():
    grid = lattice(P)
    torch.testing.assert_close(reference_kl(grid, Q, draws(P)), kl_divergence(P, Q), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(reference_kl(grid, lattice(Q), draws(P)), kl_divergence(P, Q), rtol=1e-2, atol=2e-3)


def test_kl_without_a_closed_form_is_the_mean_over_draws():
    wide = torch.distributions.StudentT(torch.full((2, 2), 5.0), P.mean, P.stddev)
    law = torch.distributions.Independent(wide, 1)
    found = reference_kl(P, law, draws(P, 20_000))
    where = torch.linspace(-12, 12, 20_001).double()
    density = Normal(0.0, 1.0).log_prob(where)
    student = torch.distributions.StudentT(5.0).log_prob(where)
    per_coordinate = float((density.exp() * (density - student)).sum() * 24 / 20_000)
    torch.testing.assert_close(found, torch.full((2,), 2 * per_coordinate), rtol=0.1, atol=0)


def test_particles_have_no_kl_and_points_no_standard_deviation():
    points = draws(P).transpose(0, 1)
    particles = Cells(points, torch.zeros(2, 199), torch.zeros(2))
    assert is_discrete(particles) and not is_discrete(P) and not is_discrete(lattice(P))
    assert reference_kl(P, particles, draws(P)).isnan().all()
    point = Cells(points[:, :1], torch.zeros(2, 1), torch.zeros(2))
    assert distances(particles, point, draws(P), draws(P))["mean_error"].isnan().all()


def test_what_the_belief_excludes_is_infinitely_far():
    first, second = torch.eye(2).unsqueeze(0), torch.tensor([[0.0, -torch.inf]])
    q, p = Cells(first, second, torch.zeros(2)), Cells(first, torch.zeros(1, 2), torch.zeros(2))
    assert reference_kl(p, q, p.sample((5,))) == torch.inf
    torch.testing.assert_close(reference_kl(q, p, p.sample((5,))), torch.tensor([math.log(2)]))


def test_sliced_wasserstein_of_a_shift_is_its_length():
    """In the plane a shift by ``s`` moves the projections by ``s cos(angle)``: root mean square ``s / sqrt(2)``."""
    base = draws(P, 500)
    scale = P.stddev
    moved = sliced_wasserstein(base + torch.tensor([2.0, 0.0]) * scale, base, scale)
    torch.testing.assert_close(moved, torch.full((2,), 2 / math.sqrt(2)), rtol=0.25, atol=0)  # 20 directions
    again = sliced_wasserstein(draws(P, 500, seed=1), base, scale)
    assert (again < 3 * math.sqrt(2 * math.log(math.log(500)) / 500)).all()
    assert (sliced_wasserstein(base, base, scale) == 0).all()


def test_k_hat_of_a_narrow_normal_and_of_a_wide_one():
    """Weights of N(0, 1) against N(0, s^2) have tail index ``1 - s^2``, for s < 1, and are bounded for s > 1."""
    with torch_seeded(0):
        noise = torch.randn(20_000, 3)
    found = {}
    for s in (0.6, 1.5):
        q = Normal(0.0, s)
        log_weights = Normal(0.0, 1.0).log_prob(s * noise) - q.log_prob(s * noise)
        found[s] = k_hat(log_weights)
    assert (found[0.6] - (1 - 0.36)).abs().max() < 0.2 and (found[1.5] < 0.1).all()
    assert (k_hat(torch.zeros(100, 2)) == -torch.inf).all()  # the exact posterior


def test_k_hat_is_the_shape_of_pareto_weights():
    weights = stats.pareto(b=1 / 0.6).rvs(size=(5000, 4), random_state=np.random.default_rng(0))
    assert (k_hat(torch.as_tensor(weights).log()) - 0.6).abs().max() < 0.2


def test_k_hat_needs_a_tail():
    with pytest.raises(ValueError, match="expected at least 25 draws for a tail of 5 weights, got 24"):
        k_hat(torch.zeros(24, 1))
    assert k_hat_threshold(100) == pytest.approx(0.5) and k_hat_threshold(10_000) == 0.7
