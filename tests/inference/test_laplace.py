"""Laplace's method in float64: exact where the model is linear and Gaussian, against quadrature where it is not."""

import copy
import math
from collections.abc import Callable
from itertools import product

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from bayesmeta.inference import curvature as forms
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.curvature import fisher_root, hessian
from bayesmeta.inference.descent import SGD
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.kfac import Kronecker
from bayesmeta.inference.laplace import CurvatureKind, Laplace
from bayesmeta.inference.proximal import ProximalMAP
from bayesmeta.models.architectures import mlp
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.low_rank_precision import LowRankPrecision
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import ClassOutput, GaussianOutput, Output, SpreadOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context

TASKS, DIM, NOISE = 3, 3, 0.8
MODEL = LinearGaussianModel(
    torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64),
    torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.7, -0.2], [0.0, -0.2, 0.5]], dtype=torch.float64),
    NOISE,
)
KINDS: tuple[CurvatureKind, ...] = ("hessian", "fisher", "diagonal", "kfac")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(shots: int, y_dim: int = 1) -> Context:
    """Data of three tasks, the last row of the second being padding."""
    mask = torch.ones(TASKS, shots, dtype=torch.bool)
    mask[1, -1] = shots < 2
    return Context(random(TASKS, shots, DIM), random(TASKS, shots, y_dim, seed=1), mask)


def at_the_mode(model: TaskModel, curvature: CurvatureKind, *, y_dim: int = 1, newton: int = 1) -> Laplace:
    """From the prior's mean by Newton's method, whose first step is exact on a quadratic."""
    descent = GradientDescent(model, x_dim=DIM, y_dim=y_dim, steps=0, objective="joint")
    return Laplace(descent, curvature=curvature, newton=newton)


class Linear(TaskModel):
    """``y = x^T z`` through a link, with a diagonal Gaussian prior."""

    def __init__(self, link: Callable[[Tensor], Distribution], dim: int = DIM, scale: float = 0.9) -> None:
        super().__init__()
        self.mean, self.scale = nn.Parameter(torch.full((dim,), 0.3, dtype=torch.float64)), scale
        self.link = link

    def prior(self, batch: int) -> Distribution:
        return dist.Normal(self.mean.expand(batch, -1), self.scale).to_event(1)

    def likelihood(self, z: Tensor, data: Context) -> Distribution:
        return self.link((data.x * z).sum(-1, keepdim=True))


def gaussian(out: Tensor) -> Distribution:
    return dist.Normal(out, NOISE).to_event(1)


def logistic(out: Tensor) -> Distribution:
    return dist.Bernoulli(logits=out).to_event(1)


def poisson(out: Tensor) -> Distribution:
    return dist.Poisson(out.exp()).to_event(1)


