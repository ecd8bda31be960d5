"""Distributions composed of others: their density, their draws and their stated moments are one law."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.distributions import Beta, Distribution, Independent, MultivariateNormal, Normal, Uniform, biject_to

from bayesmeta.models.cells import Cells
from bayesmeta.models.concatenated import Concatenated
from bayesmeta.models.kinds import OneOfKinds
from bayesmeta.models.partly_linear import CellsThenNormal, lattice
from bayesmeta.models.randomness import torch_seeded

SIGMAS = 5.0  # a failure rate of 6e-7 per number


def boxes() -> Cells:
    """Batch [2], event [2]: four unequal cells each."""
    points = lattice(torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 2.0]), (2, 2)).expand(2, -1, -1)
    return Cells(points, torch.tensor([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, 0.0]]), torch.tensor([0.5, 2.0]))


def kinds() -> OneOfKinds:
    uniform = Independent(Uniform(torch.zeros(2, 2), torch.tensor([1.0, 3.0]), validate_args=False), 1)
    normal = Independent(Normal(torch.tensor([[1.0, -2.0], [0.0, 5.0]]), 0.5), 1)
    return OneOfKinds(torch.tensor([[0.0, 1.0, 0.3], [0.0, -1.0, 2.0]]), [uniform, normal, boxes()])


def cells_then_normal() -> CellsThenNormal:
    generator = torch.Generator().manual_seed(0)
    low, cell = torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 0.1])
    log_weights, loc = torch.randn(2, 6, generator=generator), torch.randn(2, 6, 2, generator=generator)
    return CellsThenNormal(
        low, cell, (3, 2), log_weights, loc, torch.tensor([[0.7, 0.0], [0.4, 0.3]]).expand(2, -1, -1)
    )


def concatenated() -> Concatenated:
    shape = Beta(torch.tensor([[2.0], [3.0]]), torch.tensor([[1.5], [4.0]]))
    return Concatenated([Independent(shape, 1), Independent(Normal(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), 0.5), 1)])


LAWS = [kinds, cells_then_normal, concatenated]
each_law = pytest.mark.parametrize("make", LAWS, ids=lambda make: make.__name__)


@each_law
def test_draws_have_the_stated_moments(make: Callable[[], Distribution]) -> None:
    law = make()
    with torch_seeded(0):
        draws = law.sample((40_000,))
    assert draws.shape == (40_000, 2, law.event_shape[0])
    square = (draws - law.mean).square()
    assert ((draws.mean(0) - law.mean).abs() < SIGMAS * (law.variance / len(draws)).sqrt()).all()
    assert ((square.mean(0) - law.variance).abs() < SIGMAS * square.std(0) / math.sqrt(len(draws)) + 1e-6).all()


@each_law
def test_the_density_is_that_of_the_draws(make: Callable[[], Distribution]) -> None:
    """``E_q[p / q] = 1`` for a ``p`` inside the support of ``q``: here ``q``'s own family with other numbers."""
    law = make()
    if isinstance(law, OneOfKinds):
        other = OneOfKinds(-law.log_weights, law.laws)
    elif isinstance(law, CellsThenNormal):
        other = CellsThenNormal(law.low, law.cell, law.counts, -law.log_weights, 0.9 * law.loc, 0.7 * law.scale_tril)
    else:
        other = Concatenated([law.parts[0], Independent(Normal(law.parts[1].mean + 0.2, 0.4), 1)])
    with torch_seeded(0):
        draws = law.sample((40_000,))
    ratio = (other.log_prob(draws) - law.log_prob(draws)).exp()
    assert ((ratio.mean(0) - 1).abs() < SIGMAS * ratio.std(0) / math.sqrt(len(ratio))).all()


def test_densities_by_hand() -> None:
    inside = torch.tensor([[1.0, 1.0, -2.0], [0.0, 0.5, 0.5]])
    expected = [
        float(kinds().log_weights[0, 1]) - 2 * math.log(0.5 * math.sqrt(2 * math.pi)),
        float(kinds().log_weights[1, 0]) - math.log(3.0),
    ]
    torch.testing.assert_close(kinds().log_prob(inside), torch.tensor(expected))
    no_kind = torch.tensor([[0.5, 1.0, -2.0], [3.0, 0.5, 0.5]])
    assert (kinds().log_prob(no_kind) == -math.inf).all()

    law = cells_then_normal()
    z = torch.tensor([[-0.3, 2.15, 0.2, 0.1], [0.49, 2.01, 0.0, 0.0]])  # cells (1, 1) and (2, 0), of 3 x 2
    for b, index in enumerate((3, 4)):
        normal = MultivariateNormal(law.loc[b, index], scale_tril=law.scale_tril[b]).log_prob(z[b, 2:])
        by_hand = law.log_weights[b, index] - math.log(0.5 * 0.1) + normal
        torch.testing.assert_close(law.log_prob(z)[b], by_hand)
    outside = torch.tensor([[-1.1, 2.1, 0.0, 0.0], [0.0, 2.21, 0.0, 0.0]])
    assert (law.log_prob(outside) == -math.inf).all()


@each_law
def test_expansion_is_repetition(make: Callable[[], Distribution]) -> None:
    law = make()
    wide = law.expand(torch.Size((3, 2)))
    assert wide.batch_shape == (3, 2) and wide.event_shape == law.event_shape
    with torch_seeded(0):
        z = wide.sample((5,))
    assert z.shape == (5, 3, 2, *law.event_shape)
    torch.testing.assert_close(wide.log_prob(z), law.log_prob(z))
    torch.testing.assert_close(wide.mean, law.mean.expand(3, -1, -1))
    torch.testing.assert_close(wide.variance, law.variance.expand(3, -1, -1))


def test_the_support_of_parts_is_that_of_each() -> None:
    """Samplers move in the unconstrained space: the first coordinate must land in (0, 1), the others anywhere."""
    free = torch.tensor([[-30.0, -30.0, 7.0], [2.0, 0.0, 0.0]])
    z = biject_to(concatenated().support)(free)
    assert (z[:, 0] >= 0).all() and (z[:, 0] <= 1).all() and torch.equal(z[:, 1:], free[:, 1:])
    assert concatenated().has_rsample
