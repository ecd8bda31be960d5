"""The density of a grid by arithmetic is the density by comparison with every centre."""

import torch

from bayesmeta.models.cells import Cells
from bayesmeta.models.randomness import torch_seeded


def test_lattice_and_comparison_agree():
    axes = torch.arange(7) * 0.5 - 1, torch.arange(5) * 0.2 + 3
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    cell = torch.tensor([0.5, 0.2])
    with torch_seeded(0):
        weights = torch.randn(3, 35)
        value = points.mean(0) + torch.tensor([1.5, 0.5]) * torch.randn(200, 3, 2)
    fast, slow = Cells(points.expand(3, -1, -1), weights, cell), Cells(points.repeat(3, 1, 1), weights, cell)
    torch.testing.assert_close(fast.log_prob(value), slow.log_prob(value))
    assert fast.log_prob(value).isinf().any() and fast.log_prob(value).isfinite().any()
    assert fast._lattice is not None and slow._lattice is None


def test_moments_of_a_lattice_are_those_of_its_cells():
    axes = torch.arange(40) * 0.05 - 1, torch.arange(30) * 0.1, torch.arange(3) * 1.0
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).double()
    cell = torch.tensor([0.05, 0.1, 1.0], dtype=torch.float64)
    weights = (
        -((points - torch.tensor([0.3, 1.0, 0.5])) / torch.tensor([0.02, 0.5, 1.0])).square().sum(-1).expand(2, -1)
    )
    fast, slow = (Cells(where, weights, cell) for where in (points.expand(2, -1, -1), points.repeat(2, 1, 1)))
    torch.testing.assert_close(fast.mean, slow.mean)
    torch.testing.assert_close(fast.variance, slow.variance)


def test_points_in_another_order_are_compared():
    points = (torch.arange(6.0) * 2).flip(0).unsqueeze(-1)
    law = Cells(points.expand(2, -1, -1), torch.arange(6.0).expand(2, -1), torch.tensor([2.0]))
    torch.testing.assert_close(law.log_prob(points[:1].expand(2, 1)), law.log_weights[:, 0] - torch.tensor(2.0).log())
