"""The finite filter against enumeration, on a task of reinforcement learning, and the grid against closed forms."""

import math

import pyro.distributions as dist
import pytest
import torch

from bayesmeta.inference import finite
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.inference.grid import grid
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context, Transitions


def test_filter_is_bayes_rule_by_enumeration() -> None:
    """A loop over tasks, hypotheses and data in plain Python, with unequal prior weights."""
    family = FiniteHypotheses(hypotheses=5)
    log_prior = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25]).log()
    model = family.model
    exact = FiniteFilter(model.points, log_prior, model.log_likelihood, x_dim=2, y_dim=1).double()
    generator = torch.Generator().manual_seed(0)
    data = family.context(family.sample(2, "train", generator), 3, generator)
    belief = exact.update(exact.init(2), Context(data.x.double(), data.y.double(), data.mask))
    for b in range(2):
        weights = []
        for h in range(5):
            weight = math.exp(log_prior[h])
            for n in range(3):
                distance = math.dist(data.x[b, n].tolist(), model.points[h].tolist())
                weight *= math.exp(-0.5 * ((float(data.y[b, n]) + distance) / 0.5) ** 2)
            weights.append(weight)
        by_hand = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        torch.testing.assert_close(belief.log_weights[b].exp(), by_hand, rtol=1e-6, atol=1e-9)


def test_filter_on_transitions() -> None:
    """``x = (s, a)``, ``y = r``: which of four goals is it, from the rewards of a random walk with a padded end."""
    goals = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    def log_likelihood(z: torch.Tensor, data: Context) -> torch.Tensor:
        position = data.x[..., :2] + 0.1 * data.x[..., 2:]
        reward = -torch.linalg.vector_norm(position - z.unsqueeze(-2), dim=-1)
        return (dist.Normal(reward, 0.1).log_prob(data.y.squeeze(-1)) * data.mask).sum(-1)

    generator = torch.Generator().manual_seed(0)
    action = torch.rand(4, 12, 2, generator=generator) * 2 - 1
    next_obs = 0.1 * action.cumsum(1)
    reward = -torch.linalg.vector_norm(next_obs - goals.unsqueeze(1), dim=-1)
    reward = reward + 0.1 * torch.randn(4, 12, generator=generator)
    mask = (torch.arange(12) < 10).expand(4, -1)
    never = torch.zeros(4, 12, dtype=torch.bool)
    seen = Transitions(next_obs - 0.1 * action, action, reward, reward, next_obs, never, never, mask)
    exact = FiniteFilter(goals, torch.zeros(4), log_likelihood, x_dim=4, y_dim=1)
    belief = exact.update(exact.init(4), seen.context())
    assert belief.log_weights.argmax(-1).tolist() == [0, 1, 2, 3]
    assert (belief.posterior.mean - goals).norm(dim=-1).max() < 0.2
    with pytest.raises(ValueError, match=r"expected data x \[4, N, 4\] and y \[4, N, 1\]"):
        exact.update(exact.init(4), seen.context(next_obs=True))


def test_many_hypotheses_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Sinusoid(resolution=30)
    generator = torch.Generator().manual_seed(0)
    data = family.context(family.sample(3, "train", generator), 4, generator)
    exact = family.exact
    whole = exact.update(exact.init(3), data)
    monkeypatch.setattr(finite, "_EVALUATIONS", 1000)
    torch.testing.assert_close(exact.update(exact.init(3), data).log_weights, whole.log_weights)


def test_impossible_data_are_named() -> None:
    def log_likelihood(z: torch.Tensor, data: Context) -> torch.Tensor:
        return torch.where((data.y.squeeze(-1) == z).all(-1), 0.0, -torch.inf)

    exact = FiniteFilter(torch.tensor([[0.0], [1.0]]), torch.zeros(2), log_likelihood, x_dim=1, y_dim=1)
    data = Context.of(torch.zeros(3, 1, 1), torch.tensor([[[0.0]], [[1.0]], [[2.0]]]))
    with pytest.raises(
        ValueError, match="no hypothesis gives the data of 1 tasks any probability, the first being task 2"
    ):
        exact.update(exact.init(3), data)
    known = exact.update(exact.init(2), Context(data.x[:2], data.y[:2], data.mask[:2]))
    assert known.posterior.mean.flatten().tolist() == [0.0, 1.0]


