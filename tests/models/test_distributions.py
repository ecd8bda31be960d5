"""Own distributions against torch's, enumeration and quadrature."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution, kl_divergence

from bayesmeta.models.cells import Cells
from bayesmeta.models.distributions import OneRow, TanhNormal, tanh_log_det


def test_tanh_normal_density_is_the_change_of_variables():
    loc, log_std = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    ours = TanhNormal(loc, log_std)
    base = Independent(Normal(loc, log_std.exp()), 1)
    theirs = TransformedDistribution(base, [TanhTransform()])
    value = (0.5 * torch.randn(5, 3, dtype=torch.float64)).tanh()
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value), rtol=1e-10, atol=1e-10)


def test_tanh_normal_draw_and_density_agree():
    torch.manual_seed(0)
    law = TanhNormal(torch.randn(200, 2, dtype=torch.float64), torch.full((200, 2), -0.5, dtype=torch.float64))
    action, log_prob = law.rsample_with_log_prob()
    torch.testing.assert_close(log_prob, law.log_prob(action), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("u", [-60.0, -20.0, 0.0, 3.0, 60.0])
def test_tanh_log_det_is_exact_where_the_naive_form_fails(u):
    exact = 2.0 * (math.log(2.0) - abs(u) - math.log1p(math.exp(-2.0 * abs(u))))
    value = tanh_log_det(torch.tensor(u))
    assert math.isclose(float(value), exact, rel_tol=1e-6, abs_tol=1e-6)


def test_one_row_is_the_same_distribution_with_a_row_axis():
    base = dist.Normal(torch.randn(4, 2), torch.rand(4, 2) + 0.1).to_event(1)
    row = OneRow(base)
    assert row.batch_shape == (4, 1)
    assert row.event_shape == (2,)
    z = base.sample((7,))
    torch.testing.assert_close(row.log_prob(z.unsqueeze(-2)), base.log_prob(z).unsqueeze(-1))
    torch.manual_seed(1)
    drawn = row.rsample((5,))
    torch.manual_seed(1)
    assert torch.equal(drawn.squeeze(-2), base.rsample((5,)))
    other = dist.Normal(torch.zeros(4, 2), torch.ones(4, 2)).to_event(1)
    torch.testing.assert_close(kl_divergence(row, OneRow(other)).squeeze(-1), kl_divergence(base, other))
    assert row.expand(torch.Size((3, 4, 1))).sample().shape == (3, 4, 1, 2)
    torch.testing.assert_close(row.mean.squeeze(-2), base.mean)
    torch.testing.assert_close(row.variance.squeeze(-2), base.variance)
    with pytest.raises(ValueError, match="last batch axis"):
        row.expand(torch.Size((4, 2)))


def test_cells_integrate_to_one_and_have_the_moments_of_uniform_boxes():
    torch.manual_seed(0)
    points = torch.arange(10.0).reshape(1, 10, 1) * 0.2
    law = Cells(points, torch.randn(1, 10), torch.tensor([0.2]))
    fine = torch.linspace(-0.1 + 5e-5, 1.9 - 5e-5, 20_000).reshape(-1, 1, 1)
    density = law.log_prob(fine).exp().squeeze(-1)
    step = 2.0 / 20_000
    assert math.isclose(float(density.sum() * step), 1.0, rel_tol=1e-3)
    mean = (density * fine.squeeze()).sum() * step
    assert math.isclose(float(mean), float(law.mean), rel_tol=1e-3)
    variance = (density * (fine.squeeze() - mean) ** 2).sum() * step
    assert math.isclose(float(variance), float(law.variance), rel_tol=2e-3)
    entropy = -(density * density.log()).sum() * step
    assert math.isclose(float(entropy), float(law.entropy()), rel_tol=1e-3)
    draws = law.sample((20_000,))
    assert abs(float(draws.mean() - law.mean)) < 4 * float((law.variance / 20_000).sqrt())
    assert float(law.log_prob(torch.tensor([[5.0]]))) == -math.inf


def test_point_masses_have_probabilities():
    law = Cells(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1))
    assert math.isclose(float(law.log_prob(torch.tensor([[1.0]])).exp()), 0.75, rel_tol=1e-6)
    assert float(law.log_prob(torch.tensor([[0.5]]))) == -math.inf
    assert math.isclose(float(law.entropy()), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), rel_tol=1e-6)
