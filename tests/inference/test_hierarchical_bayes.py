"""MAML is hierarchical Bayes, as equations that hold to round-off: what steps are, and where meta-training ends.

Everything is float64. The oracle of every statement about posteriors is the conjugate posterior.
"""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.descent import SGD, Preconditioned, descend
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.implicit import conjugate_gradients, derivatives, minimum
from bayesmeta.inference.implicit_prior import adaptation, has_prior, implied_posterior, implied_prior
from bayesmeta.inference.newton import newton
from bayesmeta.inference.proximal import ProximalMAP
from bayesmeta.models.architectures import mlp
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.types import Context
from benchmarks import fixed_points
from benchmarks.fixed_points import LinearTasks, bayes_risk, best_rate, curvature, excess_risk, learned, shrinkage

TASKS, DIM, NOISE = 4, 3, 0.6
EXACT = {"rtol": 1e-10, "atol": 1e-10}
THETA = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
SIGMA = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, -0.1], [0.0, -0.1, 0.8]], dtype=torch.float64)


def data(shots: int = 6, seed: int = 0) -> Context:
    """Tasks with designs of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TASKS, shots, DIM, generator=generator, dtype=torch.float64)
    return Context.of(x, torch.randn(TASKS, shots, 1, generator=generator, dtype=torch.float64))


def descent(optimizer: nn.Module, steps: int, **options: str) -> GradientDescent:
    model = LinearGaussianModel(THETA, SIGMA, NOISE)
    return GradientDescent(model, x_dim=DIM, y_dim=1, steps=steps, optimizer=optimizer, **options)


def sgd(rate: float | Tensor) -> SGD:
    return SGD(torch.as_tensor(rate, dtype=torch.float64))


def after(inference: nn.Module, context: Context) -> Tensor:
    return inference.update(inference.init(context.batch), context).posterior.mean


def posteriors(context: Context, covariance: Tensor, noise: float, mean: Tensor = THETA) -> tuple[Tensor, Tensor]:
    """Means and covariances of the conjugate posterior, of each task under a prior covariance of its own."""
    found = []
    for b in range(context.batch):
        exact = ConjugateGaussian(LinearGaussianModel(mean, covariance[b], noise))
        own = Context.of(context.x[b : b + 1], context.y[b : b + 1])
        found.append(exact.update(exact.init(1), own).posterior)
    return torch.cat([p.mean for p in found]), torch.cat([p.covariance_matrix for p in found])


# The inner loss as the negative log-likelihood of a noise: its options, and that noise for n data.
LOSSES = {
    "sum": ({"objective": "nll", "reduction": "sum"}, lambda n: NOISE),
    "mean": ({"objective": "nll", "reduction": "mean"}, lambda n: NOISE * math.sqrt(n)),
    "squared_error": ({"objective": "squared_error", "reduction": "mean"}, lambda n: math.sqrt(n / 2)),
}


# --- steps are a posterior mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [6, 2])  # 2 are fewer than the weights: a Hessian with a null space
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_are_the_mode_under_the_implied_prior(loss: str, steps: int, shots: int) -> None:
    context, (options, noise) = data(shots), LOSSES[loss]
    hessian = context.x.mT @ context.x / noise(shots) ** 2
    rate = 0.4 / torch.linalg.eigvalsh(hessian).max().item()
    prior, posterior = implied_prior(hessian, rate, steps), implied_posterior(hessian, rate, steps)
    mean, covariance = posteriors(context, prior, noise(shots))
    z = after(descent(sgd(rate), steps, **options), context)
    torch.testing.assert_close(z, mean, **EXACT)
    torch.testing.assert_close(posterior, covariance, **EXACT)
    # The same, by the share of the start that is kept and the least-norm fit.
    kept = adaptation(hessian, rate, steps)
    fitted = (torch.linalg.pinv(context.x) @ context.y).squeeze(-1)
    expected = (kept @ THETA) + ((torch.eye(DIM) - kept) @ fitted.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(z, expected, **EXACT)


def test_directions_without_data_keep_exactly_what_the_steps_would_allow() -> None:
    hessian = torch.diag(torch.tensor([2.0, 0.0, 1e-18], dtype=torch.float64))
    for steps, rate in ((2, 0.3), (20, 0.01)):
        for covariance in (implied_prior(hessian, rate, steps), implied_posterior(hessian, rate, steps)):
            expected = torch.full((2,), steps * rate, dtype=torch.float64)
            torch.testing.assert_close(covariance.diagonal()[1:], expected, **EXACT)
        assert implied_prior(hessian, rate, steps)[0, 0] > steps * rate > implied_posterior(hessian, rate, steps)[0, 0]


def test_one_step_has_the_prior_precision_of_the_rate_less_the_hessian() -> None:
    hessian = data().x.mT @ data().x
    rate = 0.5 / torch.linalg.eigvalsh(hessian).max().item()
    expected = torch.eye(DIM, dtype=torch.float64) / rate - hessian
    torch.testing.assert_close(torch.linalg.inv(implied_prior(hessian, rate, 1)), expected, rtol=1e-10, atol=1e-8)


def test_a_rate_for_each_step() -> None:
    context = data()
    hessian = context.x.mT @ context.x / NOISE**2
    rates = torch.tensor([0.5, 0.1, 0.3], dtype=torch.float64) / torch.linalg.eigvalsh(hessian).max()
    mean, covariance = posteriors(context, implied_prior(hessian, rates, 3), NOISE)
    torch.testing.assert_close(after(descent(sgd(rates.unsqueeze(1)), 3), context), mean, **EXACT)
    torch.testing.assert_close(implied_posterior(hessian, rates, 3), covariance, **EXACT)
    torch.testing.assert_close(adaptation(hessian, rates, 3), torch.eye(DIM) - covariance @ hessian, **EXACT)
    with pytest.raises(ValueError, match="one for each step, got 2 steps"):
        implied_prior(hessian, rates, 2)


def test_an_even_number_of_steps_beyond_the_minimum_is_a_prior_and_an_odd_number_is_none() -> None:
    context = data()
    hessian = context.x.mT @ context.x / NOISE**2
    largest = torch.linalg.eigvalsh(hessian).amax(-1)
    rate = 1.5 / largest
    for b in range(TASKS):
        own = Context.of(context.x[b : b + 1], context.y[b : b + 1])
        for steps in (2, 6):
            prior = implied_prior(hessian[b : b + 1], rate[b].item(), steps)
            z = after(descent(sgd(rate[b]), steps), own)
            torch.testing.assert_close(z, posteriors(own, prior, NOISE)[0], **EXACT)
        for steps in (1, 3):
            with pytest.raises(ValueError, match=r"for 1 of 1 Hessians.*got 1\.5 with [13] steps; lower the rate"):
                implied_prior(hessian[b : b + 1], rate[b].item(), steps)
    middle = 1 / largest.sort().values[1:3].mean().item()
    assert torch.equal(has_prior(hessian, middle, 1), middle * largest < 1) and has_prior(hessian, middle, 1).any()
    assert has_prior(hessian, middle, 1).sum() == 2 and has_prior(hessian, 1.9 / largest.max().item(), 2).all()
    assert not has_prior(hessian, 2.1 / largest.min().item(), 2).any()
    assert not has_prior(hessian, -0.01, 1).any() and has_prior(hessian, 0.001, 1).all()


def test_negative_curvature_makes_the_posterior_wider_than_the_prior() -> None:
    """A loss that is not convex at the start: the algebra is the same."""
    hessian = torch.tensor([[1.0, 0.5], [0.5, -2.0]], dtype=torch.float64)
    prior, posterior = implied_prior(hessian, 0.2, 5), implied_posterior(hessian, 0.2, 5)
    torch.testing.assert_close(torch.linalg.inv(hessian + torch.linalg.inv(prior)), posterior, **EXACT)
    torch.testing.assert_close(adaptation(hessian, 0.2, 5), posterior @ torch.linalg.inv(prior), **EXACT)
    assert torch.linalg.eigvalsh(posterior - prior).max() > 0


PRECONDITIONER = 1e-3 * torch.tensor([[8.0, 3.0, 0.0], [3.0, 6.0, 1.0], [0.0, 1.0, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("kind", ["matrix", "rate of each weight"])
def test_preconditioned_steps_are_the_mode_under_their_implied_prior(kind: str, steps: int) -> None:
    context = data()
    matrix = PRECONDITIONER if kind == "matrix" else PRECONDITIONER.diagonal().diag()
    hessian = context.x.mT @ context.x / NOISE**2
    prior = implied_prior(hessian, 1.0, steps, matrix)
    mean, covariance = posteriors(context, prior, NOISE)
    z = after(descent(Preconditioned(matrix) if kind == "matrix" else sgd(matrix.diagonal()), steps), context)
    torch.testing.assert_close(z, mean, **EXACT)
    torch.testing.assert_close(implied_posterior(hessian, 1.0, steps, matrix), covariance, **EXACT)
    values, vectors = torch.linalg.eigh(matrix)
    half = (vectors * values.sqrt()) @ vectors.mT
    inner = half @ hessian @ half
    eye = torch.eye(DIM, dtype=torch.float64)
    powers = torch.linalg.matrix_power(torch.linalg.inv(eye - inner), steps)
    torch.testing.assert_close(prior, half @ (powers - eye) @ torch.linalg.inv(inner) @ half, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(adaptation(hessian, 1.0, steps, matrix), eye - covariance @ hessian, **EXACT)


def test_a_preconditioner_that_is_none_is_refused() -> None:
    hessian = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"positive semi-definite preconditioner, got one with eigenvalues from -0\.1"):
        implied_prior(hessian, 1.0, 1, torch.diag(torch.tensor([0.1, -0.1], dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"asymmetry of 0\.1"):
        implied_prior(hessian, 1.0, 1, torch.tensor([[0.5, 0.1], [0.0, 0.5]], dtype=torch.float64))


def test_one_step_preconditioned_by_the_posterior_covariance_is_exact_inference() -> None:
    context = data()
    precision = torch.linalg.inv(SIGMA) + context.x.mT @ context.x / NOISE**2
    z = after(descent(Preconditioned(torch.linalg.inv(precision)), 1), context)
    exact = ConjugateGaussian(LinearGaussianModel(THETA, SIGMA, NOISE))
    torch.testing.assert_close(z, after(exact, context), **EXACT)
    other = after(descent(Preconditioned(1.1 * torch.linalg.inv(precision)), 1), context)
    assert (other - after(exact, context)).abs().max() > 1e-2


def test_a_step_on_the_last_transitions_is_the_mode_given_them() -> None:
    """Gradient-based adaptation of a linear model online: precision ``I / rate - H`` of the window's own Hessian."""
    window = data(10).rows(7, 10)
    hessian, rate = window.x.mT @ window.x / NOISE**2, 0.01
    prior = torch.linalg.inv(torch.eye(DIM, dtype=torch.float64) / rate - hessian)
    prior = (prior + prior.mT) / 2
    torch.testing.assert_close(after(descent(sgd(rate), 1), window), posteriors(window, prior, NOISE)[0], **EXACT)


