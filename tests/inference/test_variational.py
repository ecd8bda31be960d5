"""Variational descent in float64 against the linear-Gaussian model, where each of its steps has a closed form."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.descent import SGD, Preconditioned
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.guides import elbo_loss, posterior_guide
from bayesmeta.inference.variational import FullRank, VariationalDescent
from bayesmeta.models.architectures import mlp
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context

TASKS, SHOTS, DIM, NOISE = 3, 4, 3, 0.8
MODEL = LinearGaussianModel(
    torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64),
    torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.7, -0.2], [0.0, -0.2, 0.5]], dtype=torch.float64),
    NOISE,
)


def rate(value: float) -> SGD:
    return SGD(torch.tensor(value, dtype=torch.float64))


def linear_data(seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TASKS, SHOTS, DIM, generator=generator, dtype=torch.float64)
    return Context.of(x, torch.randn(TASKS, SHOTS, 1, generator=generator, dtype=torch.float64))


def exact(data: Context) -> tuple[Tensor, Tensor]:
    """Mean and precision of the posterior."""
    conjugate = ConjugateGaussian(MODEL)
    belief = conjugate.update(conjugate.init(data.batch), data)
    return belief.posterior.mean, belief.precision


def evidence(data: Context) -> Tensor:
    """``log N(y; X mu, noise^2 I + X Sigma X^T)``."""
    mean = data.x @ MODEL.mean
    covariance = NOISE**2 * torch.eye(data.size, dtype=torch.float64) + data.x @ MODEL.covariance @ data.x.mT
    return dist.MultivariateNormal(mean, covariance).log_prob(data.y.squeeze(-1))


def procedure(model: TaskModel = MODEL, **options: object) -> VariationalDescent:
    options = {"steps": 1, "optimizer": rate(0.05), "draws": "sigma", "antithetic": False} | options
    return VariationalDescent(model, x_dim=DIM, y_dim=1, **options)


def after(inference: VariationalDescent, data: Context) -> Distribution:
    with torch.no_grad():
        return inference.update(inference.init(data.batch), data).posterior


def elbo(inference: VariationalDescent, data: Context) -> Tensor:
    """The ELBO of each task where the descent ends."""
    with torch.no_grad():
        return inference.elbo(inference.update(inference.init(data.batch), data))


@pytest.mark.parametrize("scale_rate", [1.0, 0.2])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_steps_on_the_linear_gaussian_model_are_a_recursion(steps: int, scale_rate: float) -> None:
    """``m <- m - rate (Lambda m - b)``, whose solution is a power, and ``l <- l - rate (Lambda_ii exp(2 l) - 1)``."""
    data = linear_data()
    mean, precision = exact(data)
    q = after(procedure(steps=steps, scale_rate=scale_rate), data)
    power = torch.linalg.matrix_power(torch.eye(DIM) - 0.05 * precision, steps)
    expected = mean + (power @ (MODEL.mean - mean).unsqueeze(-1)).squeeze(-1)
    log_sd = MODEL.covariance.diagonal().sqrt().log().expand(TASKS, -1)
    for _ in range(steps):
        log_sd = log_sd - 0.05 * scale_rate * (precision.diagonal(dim1=-2, dim2=-1) * (2 * log_sd).exp() - 1)
    torch.testing.assert_close(q.mean, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(q.stddev.log(), log_sd, rtol=0, atol=1e-10)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_whitened_steps_are_those_of_the_model_in_units_of_the_prior(covariance: str) -> None:
    """``u = A^{-1} (z - mu)`` has prior ``N(0, I)`` and inputs ``A^T x``, with ``A`` the prior's root or scales."""
    data = linear_data()
    root = MODEL.scale_tril if covariance == "full" else MODEL.covariance.diagonal().sqrt().diag()
    prior = MODEL if covariance == "full" else LinearGaussianModel(MODEL.mean, root @ root, NOISE)
    unit = LinearGaussianModel(torch.zeros(DIM, dtype=torch.float64), torch.eye(DIM, dtype=torch.float64), NOISE)
    moved = Context.of(data.x @ root, data.y - (data.x @ MODEL.mean).unsqueeze(-1))
    found = after(procedure(prior, steps=7, covariance=covariance, whitened=True), data)
    plain = after(procedure(unit, steps=7, covariance=covariance), moved)
    torch.testing.assert_close(found.mean, MODEL.mean + plain.mean @ root.T, rtol=1e-10, atol=1e-12)
    variance = (root @ covariance_of(plain) @ root.T).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found.variance, variance, rtol=1e-10, atol=0)


