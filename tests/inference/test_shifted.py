"""PLATIPUS's sampler where all is known: a linear model, on which its draws are a linear map of its noise."""

import copy
import math

import pytest
import torch
from torch import Tensor

from bayesmeta.inference.descent import SGD
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.shifted import ShiftedStart
from bayesmeta.models.architectures import mlp
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context

NOISE, RATE, SHIFT = 0.7, 0.02, 0.03
SCALE = torch.tensor([1.5, 0.4, 0.8], dtype=torch.float64)
MEAN = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data_of(tasks: int, shots: int) -> Context:
    x = normal(tasks, shots, 3, seed=1)
    return Context.of(x, x @ normal(tasks, 3, 1, seed=2) + NOISE * normal(tasks, shots, 1, seed=3))


def procedure(steps: int, *, particles: int = 6, first_order: bool = False) -> ShiftedStart:
    model = LinearGaussianModel(MEAN, SCALE.square().diag(), NOISE)
    optimizer = SGD(torch.tensor(RATE, dtype=torch.float64))
    descent = GradientDescent(model, x_dim=3, y_dim=1, steps=steps, optimizer=optimizer, first_order=first_order)
    return ShiftedStart(descent, particles=particles, rate=SHIFT, proposal_rate=-SHIFT, proposal_scale=0.2)


def by_hand(data: Context, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian of the summed loss, ``A = (I - alpha H)^k``, and the draws' mean."""
    hessian = data.x.mT @ data.x / NOISE**2
    a = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - RATE * hessian, steps)
    fit = torch.linalg.lstsq(data.x, data.y).solution.squeeze(-1)
    start = MEAN - SHIFT * (hessian @ (MEAN - fit).unsqueeze(-1)).squeeze(-1)
    return hessian, a, fit + (a @ (start - fit).unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_draws_are_a_linear_map_of_their_noise(steps: int) -> None:
    """C10 without sampling: each draw is ``mean + A diag(sigma) noise``, of covariance ``A diag(sigma^2) A^T``."""
    data, inference = data_of(2, 5), procedure(steps)
    _, a, mean = by_hand(data, steps)
    z = inference.update(inference.init(2), data).z
    expected = mean.unsqueeze(1) + (SCALE * inference.noise) @ a.mT
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5])
def test_covariance_of_draws_is_that_of_the_noise_and_not_the_posteriors(steps: int) -> None:
    """C10 by sampling: every entry within 4 standard errors (6 of 2 tasks each: p < 1e-3); the posterior's is not."""
    data, inference, draws = data_of(2, 5), procedure(steps), 20_000
    hessian, a, mean = by_hand(data, steps)
    with torch_seeded(0), torch.no_grad():
        z = inference.sample(data, draws)
    found = (z - z.mean(1, keepdim=True)).mT @ (z - z.mean(1, keepdim=True)) / (draws - 1)
    claimed = a @ SCALE.square().diag() @ a.mT
    posterior = torch.linalg.inv(hessian + SCALE.square().reciprocal().diag())

    def furthest(covariance: Tensor) -> float:
        """In standard errors of a sample covariance of normals, ``var(S_ij) = (C_ii C_jj + C_ij^2) / n``."""
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        error = ((variance.unsqueeze(-1) * variance.unsqueeze(-2) + covariance.square()) / draws).sqrt()
        return ((found - covariance).abs() / error).amax().item()

    assert furthest(claimed) < 4 < 20 < furthest(posterior)
    far = (z.mean(1) - mean).abs() / (claimed.diagonal(dim1=-2, dim2=-1) / draws).sqrt()
    assert far.max() < 4


def test_more_steps_make_it_overconfident() -> None:
    """The draws' total variance falls to 0, past the posterior's, whose data do not change."""
    data = data_of(1, 5)
    traces = []
    for steps in (0, 1, 5, 20, 80):
        inference = procedure(steps, particles=300)
        with torch.no_grad():
            traces.append(inference.update(inference.init(1), data).z.var(1).sum().item())
    hessian, _, _ = by_hand(data, 1)
    posterior = torch.linalg.inv(hessian + SCALE.square().reciprocal().diag()).diagonal(dim1=-2, dim2=-1).sum().item()
    assert traces == sorted(traces, reverse=True)
    assert traces[1] > posterior > 5 * traces[-1]