# --- the learned rate is Bayes' shrinkage --------------------------------------------------------------------------

FAMILY = NormalNormal(prior_mean=0.5, prior_scale=1.5, noise=1.0)
CASES = [(k, n, reduction) for k in (1, 3, 5) for n, reduction in ((5, "sum"), (5, "mean"), (1, "sum"))]


def moments(family: NormalNormal, n: int) -> tuple[Context, Context, Tensor]:
    """Four tasks with the family's first and second moments: averages over them are exact for quadratic losses."""
    mean, spread = float(family.model.mean), math.sqrt(float(family.model.covariance))
    z = mean + spread * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    average = z + family.model.noise / math.sqrt(n) * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    query = z.unsqueeze(1) + family.model.noise * torch.tensor([1.0, -1.0], dtype=torch.float64)
    contexts = (Context.of(torch.ones_like(y), y) for y in (average.view(4, 1, 1).expand(4, n, 1), query.unsqueeze(-1)))
    return *contexts, z


def optimised(learner: fixed_points.MAML, support: Context, query: Context) -> None:
    """The minimum of the learner's own loss on fixed tasks, by a second-order method."""
    optimizer = torch.optim.LBFGS(
        learner.parameters, max_iter=200, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = learner.loss(support, query)
        loss.backward()
        return loss

    optimizer.step(closure)


def with_rate(learner: fixed_points.MAML, rate: float, start: float = 0.5) -> None:
    """The learner at a rate and with a start of that value: ``weight + bias`` of a linear network."""
    with torch.no_grad():
        learner.inference.optimizer.rate.fill_(rate)
        for parameter in learner.inference.model.network.parameters():
            parameter.fill_(start / 2)


@pytest.mark.parametrize(("steps", "n", "reduction"), CASES)
def test_the_best_rate_is_the_one_of_the_posterior_mean(steps: int, n: int, reduction: str) -> None:
    """The meta-gradient is zero there, and points to it from both sides; the risk is the posterior's variance."""
    learner = fixed_points.rate_learner(FAMILY, n, steps, reduction)
    learner.inference.double()
    support, query, z = moments(FAMILY, n)
    best = best_rate(FAMILY, n, steps, reduction)
    slopes = []
    for share in (0.9, 1.0, 1.01):
        with_rate(learner, share * best)
        gradients = torch.autograd.grad(learner.loss(support, query), learner.parameters)
        slopes.append([best * g.item() if not g.ndim else g.sum().item() for g in gradients])
    assert all(abs(slope) < 1e-10 for slope in slopes[1])
    rates = [[slope[i] for slope in slopes] for i, p in enumerate(learner.parameters) if not p.ndim]
    assert rates[0][0] < -1e-5 and rates[0][2] > 1e-7
    with_rate(learner, best)
    risk = (after(learner.inference, support).sum(-1) - z).square().mean().item()
    exact = copy.deepcopy(FAMILY.exact).double()
    variance = exact.update(exact.init(4), support).posterior.variance
    assert risk == pytest.approx(bayes_risk(FAMILY, n), rel=1e-10)
    torch.testing.assert_close(variance, torch.full((4, 1), risk, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_rate_for_some_number_of_data_is_wrong_for_others_by_the_formula(reduction: str) -> None:
    learner = fixed_points.rate_learner(FAMILY, 5, 2, reduction)
    learner.inference.double()
    with_rate(learner, best_rate(FAMILY, 5, 2, reduction), start=0.7)
    for n in (1, 4, 20):
        support, _, z = moments(FAMILY, n)
        risk = (after(learner.inference, support).sum(-1) - z).square().mean().item()
        _, kept, start = learned(learner, FAMILY, n)
        expected = excess_risk(FAMILY, n, kept, start)
        assert risk - bayes_risk(FAMILY, n) == pytest.approx(expected, rel=1e-6) and expected > 1e-3


def test_excess_risk_of_any_linear_adaptation() -> None:
    """``tr (M - M*) (Sigma + H^-1) (M - M*)^T A`` above Bayes, of steps on an anisotropic design."""
    x = data().x[0]
    hessian, eye = x.mT @ x / NOISE**2, torch.eye(DIM, dtype=torch.float64)
    second = data(seed=1).x[0].mT @ data(seed=1).x[0]
    error = torch.linalg.inv(hessian)

    def risk(kept: Tensor) -> Tensor:
        """Of ``kept theta + (I - kept) fit``: prior and noise apart."""
        return (second * (kept @ SIGMA @ kept.mT + (eye - kept) @ error @ (eye - kept).mT)).sum()

    best, kept = torch.linalg.inv(eye + SIGMA @ hessian), adaptation(hessian, 0.01, 4)
    off = kept - best
    torch.testing.assert_close(risk(kept) - risk(best), (off @ (SIGMA + error) @ off.mT * second).sum(), **EXACT)
    posterior = torch.linalg.inv(torch.linalg.inv(SIGMA) + hessian)
    torch.testing.assert_close(risk(best), (second * posterior).sum(), **EXACT)


def test_on_drawn_tasks_the_learned_steps_are_a_regression_and_that_is_bayes_up_to_its_standard_error() -> None:
    """4000 tasks of the family: what is learned keeps 1 - slope of queries' averages on supports', to round-off.

    The slope's own error is the only difference from Bayes' shrinkage: less than 4.5 standard errors (1 in 100,000).
    """
    n = 5
    learner = fixed_points.rate_learner(FAMILY, n, 1, "sum", meta_batch=4000, queries=3)
    learner.inference.double()
    support, query = (Context(c.x.double(), c.y.double(), c.mask) for c in learner.draw())
    optimised(learner, support, query)
    _, kept, _ = learned(learner, FAMILY, n)
    seen, target = support.y.mean((1, 2)), query.y.mean((1, 2))
    seen, target = seen - seen.mean(), target - target.mean()
    slope = (seen @ target / (seen @ seen)).item()
    error = ((target - slope * seen).square().mean() / (seen @ seen)).sqrt().item()
    assert kept == pytest.approx(1 - slope, abs=1e-6)
    assert abs(kept - shrinkage(FAMILY, n)) < 4.5 * error
    assert abs(kept - shrinkage(FAMILY, 20)) > 4.5 * error, "the twin: Bayes' shrinkage for another number of data"


def test_training_as_it_runs_reaches_the_risk_of_the_posterior() -> None:
    """By ``step`` itself: within 1 % of Bayes' risk, from 20 % above it and more."""
    options = {"meta_batch": 100, "updates": 250, "lr": 0.02, "lr_half": 25}
    learner = fixed_points.rate_learner(FAMILY, 5, 1, "mean", **options)
    before = excess_risk(FAMILY, 5, *learned(learner, FAMILY, 5)[1:])
    learner.step()
    rate, kept, start = learned(learner, FAMILY, 5)
    assert before > 0.2 * bayes_risk(FAMILY, 5)
    assert excess_risk(FAMILY, 5, kept, start) < 0.01 * bayes_risk(FAMILY, 5)
    assert rate == pytest.approx(best_rate(FAMILY, 5, 1, "mean"), rel=0.05)
    assert curvature(FAMILY, 5, "sum") == 5 * curvature(FAMILY, 5, "mean")


# --- meta-training's fixed points ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear() -> LinearTasks:
    return LinearTasks.draw()


@pytest.mark.parametrize("name", ["MAML", "FOMAML", "Reptile", "iMAML"])
def test_each_algorithm_ends_at_its_own_fixed_point(name: str, linear: LinearTasks) -> None:
    points = linear.points(linear.y)
    gradient = fixed_points.meta_gradient(fixed_points.learners(linear)[name], linear)
    torch.testing.assert_close(gradient(points[name]), torch.zeros(3, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(fixed_points.root(gradient, 3), points[name], **EXACT)
    for other in points.keys() - {name}:
        assert gradient(points[other]).norm() > 1e-2, f"{name} ends where {other} does"


def test_the_evidence_has_its_maximum_at_generalised_least_squares(linear: LinearTasks) -> None:
    x, y = linear.design, linear.y
    covariance = linear.noise**2 * torch.eye(x.shape[1], dtype=x.dtype) + linear.scale**2 * x @ x.mT

    def evidence(theta: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(x @ theta, covariance).log_prob(y).sum()

    point = linear.points(y)["evidence"]
    slope = torch.func.grad(evidence)
    torch.testing.assert_close(slope(point), torch.zeros(3, dtype=torch.float64), **EXACT)
    residual = (y - x @ linear.theta).unsqueeze(-1)
    by_hand = (x.mT @ torch.linalg.solve(covariance, residual)).sum(0).squeeze(-1)
    torch.testing.assert_close(slope(linear.theta), by_hand, **EXACT)


def test_the_evidence_estimates_the_prior_best(linear: LinearTasks) -> None:
    """Gauss and Markov: all five are linear in the targets and unbiased."""
    errors = linear.errors()
    assert min(errors, key=errors.__getitem__) == "evidence" and sorted(errors.values())[1] > 1.01 * errors["evidence"]
    truth = (linear.design @ linear.theta.unsqueeze(-1)).squeeze(-1)
    for point in linear.points(truth).values():
        torch.testing.assert_close(point, linear.theta, **EXACT)


# --- the mode with an implicit gradient ----------------------------------------------------------------------------


def proximal(context: Context, scale: float, **options: object) -> tuple[ProximalMAP, LinearGaussianModel]:
    eye = torch.eye(DIM, dtype=torch.float64)
    model = LinearGaussianModel(THETA.clone().requires_grad_(), scale**2 * eye, NOISE)
    hessian = context.x.mT @ context.x / NOISE**2 + eye / scale**2
    options = {"steps": 1, "optimizer": Preconditioned(torch.linalg.inv(hessian)), "cg_steps": DIM} | options
    return ProximalMAP(model, x_dim=DIM, y_dim=1, **options), model


def test_the_proximal_point_is_the_posterior_mode_and_its_gradient_the_resolvent() -> None:
    context, scale = data(), 0.7
    inference, model = proximal(context, scale)
    eye = torch.eye(DIM, dtype=torch.float64)
    z = after(inference, context)
    torch.testing.assert_close(z, posteriors(context, (scale**2 * eye).expand(TASKS, DIM, DIM), NOISE)[0], **EXACT)
    g = data(seed=3).x[:, 0]
    (found,) = torch.autograd.grad(z, model.mean, g)
    kept = torch.linalg.inv(eye + scale**2 * context.x.mT @ context.x / NOISE**2)
    torch.testing.assert_close(found, (kept @ g.unsqueeze(-1)).sum(0).squeeze(-1), **EXACT)


def test_conjugate_gradients_come_closer_with_every_step() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 8, 8, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT + torch.diag(torch.linspace(0.1, 3.0, 8, dtype=torch.float64))
    b = torch.randn(5, 8, generator=generator, dtype=torch.float64) * torch.tensor([[1e-6], [1.0], [1e6], [1.0], [0.0]])
    exact = torch.linalg.solve(matrix, b)

    def product(v: Tensor) -> Tensor:
        return (matrix @ v.unsqueeze(-1)).squeeze(-1)

    errors = []
    for steps in range(9):
        off = conjugate_gradients(product, b, steps=steps).x - exact
        errors.append((off * product(off)).sum(-1)[:4])
    assert all((after < before).all() for before, after in pairwise(errors))
    assert (errors[-1] < 1e-12 * errors[0]).all()
    found = conjugate_gradients(product, b, steps=30)
    torch.testing.assert_close(found.x, exact, rtol=1e-8, atol=0)
    assert (found.residual < 1e-10).all() and found.definite.all() and (found.x[4] == 0).all()
    damped = conjugate_gradients(product, b, steps=30, damping=2.0).x
    torch.testing.assert_close(
        damped, torch.linalg.solve(matrix + 2 * torch.eye(8, dtype=torch.float64), b), rtol=1e-8, atol=0
    )
    indefinite = conjugate_gradients(lambda v: product(v) * torch.tensor([[1.0]] * 4 + [[-1.0]]), b + 1, steps=30)
    assert indefinite.definite.tolist() == [True] * 4 + [False] and indefinite.x.isfinite().all()


def small_network() -> NetworkModel:
    """A network with a part that all tasks share, noise and prior scales that are learned."""
    with torch_seeded(0):
        network = mlp(DIM, 1, (4, 3), activation="tanh")
        output = GaussianOutput(1, noise=0.9, learn=True)
        return NetworkModel(network, output, adapt=("2.", "4."), scale=0.3, learn_scale=True).double()


def test_the_implicit_gradient_of_everything_is_that_through_a_long_descent() -> None:
    """A network: prior mean and scales of its adapted part, its shared part and the noise."""
    support, query, model = data(5), data(4, seed=1), small_network()
    options = {"x_dim": DIM, "y_dim": 1, "optimizer": sgd(0.1), "reduction": "mean"}
    implicit = ProximalMAP(model, steps=100, cg_steps=40, **options)
    unrolled = GradientDescent(model, steps=100, objective="joint", **options)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(inference: nn.Module) -> tuple[Tensor, ...]:
        return torch.autograd.grad(-model.log_likelihood(after(inference, support), query).mean(), parameters)

    accuracy = implicit.accuracy(support, query)
    assert accuracy.slope.max() < 1e-8 and accuracy.residual.max() < 1e-10 and accuracy.definite.all()
    ours, theirs = gradients(implicit), gradients(unrolled)
    assert len(ours) == 8  # two shared, four adapted, scale, noise
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    rough = gradients(ProximalMAP(model, steps=100, cg_steps=1, **options))
    assert max(((a - b).norm() / b.norm()).item() for a, b in zip(rough, theirs, strict=True)) > 1e-2
    summed = ProximalMAP(model, x_dim=DIM, y_dim=1, steps=100, optimizer=sgd(0.02))
    torch.testing.assert_close(after(summed, support), after(implicit, support), rtol=0, atol=1e-8)


class Count:
    """How many numbers autograd holds."""

    def __init__(self) -> None:
        self.held = 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(self, tensor)


class Held:
    def __init__(self, count: Count, tensor: Tensor) -> None:
        self.count, self.tensor = count, tensor.detach()
        count.held += tensor.numel()

    def __del__(self) -> None:
        self.count.held -= self.tensor.numel()


def test_memory_of_the_implicit_gradient_does_not_depend_on_the_steps() -> None:
    def held(kind: type[nn.Module], steps: int) -> int:
        model, count = small_network(), Count()
        inference = kind(model, x_dim=DIM, y_dim=1, steps=steps, optimizer=sgd(0.01))
        with torch.autograd.graph.saved_tensors_hooks(count.pack, lambda held: held.tensor):
            belief = inference.update(inference.init(TASKS), data())
        assert belief.z.requires_grad
        return count.held

    assert held(ProximalMAP, 2) == held(ProximalMAP, 20) > 0
    assert held(GradientDescent, 20) > 5 * held(GradientDescent, 2)


def test_newton_steps_lower_every_loss_whatever_its_scale() -> None:
    """From a start where the curvature is not positive, of losses of four magnitudes, where plain steps diverge."""
    model, support = small_network(), data(5)
    with torch.no_grad():
        model.log_scale.fill_(1.0)
    start = model.prior(TASKS).mean.detach() + torch.linspace(-1, 1, TASKS, dtype=torch.float64).unsqueeze(1)
    scale = torch.tensor([1e-6, 1.0, 1e3, 1e9], dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return -scale * model.log_joint(z, support)

    assert not conjugate_gradients(derivatives(loss, start)[1], start, steps=30).definite.all()
    points = [start, *(newton(loss, start, steps, cg_steps=30) for steps in (1, 2, 4))]
    for before, after in pairwise(points):
        assert (loss(after) < loss(before)).all()
    slope, first = (derivatives(loss, z)[0].norm(dim=-1) for z in (newton(loss, start, 20, cg_steps=30), start))
    assert (slope < 1e-6 * first).all()
    alone = newton(lambda z: loss(z.expand(TASKS, -1))[:1], start[:1], 4, cg_steps=30)
    torch.testing.assert_close(alone, points[3][:1], rtol=1e-6, atol=1e-8)
    plain = loss(descend(loss, start, sgd(0.1), 3).detach())
    assert not plain[3] < loss(start)[3]


def test_accuracy_tells_a_point_that_is_no_minimum() -> None:
    support, query, model = data(5), data(4, seed=1), small_network()
    few = ProximalMAP(model, x_dim=DIM, y_dim=1, steps=2, optimizer=sgd(0.03), cg_steps=1)
    accuracy = few.accuracy(support, query)
    assert accuracy.slope.min() > 0.1 and accuracy.residual.min() > 0.01
    with torch.no_grad():
        model.log_scale.fill_(3.0)  # hardly a prior: the network's own curvature decides
    far = ProximalMAP(model, x_dim=DIM, y_dim=1, steps=0, cg_steps=40)
    assert not far.accuracy(support, query).definite.all()


def test_a_minimum_is_differentiated_once_and_only_where_it_can_be() -> None:
    context = data()
    inference, model = proximal(context, 0.7)
    z = after(inference, context)
    with pytest.raises(RuntimeError, match="cannot be differentiated again: expected create_graph=False"):
        torch.autograd.grad(z.square().sum(), model.mean, create_graph=True)
    with torch.no_grad():
        assert not after(inference, context).requires_grad
        assert minimum(lambda z: z.square().sum(-1), z.detach(), steps=1) is not None
    empty = inference.update(inference.init(TASKS), context.rows(0, 0)).z
    torch.testing.assert_close(torch.autograd.grad(empty.sum(), model.mean)[0], TASKS * torch.ones(DIM).double())
    with pytest.raises(ValueError, match="an optimiser with nothing to learn"):
        proximal(context, 0.7, optimizer=SGD(0.1, learn=True))
    with pytest.raises(ValueError, match="expected cg_steps >= 1 and damping >= 0, got 0 and 0"):
        proximal(context, 0.7, cg_steps=0)