def covariance_of(law: Distribution) -> Tensor:
    return law.covariance_matrix if isinstance(law, MultivariateNormal) else law.variance.diag_embed()


def test_plain_steps_diverge_beyond_twice_the_priors_variance_and_whitened_ones_do_not() -> None:
    prior = LinearGaussianModel(
        torch.zeros(DIM, dtype=torch.float64), 1e-4 * torch.eye(DIM, dtype=torch.float64), NOISE
    )
    data = linear_data()
    ends = [
        after(procedure(prior, steps=30, optimizer=rate(3e-4 * scale), whitened=whitened), data).mean.abs().max()
        for whitened, scale in ((False, 1.0), (True, 1e4 / 4))
    ]
    assert ends[0] > 1e6 * ends[1]


def newton(curvature: Tensor, kl_weight: float = 1.0) -> Preconditioned:
    """Steps of the inverse curvature at the fixed point, which make hundreds of steps a dozen."""
    log_sd = torch.full(curvature.shape[:2], 0.5 / kl_weight, dtype=torch.float64)
    blocks = [
        torch.block_diag(*pair) for pair in zip(torch.linalg.inv(curvature), torch.diag_embed(log_sd), strict=True)
    ]
    return Preconditioned(torch.stack(blocks))


def test_fixed_point_has_the_exact_mean_the_conditional_variances_and_the_known_gap() -> None:
    data = linear_data()
    mean, precision = exact(data)
    inference = procedure(steps=40, optimizer=newton(precision))
    q = after(inference, data)
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(q.variance, 1 / diagonal, rtol=1e-10, atol=0)
    gap = 0.5 * (diagonal.log().sum(-1) - torch.linalg.slogdet(precision).logabsdet)
    assert gap.min() > 0.05
    torch.testing.assert_close(evidence(data) - elbo(inference, data), gap, rtol=0, atol=1e-10)
    assert (q.variance < torch.linalg.inv(precision).diagonal(dim1=-2, dim2=-1)).all()


def test_full_covariance_closes_the_gap() -> None:
    """The exact posterior is where the ELBO is the evidence and its gradient 0, and descent goes there."""
    data = linear_data()
    mean, precision = exact(data)
    inference = procedure(steps=100, covariance="full", optimizer=rate(0.06))
    scale_tril = torch.linalg.cholesky(torch.linalg.inv(precision)).requires_grad_()
    belief = FullRank(mean.requires_grad_(), scale_tril, data)
    bound = inference.elbo(belief)
    torch.testing.assert_close(bound, evidence(data), rtol=0, atol=1e-10)
    for gradient in torch.autograd.grad(bound.sum(), (belief.mean, scale_tril)):
        torch.testing.assert_close(gradient.tril(), torch.zeros_like(gradient), rtol=0, atol=1e-9)
    gaps = [evidence(data) - elbo(inference.at(steps=steps), data) for steps in (0, 10, 100)]
    assert (gaps[0] > gaps[1]).all() and (gaps[1] > gaps[2]).all() and gaps[2].max() < 1e-3


@pytest.mark.parametrize("steps", [0, 1, 20])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_elbo_is_a_bound(covariance: str, steps: int) -> None:
    data = linear_data()
    assert (elbo(procedure(steps=steps, covariance=covariance), data) <= evidence(data) + 1e-10).all()


