"""Families of functions and circles: their exact posteriors against references that share no code with them."""

import math

import pytest
import torch
from torch import Tensor

from bayesmeta.diagnostics.held_out import held_out
from bayesmeta.diagnostics.truth import exact_posterior
from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.models.circle import area_within
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.rbf_features import RBFFeatures
from bayesmeta.tasks.circles import Circles
from bayesmeta.tasks.gp_functions import GPFunctions
from bayesmeta.tasks.pacoh_sinusoid import PacohSinusoid
from bayesmeta.tasks.sine_or_line import SineOrLine
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context, SupervisedFamily
from tests.laws.sbc import pits, rejected

ALPHA = 1e-3  # the declared failure rate of each test of ranks
SIGMAS = 5.0  # and of the others 6e-7 per number that is compared


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(family: SupervisedFamily, batch: int, shots: int) -> tuple[Tensor, Context]:
    params = family.sample(batch, "test", generator := seeded())
    return params, family.context(params, shots, generator)


def weighted_prior(family: SupervisedFamily, data: Context, draws: int = 200_000) -> tuple[Tensor, Tensor]:
    """Draws of the prior and their posterior weights, in float64: importance sampling, right for any model."""
    with torch_seeded(0):
        z = family.model.prior(data.batch).sample((draws,))
    return z.double(), family.model.log_likelihood(z, data).double().softmax(0)


