"""The prior that a trained descent stands for: exact on linear models, local on networks, else refused."""

import pytest
import torch
from torch import Tensor, nn

from bayesmeta.diagnostics.implied import implied_table, local_prior, spectrum
from bayesmeta.inference.descent import SGD, Adam, Momentum, Preconditioned
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.implicit_prior import adaptation, implied_posterior, implied_prior
from bayesmeta.models.architectures import mlp
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context

TASKS, DIM, NOISE = 3, 4, 0.5


def data(shots: int, seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TASKS, shots, DIM, generator=generator)
    return Context.of(x, torch.randn(TASKS, shots, 1, generator=generator))


def linear(optimizer: nn.Module, steps: int) -> GradientDescent:
    model = LinearGaussianModel(torch.linspace(-1, 1, DIM), torch.eye(DIM), NOISE)
    return GradientDescent(model, x_dim=DIM, y_dim=1, steps=steps, optimizer=optimizer)


def network(rate: float, steps: int = 3) -> GradientDescent:
    with torch_seeded(0):
        model = NetworkModel(mlp(DIM, 1, (8,), activation="tanh"), GaussianOutput(1))
    return GradientDescent(model, x_dim=DIM, y_dim=1, steps=steps, optimizer=SGD(rate), reduction="mean")


def hessian(context: Context) -> Tensor:
    x = context.x.double()
    return x.mT @ x / NOISE**2


@pytest.mark.parametrize("shots", [6, 2])
@pytest.mark.parametrize("steps", [1, 4])
def test_on_a_linear_model_it_is_the_implied_prior(steps: int, shots: int) -> None:
    context, rate = data(shots), SGD(0.005).rate.double().item()
    found = local_prior(linear(SGD(0.005), steps), context)
    own = hessian(context)
    values = torch.linalg.eigvalsh(own).flip(-1)
    torch.testing.assert_close(found.curvature, values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.largest, rate * values[:, 0], rtol=1e-9, atol=0)
    for sd, covariance in (
        (found.prior_sd, implied_prior(own, rate, steps)),
        (found.posterior_sd, implied_posterior(own, rate, steps)),
    ):
        expected = torch.linalg.eigvalsh(covariance).sqrt()
        torch.testing.assert_close(sd.sort(-1).values, expected, rtol=1e-7, atol=0)
    kept = adaptation(own, rate, steps)
    torch.testing.assert_close(found.decided, DIM - kept.diagonal(dim1=1, dim2=2).sum(-1), rtol=1e-9, atol=1e-9)
    assert found.valid.all() and found.deviation.max() < 1e-9 and found.mismatch.max() < 1e-9
    assert (found.steps, found.dim) == (steps, DIM)