# --- exact where the log joint is quadratic ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hessian", "fisher"])
@pytest.mark.parametrize("shots", [2, 6])
def test_linear_gaussian_evidence_posterior_and_gradient_are_exact(shots: int, kind: CurvatureKind) -> None:
    """``d log p / d mu = X^T S^{-1} (y - X mu)`` with ``S = noise^2 I + X Sigma X^T``."""
    data = Context.of(numbers(shots).x, numbers(shots).y)
    model = copy.deepcopy(MODEL)
    model.mean = MODEL.mean.clone().requires_grad_()
    laplace = at_the_mode(model, kind)
    belief = laplace.update(laplace.init(TASKS), data)
    spread = NOISE**2 * torch.eye(shots, dtype=torch.float64) + data.x @ MODEL.covariance @ data.x.mT
    away = data.y - (data.x @ MODEL.mean).unsqueeze(-1)
    evidence = MultivariateNormal(torch.zeros(shots).double(), spread).log_prob(away.squeeze(-1))
    torch.testing.assert_close(laplace.log_evidence(belief), evidence, rtol=0, atol=1e-10)
    (found,) = torch.autograd.grad(laplace.log_evidence(belief).sum(), model.mean)
    expected = (data.x.mT @ torch.linalg.solve(spread, away)).squeeze(-1).sum(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    conjugate = ConjugateGaussian(MODEL)
    exact = conjugate.update(conjugate.init(TASKS), data).posterior
    torch.testing.assert_close(belief.posterior.mean.detach(), exact.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(belief.posterior.covariance_matrix, exact.covariance_matrix, rtol=0, atol=1e-10)


def test_low_rank_and_dense_are_the_same_belief() -> None:
    """Fewer data than dimensions take another road; the density and the evidence do not."""
    data = numbers(2)
    model = Linear(gaussian)
    low_rank, dense = at_the_mode(model, "fisher"), at_the_mode(model, "hessian")
    beliefs = [laplace.update(laplace.init(TASKS), data) for laplace in (low_rank, dense)]
    assert [type(b.curvature) for b in beliefs] == [forms.LowRank, forms.Full]
    z = random(5, TASKS, DIM, seed=3)
    for measure in (
        lambda b: b.posterior.log_prob(z),
        lambda b: b.posterior.variance,
        lambda b: b.posterior.mean,
        lambda b: b.curvature.log_det(),
        low_rank.log_evidence,
    ):
        torch.testing.assert_close(measure(beliefs[0]), measure(beliefs[1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["descent", "implicit"])
def test_descent_on_the_joint_ends_where_newton_does(mode: str) -> None:
    data = numbers(4)
    model = Linear(logistic)
    data = Context(data.x, (data.y > 0).double(), data.mask)
    sgd = SGD(torch.tensor(0.2, dtype=torch.float64))
    options = {"x_dim": DIM, "y_dim": 1, "steps": 150, "optimizer": sgd}
    found = Laplace(
        GradientDescent(model, objective="joint", **options)
        if mode == "descent"
        else ProximalMAP(model, **options, cg_steps=6)
    )
    newton = at_the_mode(model, "fisher", newton=8)
    gradients = []
    for laplace in (found, newton):
        belief = laplace.update(laplace.init(TASKS), data)
        gradients.append(torch.autograd.grad(laplace.log_evidence(belief).sum(), model.mean)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)


# --- the error where it is not ------------------------------------------------------------------------------------


def quadrature(model: TaskModel, data: Context, times: int, dim: int) -> Tensor:
    """``log p(y)`` of data seen ``times`` times by the trapezoidal rule, here accurate to round-off."""
    axis = torch.linspace(-5, 5, 4001 if dim == 1 else 501, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, 1, dim)
    with torch.no_grad():
        log_joint = model.log_prior(points) + times * model.log_likelihood(points, data)
    return log_joint.logsumexp(0) + dim * math.log(axis[1] - axis[0])


@pytest.mark.parametrize("link", [logistic, poisson], ids=lambda link: link.__name__)
@pytest.mark.parametrize("dim", [1, 2])
def test_error_of_the_evidence_falls_as_one_over_n(dim: int, link: Callable[[Tensor], Distribution]) -> None:
    """The same data four times as often leave a quarter of the error, as Laplace's expansion has it."""
    model = Linear(link, dim)
    laplace = Laplace(
        GradientDescent(model, x_dim=dim, y_dim=1, steps=0, objective="joint"), curvature="hessian", newton=8
    )
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, 1.0], [-1.0, 2.0], [-2.0, 0.0]], dtype=torch.float64)[
        None, :, :dim
    ]
    y = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0] if link is logistic else [3.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    base = Context.of(x, y.reshape(1, 5, 1))

    def error(times: int) -> float:
        data = Context.of(x.repeat(1, times, 1), base.y.repeat(1, times, 1))
        belief = laplace.update(laplace.init(1), data)
        return float(laplace.log_evidence(belief).detach() - quadrature(model, base, times, dim))

    few, many, more = (error(times) for times in (1, 32, 128))
    assert abs(few) < 0.1, "nats, with five data"
    assert 0.24 < more / many < 0.27


# --- curvature ----------------------------------------------------------------------------------------------------


def network(output: Output, widths: tuple[int, ...] = (4,), **options: object) -> NetworkModel:
    with torch_seeded(0):
        net = mlp(DIM, output.width, widths, activation="tanh")
    return NetworkModel(net, output, **{"scale": 0.7, **options}).double()


OUTPUTS: dict[str, Output] = {
    "numbers": GaussianOutput(2, noise=0.6),
    "spread": SpreadOutput(1),
    "class": ClassOutput(3),
}


def targets(output: Output, shots: int = 4) -> Context:
    data = numbers(shots, output.width if isinstance(output, GaussianOutput) else 1)
    if isinstance(output, ClassOutput):
        labels = torch.arange(TASKS * shots).reshape(TASKS, shots) % 3
        return Context(data.x, nn.functional.one_hot(labels, 3).double(), data.mask)
    return data


@pytest.mark.parametrize("name", OUTPUTS)
def test_hessian_is_torchs_of_each_task_alone(name: str) -> None:
    model, data = network(OUTPUTS[name]), targets(OUTPUTS[name])
    z = random(TASKS, sum(model.sizes), seed=4)
    found = hessian(lambda z: -model.log_joint(z, data), z)
    for b in range(TASKS):
        alone = Context(data.x[b : b + 1], data.y[b : b + 1], data.mask[b : b + 1])

        def loss(z: Tensor, alone: Context = alone) -> Tensor:
            return -model.log_joint(z.unsqueeze(0), alone).sum()

        expected = torch.autograd.functional.hessian(loss, z[b])
        torch.testing.assert_close(found[b], expected, rtol=1e-10, atol=1e-10)


def expected_outer_product(model: NetworkModel, z: Tensor, data: Context) -> Tensor:
    """``\\sum_n E_y [score score^T]`` of one task: classes by enumeration, numbers by Gauss-Hermite quadrature."""
    total = torch.zeros(len(z), len(z), dtype=torch.float64)
    nodes = ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6))  # exact for polynomials of degree 5
    for n in data.mask[0].nonzero().flatten().tolist():
        x = data.x[:, n : n + 1]
        law = model.likelihood(z[None, None], Context(x, data.y[:, n : n + 1], data.mask[:, n : n + 1]))
        if isinstance(model.output, ClassOutput):
            cases = [(law.probs[0, 0, k], torch.eye(3).double()[k]) for k in range(3)]
        else:
            mean, scale = law.base_dist.loc[0, 0], law.base_dist.scale[0, 0]
            each = [torch.tensor(case, dtype=torch.float64) for case in product(nodes, repeat=len(mean))]
            cases = [(case[:, 1].prod(), mean + scale * case[:, 0]) for case in each]
        for probability, y in cases:
            datum = Context.of(x, y.detach().reshape(1, 1, -1))

            def score(z: Tensor, datum: Context = datum) -> Tensor:
                return model.log_likelihood(z.unsqueeze(0), datum).sum()

            slope = torch.autograd.functional.jacobian(score, z)
            total += probability * torch.outer(slope, slope)
    return total.detach()