def gaussian_grid(cells: int) -> tuple[FiniteFilter, ConjugateGaussian, Context]:
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.8]], dtype=torch.float64)
    model = LinearGaussianModel(torch.tensor([0.3, -0.2], dtype=torch.float64), covariance, noise=0.8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    data = Context.of(x, torch.randn(3, 4, 1, generator=generator, dtype=torch.float64))
    side = torch.full((2,), 6.0, dtype=torch.float64)
    return grid(model, -side, side, (cells, cells), x_dim=2, y_dim=1), ConjugateGaussian(model), data


def test_grid_converges_to_the_closed_form_at_second_order() -> None:
    """The mean has no error to speak of; the variance has that of the boxes, ``cell^2 / 12``."""
    for cells in (50, 100, 200):
        on_grid, exact, data = gaussian_grid(cells)
        found = on_grid.update(on_grid.init(3), data).posterior
        truth = exact.update(exact.init(3), data).posterior
        torch.testing.assert_close(found.mean, truth.mean, rtol=0, atol=1e-6)
        error = found.variance - truth.variance
        torch.testing.assert_close(error, torch.full_like(error, (12.0 / cells) ** 2 / 12), rtol=1e-3, atol=1e-6)


def test_grid_density_is_the_posterior_density() -> None:
    on_grid, exact, data = gaussian_grid(200)
    found = on_grid.update(on_grid.init(3), data)
    truth = exact.update(exact.init(3), data).posterior
    likely = found.posterior.mean + 0.5 * found.posterior.stddev
    z = found.points.gather(
        1, (found.points - likely.unsqueeze(1)).norm(dim=-1).argmin(1).reshape(3, 1, 1).expand(-1, -1, 2)
    )
    torch.testing.assert_close(found.posterior.log_prob(z[:, 0]), truth.log_prob(z[:, 0]), rtol=0, atol=5e-3)


def test_sinusoid_grid_at_its_default_resolution() -> None:
    """Against four times finer cells: KL below 0.01 nats, means within 1 % and widths within 2 % of the posterior's."""
    generator = torch.Generator().manual_seed(0)
    family, finer = Sinusoid(), Sinusoid(resolution=800)
    data = family.context(family.sample(4, "train", generator), 5, generator)
    coarse, fine = (f.exact.update(f.exact.init(4), data) for f in (family, finer))
    weights = fine.log_weights.exp().reshape(4, 200, 4, 200, 4)
    log_coarse = coarse.log_weights.reshape(4, 200, 1, 200, 1) - math.log(16)
    kl = torch.where(weights > 0, weights * (weights.log() - log_coarse), 0.0).sum((1, 2, 3, 4))
    assert kl.max() < 0.01
    p, q = fine.posterior, coarse.posterior
    assert ((q.mean - p.mean).abs() / p.stddev).max() < 0.01
    assert (q.stddev / p.stddev - 1).abs().max() < 0.02


def test_grid_refuses_what_it_cannot_tile() -> None:
    model = LinearGaussianModel(torch.zeros(4), torch.eye(4), noise=1.0)
    with pytest.raises(ValueError, match="at most 3 dimensions, got 4 for D = 4; NUTS is the reference"):
        grid(model, -torch.ones(4), torch.ones(4), (2, 2, 2, 2), x_dim=4, y_dim=1)
    with pytest.raises(ValueError, match=r"one number of cells per dimension .*got 1 for D = 2"):
        grid(model, -torch.ones(2), torch.ones(2), (9,), x_dim=4, y_dim=1)
    with pytest.raises(ValueError, match="expected low < high in every dimension"):
        grid(model, torch.ones(1), torch.ones(1), (9,), x_dim=4, y_dim=1)