def test_descent_on_the_likelihood_forgets_the_prior_and_this_does_not() -> None:
    """On orthogonal inputs, ``X^T X = 6 I``, where steps of one rate contract all directions alike."""
    generator = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(TASKS, 6, DIM, generator=generator, dtype=torch.float64)).Q * math.sqrt(6)
    data = Context.of(x, torch.randn(TASKS, 6, 1, generator=generator, dtype=torch.float64))
    maml = GradientDescent(MODEL, x_dim=DIM, y_dim=1, steps=60, optimizer=rate(0.06))
    with torch.no_grad():
        point = maml.update(maml.init(TASKS), data).z
    least_squares = torch.linalg.lstsq(data.x, data.y).solution.squeeze(-1)
    mean, _ = exact(data)
    torch.testing.assert_close(point, least_squares, rtol=0, atol=1e-10)
    torch.testing.assert_close(after(procedure(steps=60, optimizer=rate(0.06)), data).mean, mean, rtol=0, atol=1e-10)
    assert (least_squares - mean).norm(dim=-1).min() > 0.05


def test_a_cold_posterior_is_that_of_repeated_data() -> None:
    """``kl_weight = 1/2`` and data seen twice have the same fixed point."""
    data = linear_data()
    twice = Context.of(torch.cat([data.x, data.x], 1), torch.cat([data.y, data.y], 1))
    _, precision = exact(twice)
    cold = after(procedure(steps=40, kl_weight=0.5, optimizer=newton(precision / 2, 0.5)), data)
    repeated = after(procedure(steps=40, optimizer=newton(precision)), twice)
    torch.testing.assert_close(cold.mean, repeated.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(cold.variance, repeated.variance, rtol=1e-10, atol=0)


def test_antithetic_draws_have_no_noise_in_the_mean_of_a_quadratic() -> None:
    data = linear_data()
    expected = after(procedure(steps=20), data).mean
    with torch_seeded(0):
        pairs = after(procedure(steps=20, draws=4, antithetic=True), data).mean
        single = after(procedure(steps=20, draws=4), data).mean
    torch.testing.assert_close(pairs, expected, rtol=0, atol=1e-10)
    assert (single - expected).abs().max() > 1e-3


def network_model() -> NetworkModel:
    with torch_seeded(0):
        network = mlp(DIM, 1, (4,), activation="tanh")
    return NetworkModel(network, GaussianOutput(1), scale=0.3, learn_scale=True).double()


@pytest.mark.parametrize(
    ("model", "covariance"), [(network_model(), "diagonal"), (MODEL, "diagonal"), (MODEL, "full")], ids=str
)
def test_inner_loss_is_pyros_elbo_of_the_program(model: TaskModel, covariance: str) -> None:
    """Value and gradients at the same draws."""
    data = linear_data()
    data = Context(data.x, data.y, torch.arange(SHOTS) < torch.tensor([[4], [2], [0]]))
    inference = procedure(model, steps=2, draws=6, covariance=covariance)
    with torch_seeded(1):
        belief = inference.update(inference.init(TASKS), data)
    scale = belief.log_sd if covariance == "diagonal" else belief.scale_tril
    wrt = [t.detach().requires_grad_() for t in (belief.mean, scale)]
    belief = type(belief)(*wrt, data)
    wrt += [p for p in model.parameters() if p.requires_grad]
    bound = TraceMeanField_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=2)
    with torch_seeded(2):
        ours = -inference.elbo(belief).sum()
    with torch_seeded(2):
        theirs = elbo_loss(bound, model, lambda _: posterior_guide(belief.posterior), data)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(ours, wrt), torch.autograd.grad(theirs, wrt), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class Waves(TaskModel):
    """``y = sin(x^T z)`` with noise, and a prior whose mean and scale have gradients."""

    def __init__(self, mean: Tensor, log_sd: Tensor) -> None:
        super().__init__()
        self.mean, self.log_sd = mean, log_sd

    def prior(self, batch: int) -> Distribution:
        return dist.Normal(self.mean.expand(batch, -1), self.log_sd.exp().expand(batch, -1)).to_event(1)

    def likelihood(self, z: Tensor, data: Context) -> Distribution:
        return dist.Normal((data.x * z).sum(-1, keepdim=True).sin(), NOISE).to_event(1)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_gradient_through_the_steps_by_finite_differences(covariance: str) -> None:
    """Into the prior's mean and scale, which are also the start, and into the rate; with checkpoints the same."""
    data = linear_data()
    data = Context(data.x[:1], data.y[:1], data.mask[:1])

    def end(mean: Tensor, log_sd: Tensor, inner: Tensor, checkpointed: bool = False) -> Tensor:
        optimizer = rate(0.0)
        del optimizer.rate
        optimizer.rate = inner
        options = {"covariance": covariance, "checkpointed": checkpointed, "draws": 2}
        inference = procedure(Waves(mean, log_sd), steps=3, optimizer=optimizer, **options)
        with torch_seeded(0):
            q = inference.update(inference.init(1), data).posterior
        return torch.cat([q.mean, q.variance], -1)

    mean = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    log_sd = torch.tensor([-1.0, -0.5, 0.2], dtype=torch.float64, requires_grad=True)
    inner = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (mean, log_sd, inner))
    gradients = [torch.autograd.grad(end(mean, log_sd, inner, c).sum(), (mean, log_sd, inner)) for c in (False, True)]
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-14)