@pytest.mark.parametrize("name", OUTPUTS)
def test_fisher_is_the_expected_outer_product_of_scores(name: str) -> None:
    model, data = network(OUTPUTS[name], (2,)), targets(OUTPUTS[name], 3)
    z = random(TASKS, sum(model.sizes), seed=5)
    root = fisher_root(model, z, data)
    for b in (0, 1):
        alone = Context(data.x[b : b + 1], data.y[b : b + 1], data.mask[b : b + 1])
        expected = expected_outer_product(model, z[b], alone)
        torch.testing.assert_close(root[b].mT @ root[b], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("link", [gaussian, logistic, poisson], ids=lambda link: link.__name__)
def test_fisher_is_the_hessian_where_natural_parameters_are_linear(link: Callable[[Tensor], Distribution]) -> None:
    model, data = Linear(link), numbers(4)
    data = Context(data.x, (data.y > 0).double(), data.mask)
    z = random(TASKS, DIM, seed=6)
    root = fisher_root(model, z, data)
    exact = hessian(lambda z: -model.log_likelihood(z, data), z)
    torch.testing.assert_close(root.mT @ root, exact, rtol=1e-10, atol=1e-12)


# --- Kronecker products -------------------------------------------------------------------------------------------


def test_kfac_is_exact_for_one_linear_layer_with_gaussian_noise() -> None:
    output = GaussianOutput(2, noise=0.6)
    with torch_seeded(0):
        model = NetworkModel(nn.Sequential(nn.Linear(DIM, 2)), output, scale=0.7).double()
    data = numbers(4, y_dim=2)
    beliefs = []
    for kind in ("kfac", "hessian"):
        laplace = at_the_mode(model, kind, y_dim=2)
        beliefs.append(laplace.update(laplace.init(TASKS), data))
    z = random(5, TASKS, DIM * 2 + 2, seed=3)
    assert isinstance(beliefs[0].curvature, Kronecker)
    for measure in (
        lambda b: b.posterior.log_prob(z),
        lambda b: b.posterior.variance,
        lambda b: b.posterior.mean,
        lambda b: b.curvature.log_det(),
    ):
        torch.testing.assert_close(measure(beliefs[0]), measure(beliefs[1]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["numbers", "class"])
def test_kfac_blocks_are_products_of_means(name: str) -> None:
    """Of the network's layers one by one, from each datum's Fisher information by autograd and a loop."""
    model, data = network(OUTPUTS[name]), targets(OUTPUTS[name])
    laplace = at_the_mode(model, "kfac", y_dim=data.y.shape[-1])
    z = random(TASKS, sum(model.sizes), seed=7)
    found = laplace.curvature_at(z, data)
    assert isinstance(found, Kronecker)
    for b in range(TASKS):
        weights = {name: part[b] for name, part in model.split(z).items()}
        rows = data.x[b][data.mask[b]]
        hidden = (rows @ weights["0.weight"].T + weights["0.bias"]).detach().requires_grad_()
        out = hidden.tanh() @ weights["2.weight"].T + weights["2.bias"]
        probs = out.softmax(-1)
        inner = (
            torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2)
            if name == "class"
            else torch.eye(2).double().expand(len(rows), 2, 2) / model.output.log_noise.exp() ** 2
        )
        jacobian = (1 - hidden.tanh().square()).unsqueeze(-2) * weights["2.weight"]
        for inputs, information, block in (
            (rows, (jacobian.mT @ inner @ jacobian).sum(0), found.blocks[0]),
            (hidden.tanh(), inner.sum(0), found.blocks[1]),
        ):
            inputs = torch.cat([inputs, torch.ones(len(rows), 1)], 1)
            a = inputs.T @ inputs / len(rows)
            expected = (
                torch.kron(information, a)
                + torch.eye(len(information) * len(a), dtype=torch.float64) / model.log_scale[0].exp() ** 2
            )
            basis = torch.kron(block.left[b].contiguous(), block.right[b].contiguous())
            precision = basis @ block.values[b].flatten().diag() @ basis.T
            torch.testing.assert_close(precision, expected, rtol=1e-9, atol=1e-9)
            assert block.places.shape == (len(information), len(a))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: network(OUTPUTS["numbers"], learn_scale=True), None),
        (lambda: NetworkModel(nn.Bilinear(1, 1, 1), GaussianOutput(1)), r"sequence of linear and elementwise layers"),
        (lambda: NetworkModel(mlp(3, 2, (4,), norm=True), GaussianOutput(2)), r"linear and elementwise layers"),
        (lambda: Linear(gaussian), r"kfac: expected a NetworkModel"),
        (lambda: network(OUTPUTS["numbers"], adapt=("0.weight",)), r"all parameters of layer '0'"),
    ],
)
def test_kfac_says_what_it_is_for(model: Callable[[], TaskModel], message: str | None) -> None:
    if message is not None:
        with pytest.raises(ValueError, match=message):
            at_the_mode(model(), "kfac")
        return
    learned = model()
    laplace = at_the_mode(learned, "kfac", y_dim=2)
    with torch.no_grad():
        learned.log_scale[0] += 1
    with pytest.raises(ValueError, match=r"one scale for all of layer '0'.*curvature='fisher'"):
        laplace.init(2)