def test_the_laws_of_the_start() -> None:
    data, inference = data_of(2, 4), procedure(3)
    gradient = (data.x.mT @ (data.x @ MEAN.unsqueeze(-1) - data.y)).squeeze(-1) / NOISE**2
    start, proposal = inference.start(data), inference.proposal(data)
    torch.testing.assert_close(start.mean, MEAN - SHIFT * gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(start.stddev, SCALE.expand(2, -1))
    torch.testing.assert_close(proposal.mean, MEAN + SHIFT * gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(proposal.stddev, torch.full((2, 3), 0.2).double(), rtol=1e-7, atol=0)
    nothing = inference.init(2)
    torch.testing.assert_close(nothing.z, (MEAN + SCALE * inference.noise).expand(2, -1, -1))


def network_procedure(first_order: bool = False) -> ShiftedStart:
    with torch_seeded(0):
        model = NetworkModel(mlp(3, 1, (4,), activation="tanh"), GaussianOutput(1), scale=0.3, learn_scale=True)
    optimizer = SGD(torch.tensor(0.1), learn=True)
    descent = GradientDescent(model, x_dim=3, y_dim=1, steps=2, optimizer=optimizer, first_order=first_order)
    return ShiftedStart(descent, particles=3, rate=0.05).double()


def test_gradients_flow_through_shift_and_descent() -> None:
    """Into mean, scale, shift and inner rate, against finite differences; not into the proposal, which is no part."""
    inference, data = network_procedure(), data_of(2, 4)
    weight = normal(2, 3, 21)

    def loss() -> Tensor:
        return (weight * inference.update(inference.init(2), data).z).sum()

    parameters = {n: p for n, p in inference.named_parameters() if p.requires_grad}
    found = dict(zip(parameters, torch.autograd.grad(loss(), [*parameters.values()], allow_unused=True), strict=True))
    assert found.pop("proposal_rate") is None and found.pop("proposal_log_scale") is None
    assert len(found) == 4 + 3  # the network's, log_scale, rate, inner rate
    for name, gradient in found.items():
        parameter, index = parameters[name].data.view(-1), int(gradient.abs().argmax())
        values = []
        for step in (1e-5, -2e-5):
            parameter[index] += step
            with torch.no_grad():
                values.append(loss())
        parameter[index] += 1e-5
        torch.testing.assert_close(gradient.view(-1)[index], (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_first_order_is_another_gradient() -> None:
    inference, first, data = network_procedure(), network_procedure(first_order=True), data_of(2, 4)
    z, same = (i.update(i.init(2), data).z for i in (inference, first))
    torch.testing.assert_close(z, same)
    name = "0.weight"
    a, b = (
        torch.autograd.grad(i.update(i.init(2), data).z.square().sum(), i.model.network.get_parameter(name))[0]
        for i in (inference, first)
    )
    assert (a - b).norm() / a.norm() > 1e-2


def test_noise_of_the_belief_follows_the_seed_and_that_of_samples_does_not() -> None:
    data, inference = data_of(2, 4), procedure(2)
    one, same = (inference.update(inference.init(2), data).z for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(copy.deepcopy(inference).noise, inference.noise)
    with torch_seeded(1):
        first, second = inference.sample(data, 5), inference.sample(data, 5)
    assert first.shape == (2, 5, 3) and not torch.equal(first, second)
    spread = (first - by_hand(data, 2)[2].unsqueeze(1)).std()
    assert spread > 0 and not torch.equal(first[0] - first[0].mean(0), first[1] - first[1].mean(0))


def test_predictions_average_the_densities_of_all_draws() -> None:
    data, inference = data_of(2, 6), procedure(2, particles=3)
    support, query = data.rows(0, 4), data.rows(4, 6)
    z = inference.update(inference.init(2), support).z
    residual = query.y - query.x @ z.mT
    density = (-0.5 * (residual / NOISE).square()).exp() / (NOISE * math.sqrt(2 * math.pi))
    expected = density.mean(-1).log()
    torch.testing.assert_close(inference.log_predictive(support, query), expected, rtol=1e-10, atol=1e-12)


def test_what_makes_no_sense_is_refused() -> None:
    descent = procedure(1).descent
    with pytest.raises(ValueError, match=r"particles >= 1 and proposal_scale > 0, got 0 and 0\.1"):
        ShiftedStart(descent, particles=0)
    with pytest.raises(ValueError, match=r"got 10 and 0\.0"):
        ShiftedStart(descent, proposal_scale=0.0)
    inference = procedure(1)
    with pytest.raises(ValueError, match=r"ShiftedStart: expected data x \[3, N, 3\]"):
        inference.update(inference.init(3), data_of(2, 1))