def error_of(weights: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    """The standard error of a self-normalised importance sampling estimate, and of the float32 it is held against."""
    return (weights.square().unsqueeze(-1) * (values - mean).square()).sum(0).sqrt() + 1e-6


@pytest.mark.parametrize("family", [Sinusoid(), SineOrLine(), PacohSinusoid(), GPFunctions(noise=0.2)])
def test_data_are_the_function_and_noise(family: SupervisedFamily) -> None:
    params, data = drawn(family, 200, 100)
    noise = (data.y - family.mean(params, data.x)).flatten()
    scale = family.model.likelihood(params.unsqueeze(1), data).stddev[0, 0]
    assert abs(float(noise.mean() / scale)) < SIGMAS / math.sqrt(len(noise))
    assert abs(float(noise.square().mean() / scale**2) - 1) < SIGMAS * math.sqrt(2 / len(noise))


def test_the_published_sinusoid_has_no_noise_and_no_posterior() -> None:
    family = Sinusoid(noise=0.0)
    params, data = drawn(family, 4, 10)
    assert torch.equal(data.y, params[:, None, :1] * (data.x - params[:, None, 1:]).sin())
    assert torch.equal(data.x, Sinusoid().context(params, 10, _after(params)).x)
    assert family.model is None and family.exact is None and exact_posterior(family) is None
    with pytest.raises(ValueError, match=r"sinusoid-v1 has no model of its own; give model="):
        held_out(family, Sinusoid().exact)


def _after(params: Tensor) -> torch.Generator:
    """The generator of ``drawn`` once tasks are drawn."""
    Sinusoid().sample(len(params), "test", generator := seeded())
    return generator


@pytest.mark.parametrize("family", [SineOrLine(noise=0.5), PacohSinusoid()], ids=lambda family: family.spec.name)
def test_the_posterior_agrees_with_importance_sampling(family: SupervisedFamily) -> None:
    """Mean, second moment and, at five places, the predictive density; a posterior that is 10 % too wide is found."""
    params, data = drawn(family, 3, 3)
    z, weights = weighted_prior(family, data)
    assert (weights.square().sum(0).reciprocal() > 1000).all()
    exact = family.exact
    posterior = exact.update(exact.init(3), data).posterior
    mean = (weights.unsqueeze(-1) * z).sum(0)
    assert ((posterior.mean - mean).abs() < SIGMAS * error_of(weights, z, mean)).all()
    second = (z - posterior.mean).square()
    variance = (weights.unsqueeze(-1) * second).sum(0)
    error = error_of(weights, second, variance)
    assert ((posterior.variance - variance).abs() < SIGMAS * error).all()
    assert not ((1.21 * posterior.variance - variance).abs() < SIGMAS * error).all()

    x = torch.linspace(-4.0, 4.0, 5).reshape(1, -1, 1).expand(3, -1, -1)
    query = Context.of(x, family.mean(params, x) + 0.2)
    density = family.model.likelihood(z.float().unsqueeze(-2), query).log_prob(query.y).exp()
    expected = (weights.unsqueeze(-1) * density).sum(0)
    with torch_seeded(1):
        draws = posterior.sample((20_000,))
    each = family.model.likelihood(draws.unsqueeze(-2), query).log_prob(query.y).exp()
    error = (error_of(weights, density, expected).square() + each.var(0) / len(draws)).sqrt()
    assert ((each.mean(0) - expected).abs() < SIGMAS * error).all()


def test_which_kind_is_known_from_much_data_and_not_from_one_datum() -> None:
    family = SineOrLine(resolution=100)
    params, data = drawn(family, 10, 40)
    exact = family.exact
    after_one, after_all = (exact.update(exact.init(10), data.rows(0, n)).posterior for n in (1, 40))
    assert 0 < params[:, 0].sum() < 10
    torch.testing.assert_close(after_all.mean[:, 0], params[:, 0], rtol=0, atol=1e-4)
    small = data.y[:, 0, 0].abs() < 3  # beyond, and where the phase leaves one sign only, one datum tells
    assert ((after_one.mean[small, 0] - 0.5).abs() < 0.45).float().mean() > 0.5
    torch.testing.assert_close(exact.init(2).posterior.mean, family.model.prior(2).mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exact.init(2).posterior.variance, family.model.prior(2).variance, rtol=1e-3, atol=1e-4)


def test_fewer_data_of_a_line_at_zero_are_as_likely_from_either_kind() -> None:
    """By hand: at ``x = 0`` the target is ``-a sin(phi)`` or the intercept; ``y = 4`` is impossible for a sinusoid."""
    family = SineOrLine(noise=0.1)
    exact = family.exact
    data = Context.of(torch.zeros(2, 1, 1), torch.tensor([[[2.9]], [[-2.0]]]))
    is_line = exact.update(exact.init(2), data).posterior.mean[:, 0]
    assert is_line[0] > 0.999
    # p(y = -2 | line) = 1 / 6, p(y = -2 | sine) = int_{2/5}^1 ... = E[1 / (4.9 sin phi) ; sin phi > 2 / 5]
    phi = torch.linspace(0, math.pi, 1_000_001, dtype=torch.float64)[1:-1]
    sine = torch.where(phi.sin() > 0.4, 1 / (4.9 * phi.sin()), 0.0).mean()
    assert math.isclose(float(is_line[1]), float((1 / 6) / (1 / 6 + sine)), abs_tol=0.01)


@pytest.mark.parametrize("length", [0.1, 0.4, 3.0])
def test_features_have_the_kernel_of_the_process(length: float) -> None:
    x = torch.linspace(-2.0, 2.0, 201).reshape(1, -1, 1)
    phi = RBFFeatures(length=length, scale=0.7, width=4.0)(x).double()
    kernel = 0.49 * torch.exp(-0.5 * ((x - x.mT).double() / length).square())
    assert (phi @ phi.mT - kernel).abs().max() < 1e-6 * 0.49
    beyond = torch.tensor([[[0.0], [4.0 + 6.0 * length]]])  # farther apart than promised: one period
    phi = RBFFeatures(length=length, scale=0.7, width=4.0)(beyond)[0]
    assert math.isclose(float(phi[0] @ phi[1]), 0.49, rel_tol=1e-3)


@pytest.mark.parametrize("noise, tolerance", [(0.3, 1e-4), (0.02, 1e-2)])
def test_the_predictive_is_that_of_the_gaussian_process(noise: float, tolerance: float) -> None:
    """Against the textbook formula (Rasmussen and Williams 2006, equation 2.19) with the RBF kernel in float64."""
    family = GPFunctions(noise=noise)
    _, data = drawn(family, 3, 30)
    x = torch.linspace(-2.0, 2.0, 9).reshape(1, -1, 1).expand(3, -1, -1)
    law = family.exact.predictive(family.exact.update(family.exact.init(3), data), x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-((a.double() - b.double().mT) ** 2) / (2 * 0.4**2))

    gram = kernel(data.x, data.x) + noise**2 * torch.eye(30)
    cross = kernel(x, data.x)
    mean = cross @ torch.linalg.solve(gram, data.y.double())
    variance = 1 + noise**2 - (cross * torch.linalg.solve(gram, cross.mT).mT).sum(-1, keepdim=True)
    assert ((law.mean - mean).abs() < tolerance * variance.sqrt()).all()
    torch.testing.assert_close(law.variance.double(), variance, rtol=tolerance, atol=0)


def test_a_circle_is_what_its_labels_say() -> None:
    """One label in fifty is wrong, and the model's probabilities are those of the rounded circle."""
    family = Circles(resolution=12)
    params, data = drawn(family, 200, 100)
    truth = family.mean(params, data.x)
    wrong = (truth != data.y).any(-1).float()
    assert abs(float(wrong.mean()) - 0.02) < SIGMAS * math.sqrt(0.02 * 0.98 / wrong.numel())
    circle = family.labels.circle(params)
    assert ((circle - params).abs() <= torch.tensor([0.25, 0.25, 2.5 / 24]) * (1 + 1e-4)).all()
    assert torch.equal(truth[..., 1] > 0, (data.x - circle[:, None, :2]).norm(dim=-1) < circle[:, None, 2])
    law = family.model.likelihood(params.unsqueeze(1), data)
    torch.testing.assert_close(law.probs[..., 1], 0.02 + 0.96 * truth[..., 1])


def test_the_share_of_positives_is_an_area() -> None:
    """Of whole circles in closed form, of half a circle by symmetry, and of any by counting points."""
    whole = torch.tensor([[0.0, 0.0, 2.0], [3.0, -3.0, 2.0], [5.0, 0.0, 1.0], [5.0, -5.0, 1.0], [9.0, 0.0, 1.0]])
    torch.testing.assert_close(
        area_within(whole, 5.0), math.pi * torch.tensor([4.0, 4.0, 0.5, 0.25, 0.0]), rtol=1e-4, atol=1e-6
    )
    params = Circles().sample(20, "train", generator := seeded())
    x = 10 * torch.rand(1, 100_000, 2, generator=generator).expand(20, -1, -1) - 5
    family = Circles(flip=0.1)
    counted = 0.1 + 0.8 * family.mean(params, x)[..., 1].mean(1)
    assert ((family.share(params) - counted).abs() < SIGMAS * 0.8 * math.sqrt(0.25 / 100_000)).all()


class Selected:
    """Inference from contexts that begin with selected positives, with the family's correction or without."""

    def __init__(self, family: Circles, corrected: bool) -> None:
        self.family, self.corrected = family, corrected
        self.random = Circles(resolution=family.labels.resolution).exact

    def init(self, batch: int):
        return self.random.init(batch)

    def update(self, belief, data: Context):
        return self.family.belief(data) if self.corrected else self.random.update(belief, data)


def test_positives_come_first_and_where_they_lie_counts() -> None:
    """The belief from selected rows is calibrated; one that takes their inputs for random is not."""
    family = Circles(positives=3, resolution=8)
    assert family.model is None and family.exact is None
    _, data = drawn(family, 500, 5)
    assert (data.y[:, :3, 1] == 1).all() and 0.1 < data.y[:, 3:, 1].mean() < 0.5
    family.model = family.labels  # the law of the labels, for the ranks of the likelihood
    right, wrong = (
        pits(family, Selected(family, corrected), tasks=1000, shots=5, draws=99, seed=0) for corrected in (True, False)
    )
    assert not rejected(right, ALPHA)
    assert "radius" in rejected(wrong, ALPHA)


def test_without_selection_the_belief_is_the_filters() -> None:
    family = Circles(resolution=8)
    _, data = drawn(family, 4, 6)
    exact = family.exact
    assert isinstance(exact, FiniteFilter)
    torch.testing.assert_close(family.belief(data).log_weights, exact.update(exact.init(4), data).log_weights)
    fewer = Context(data.x, data.y, torch.zeros_like(data.mask))
    assert torch.equal(Circles(positives=2, resolution=8).belief(fewer).log_weights, exact.init(4).log_weights)


def test_circles_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="Circles: expected positives >= 0, got -1"):
        Circles(positives=-1)
    with pytest.raises(ValueError, match="CircleModel: expected 0 < flip < 1/2"):
        Circles(flip=0.5)