def test_other_plain_steps() -> None:
    """One matrix, a rate for each weight, a rate for each step: exact on a linear model."""
    context = data(6)
    own = hessian(context)
    matrix = 1e-3 * (torch.eye(DIM) + 0.3)
    rates = torch.linspace(1e-3, 5e-3, DIM)
    for optimizer, preconditioner in ((Preconditioned(matrix), matrix), (SGD(rates), rates.diag())):
        found = local_prior(linear(optimizer, 3), context)
        kept = adaptation(own, 1.0, 3, preconditioner.double())
        torch.testing.assert_close(found.decided, DIM - kept.diagonal(dim1=1, dim2=2).sum(-1), rtol=1e-6, atol=0)
        variance = implied_prior(own, 1.0, 3, preconditioner.double()).diagonal(dim1=1, dim2=2).sum(-1)
        torch.testing.assert_close(found.prior_sd.square().sum(-1), variance, rtol=1e-6, atol=0)
        assert found.valid.all() and found.deviation.max() < 1e-9
    found = local_prior(linear(SGD(rates[:2].unsqueeze(1)), 3), context)  # the second rate again
    kept = adaptation(own, rates[[0, 1, 1]].double(), 3)
    torch.testing.assert_close(found.decided, DIM - kept.diagonal(dim1=1, dim2=2).sum(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.largest, rates[1].double() * found.curvature[:, 0], rtol=1e-6, atol=0)


def test_too_large_a_rate_is_told_and_not_an_error() -> None:
    context = data(6)
    rate = 1.2 / torch.linalg.eigvalsh(hessian(context)).amax(-1)
    found = local_prior(linear(SGD(rate.median().item()), 1), context)
    assert found.valid.tolist() == (found.largest < 1).tolist() and 0 < found.valid.sum() < TASKS
    assert torch.equal(found.prior_sd.isnan().any(-1), ~found.valid)
    assert f"{int(found.valid.sum())} of {TASKS}" in implied_table(linear(SGD(rate.median().item()), 1), context)


def test_on_a_network_it_is_local() -> None:
    """The second-order model's gradient is off in second order of the way, and so is the point, per way, after it."""
    context = data(6)
    found = [local_prior(network(rate), context) for rate in (0.001, 0.01, 0.1)]
    for off in ([f.deviation for f in found], [f.mismatch for f in found]):
        assert (off[1] / off[0] > 70).all() and (off[1] / off[0] < 130).all() and (off[2] > off[1]).all()
    one = local_prior(network(0.1, steps=1), context)
    assert one.deviation.max() < 1e-12 and one.mismatch.min() > 1e-3
    whole, part = local_prior(network(0.1), context, directions=100), found[2]
    assert whole.curvature.shape == (TASKS, whole.dim) and part.curvature.shape == (TASKS, 40) and whole.dim == 49
    torch.testing.assert_close(part.curvature[:, :5], whole.curvature[:, :5], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(part.decided, whole.decided, rtol=0.02, atol=0)
    torch.testing.assert_close(part.deviation, whole.deviation)


def test_spectrum_finds_every_eigenvalue_and_its_vector() -> None:
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(4, 9, 9, generator=generator, dtype=torch.float64))
    values = torch.stack(
        [
            torch.linspace(8, -1, 9).double(),
            torch.full((9,), 2.0).double(),  # nothing new after one product
            torch.tensor([5.0, 3.0, 3.0, 1.0, 0, 0, 0, 0, 0]).double(),
            torch.zeros(9).double(),
        ]
    )
    matrix = (basis * values.unsqueeze(-2)) @ basis.mT
    start = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    start[1] = 0.0

    def product(v: Tensor) -> Tensor:
        return (matrix @ v.unsqueeze(-1)).squeeze(-1)

    found, vectors = spectrum(product, start, 20)
    torch.testing.assert_close(found, values, rtol=0, atol=1e-9)
    torch.testing.assert_close(vectors @ matrix, found.unsqueeze(-1) * vectors, rtol=0, atol=1e-9)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(9).double().expand(4, 9, 9), rtol=0, atol=1e-9)


REFUSED = [
    (Adam(0.01), 1, "expected plain steps.* got Adam"),
    (Momentum(0.01), 1, "expected plain steps.* got Momentum"),
    (Preconditioned(torch.eye(DIM).expand(TASKS, DIM, DIM)), 1, "one matrix for all tasks"),
    (SGD(torch.rand(2, DIM)), 2, "differ by both"),
    (SGD(torch.tensor([0.1, 0.1, -0.1, 0.1])), 1, "got 1 of 4 weights with a negative one"),
    (SGD(0.01), 0, "at least one step"),
]


@pytest.mark.parametrize(("optimizer", "steps", "reason"), REFUSED)
def test_steps_of_no_prior_are_refused_and_the_table_says_why(optimizer: nn.Module, steps: int, reason: str) -> None:
    inference = linear(optimizer, steps)
    with pytest.raises(ValueError, match=reason) as refused:
        local_prior(inference, data(5))
    assert str(refused.value) in implied_table(inference, data(5))
    with pytest.raises(ValueError, match="at least one datum of every task"):
        local_prior(linear(SGD(0.01), 1), data(0))


def test_the_table_says_it_in_words_and_leaves_the_procedure_alone() -> None:
    inference, context = network(0.05, steps=1), data(5)
    before = {name: p.clone() for name, p in inference.state_dict().items()}
    text = implied_table(inference, context)
    assert text.startswith("1 gradient step read as the mode of a posterior, at the learned start: median over 3 tasks")
    assert "for 3 of 3 tasks" in text and "of 49; the others stay at the learned start" in text and "nan" not in text
    assert all(torch.equal(before[name], p) for name, p in inference.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in inference.parameters())