# --- laws, draws, gradients, refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_laws_mean_and_variance(kind: CurvatureKind) -> None:
    """Each of 19 coordinates within five standard errors, which fails by chance once in 50 000 runs."""
    model, count = network(OUTPUTS["numbers"], (2,)), 4000
    laplace = at_the_mode(model, kind, y_dim=2, newton=0)
    data = targets(OUTPUTS["numbers"])
    data = data.rows(0, 0) if kind == "hessian" else data  # whose Hessian is positive definite at the prior alone
    with torch.no_grad(), torch_seeded(0):
        law = laplace.update(laplace.init(TASKS), data).posterior
        draws = law.sample((count,))
    assert draws.shape == (count, TASKS, 14)
    error = law.variance.sqrt() / math.sqrt(count)
    assert ((draws.mean(0) - law.mean).abs() < 5 * error).all()
    assert ((draws.var(0) / law.variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    deviation = draws - law.mean
    quadratic = -2 * (law.log_prob(draws) - law.log_prob(law.mean))  # chi^2 with as many degrees as dimensions
    assert abs(quadratic.mean().item() / 14 - 1) < 5 * math.sqrt(2 / 14 / count / TASKS)
    assert deviation.isfinite().all()


def test_low_rank_precision_is_the_gaussian_of_that_precision() -> None:
    loc, diagonal, root = random(2, 5), random(2, 5, seed=1).exp(), random(2, 3, 5, seed=2)
    law = LowRankPrecision(loc, diagonal, root)
    dense = MultivariateNormal(loc, precision_matrix=diagonal.diag_embed() + root.mT @ root)
    z = random(4, 2, 5, seed=3)
    torch.testing.assert_close(law.log_prob(z), dense.log_prob(z), rtol=1e-12, atol=0)
    torch.testing.assert_close(law.variance, dense.variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(law.solve(z), (dense.covariance_matrix @ z.unsqueeze(-1)).squeeze(-1))
    assert law.expand((4, 2)).log_prob(z).equal(law.log_prob(z)) and law.expand((4, 2)).rsample().shape == z.shape
    prior = LowRankPrecision(loc, diagonal, root[:, :0])
    torch.testing.assert_close(prior.variance, 1 / diagonal, rtol=1e-14, atol=0)
    mean = loc.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(LowRankPrecision(mean, diagonal, root).rsample((3,)).sum(), mean)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 3.0))


@pytest.mark.parametrize("kind", ["fisher", "diagonal", "kfac"])
def test_log_determinant_has_the_gradient_through_the_adapted_point(kind: CurvatureKind) -> None:
    """By finite differences in the network's start, which the point after two steps depends on."""
    model, data = network(OUTPUTS["class"], (2,)), targets(OUTPUTS["class"], 3)
    inference = Laplace(
        GradientDescent(model, x_dim=DIM, y_dim=3, steps=2, optimizer=SGD(torch.tensor(0.1, dtype=torch.float64))),
        curvature=kind,
    )
    weight = model.network[0].weight

    def log_det() -> Tensor:
        return inference.update(inference.init(TASKS), data).curvature.log_det().sum()

    (found,) = torch.autograd.grad(log_det(), weight)
    for place in ((0, 0), (1, 2)):
        ends = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += shift
                ends.append(log_det())
                weight[place] -= shift
        assert found[place].item() == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_a_saddle_has_no_laplace_approximation() -> None:
    model, data = network(OUTPUTS["numbers"], scale=10.0), targets(OUTPUTS["numbers"])
    laplace = at_the_mode(model, "hessian", y_dim=2, newton=0)
    with pytest.raises(ValueError, match=r"positive definite Hessian.*of 3 tasks.*curvature='fisher'"):
        laplace.update(laplace.init(TASKS), data)


class Odd(Linear):
    """A likelihood or a prior whose curvature is known by the Hessian only."""

    def __init__(self, *, heavy: bool) -> None:
        super().__init__(gaussian)
        self.heavy = heavy

    def prior(self, batch: int) -> Distribution:
        mean = self.mean.expand(batch, -1)
        return dist.StudentT(5.0, mean, 1.0).to_event(1) if self.heavy else dist.Normal(mean, 1.0).to_event(1)

    def likelihood(self, z: Tensor, data: Context) -> Distribution:
        return dist.StudentT(9.0, (data.x * z).sum(-1, keepdim=True), NOISE).to_event(1)


def test_what_has_no_fisher_is_named_and_has_a_hessian() -> None:
    data = numbers(3)
    with pytest.raises(ValueError, match=r"Gaussian prior.*curvature='hessian'"):
        at_the_mode(Odd(heavy=True), "fisher")
    laplace = at_the_mode(Odd(heavy=False), "diagonal")
    with pytest.raises(ValueError, match=r"got StudentT; use curvature='hessian'"):
        laplace.update(laplace.init(TASKS), data)
    laplace = at_the_mode(Odd(heavy=True), "hessian", newton=6)
    assert laplace.log_evidence(laplace.update(laplace.init(TASKS), data)).isfinite().all()
    with pytest.raises(ValueError, match=r"expected.*newton >= 0.*-1"):
        at_the_mode(MODEL, "fisher", newton=-1)