def test_first_order_is_another_gradient_that_keeps_the_start() -> None:
    """On a quadratic the start's gradient is 1 instead of ``(I - rate Lambda)^steps``."""
    data = linear_data()
    _, precision = exact(data)
    model = copy.deepcopy(MODEL)
    for first_order in (False, True):
        model.mean = MODEL.mean.clone().requires_grad_()
        inference = procedure(model, steps=4, optimizer=rate(0.02), first_order=first_order)
        belief = inference.update(inference.init(TASKS), data)
        (found,) = torch.autograd.grad(belief.mean[0, 0], model.mean)
        prior = torch.linalg.inv(MODEL.covariance)
        power = torch.linalg.matrix_power(torch.eye(DIM) - 0.02 * precision[0], 4)
        full = power + (torch.eye(DIM) - power) @ torch.linalg.solve(precision[0], prior)
        torch.testing.assert_close(found, torch.eye(DIM)[0].double() if first_order else full[0], rtol=0, atol=1e-12)


def test_divergence_from_a_prior_that_is_not_gaussian_is_estimated_with_the_draws() -> None:
    """At many draws it is the integral, to four standard errors."""

    class HeavyTails(TaskModel):
        def prior(self, batch: int) -> Distribution:
            return dist.StudentT(5.0, torch.zeros(batch, 1, dtype=torch.float64), 0.7).to_event(1)

        def likelihood(self, z: Tensor, data: Context) -> Distribution:
            return dist.Normal(z.expand(*z.shape[:-2], data.size, 1), 1.0).to_event(1)

    model, count = HeavyTails(), 20_000
    inference = VariationalDescent(model, x_dim=1, y_dim=1, steps=0, draws=count)
    belief = inference.init(1)
    grid = torch.linspace(-30, 30, 200_001, dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        q, prior = belief.posterior, model.prior(1)
        integrand = q.log_prob(grid).exp() * (q.log_prob(grid) - prior.log_prob(grid))
        divergence = torch.trapezoid(integrand.squeeze(-1), grid[:, 0, 0])
        with torch_seeded(0):
            found = -inference.elbo(belief)
            error = prior.log_prob(q.sample((count,))).std() / math.sqrt(count)
    assert abs(found.item() - divergence.item()) < 4 * error.item()


def test_at_shares_parameters() -> None:
    inference = procedure(network_model(), steps=1, draws=4)
    other = inference.at(steps=3, draws=2)
    assert (other.steps, other.draws, inference.steps, inference.draws) == (3, 2, 1, 4)
    assert all(a is b for a, b in zip(inference.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 3, "antithetic": True}, r"even number of them with antithetic.*draws = 3"),
        ({"draws": 0}, r"draws >= 1.*got draws = 0"),
        ({"kl_weight": -1.0}, r"kl_weight >= 0.*-1.0"),
        ({"scale_rate": 0.0}, r"scale_rate > 0, got 'diagonal', 1, 1.0 and 0.0"),
        ({"steps": -1}, r"steps >= 0.*-1"),
    ],
)
def test_refused_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        procedure(**options)
