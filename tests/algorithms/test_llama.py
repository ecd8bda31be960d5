"""LLAMA against a loop over tasks, MAML, and the exact evidence of a linear network."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.func import functional_call, jacrev

from bayesmeta.algorithms.llama import LLAMA
from bayesmeta.algorithms.maml import MAML
from bayesmeta.episodic import Episodes
from bayesmeta.models.architectures import Network
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, concat
from tests.algorithms.signs import Signs

FAMILY = Signs()
TANH = Network(widths=(4,), activation="tanh")


def learner(kind: type = LLAMA, **options: object) -> LLAMA:
    with torch_seeded(0):
        built = kind(
            FAMILY.spec, **{"episodes": Episodes(meta_batch=3, shots=4, queries=6), "network": TANH, **options}
        )
    built.inference.double()
    built.setup(FAMILY, 0)
    return built


def tasks(algorithm: LLAMA) -> tuple[Context, Context]:
    """Drawn tasks in float64."""
    return tuple(Context(d.x.double(), d.y.double(), d.mask) for d in algorithm.draw())


def looped(algorithm: LLAMA, support: Context, query: Context, eta: float, scale: float) -> Tensor:
    """One task after the other: two steps on the mean squared error, ``P = J^T J / noise^2 + I / scale^2``."""
    model = algorithm.inference.model
    network, noise = model.network, model.output.log_noise.exp()
    losses = []
    for xs, ys, xq, yq in zip(support.x, support.y, query.x, query.y, strict=True):
        weights = dict(network.named_parameters())
        for _ in range(2):
            loss = (functional_call(network, weights, (xs,)) - ys).square().sum(-1).mean()
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {n: w - 0.05 * g for (n, w), g in zip(weights.items(), grads, strict=True)}
        blocks = jacrev(lambda w, x=xq: functional_call(network, w, (x,)).flatten())(weights)
        jacobian = torch.cat([block.flatten(1) for block in blocks.values()], 1)
        precision = jacobian.T @ jacobian / noise**2 + torch.eye(jacobian.shape[1]) / scale**2
        errors = (functional_call(network, weights, (xq,)) - yq).square() / (2 * noise**2)
        fit = (errors + noise.log() + 0.5 * math.log(2 * math.pi)).sum()
        losses.append((fit + eta * torch.logdet(precision)) / len(xq))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("eta", [1e-6, 0.5])
def test_loss_and_meta_gradient_are_those_of_a_loop(eta: float) -> None:
    algorithm = learner(eta=eta, scale=0.25, steps=2, rate=0.05)
    rate = algorithm.inference.mode.optimizer.rate
    with torch.no_grad():
        rate.fill_(0.05)
        algorithm.inference.model.log_scale.fill_(math.log(0.25))
    support, query = tasks(algorithm)
    found, expected = algorithm.loss(support, query), looped(algorithm, support, query, eta, 0.25)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for a, b in zip(
        torch.autograd.grad(found, algorithm.parameters),
        torch.autograd.grad(expected, algorithm.parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_without_the_determinant_it_is_maml_and_with_it_another_gradient() -> None:
    gradients = []
    for options in ({"kind": MAML}, {"eta": 0.0}, {"eta": 0.5}):
        algorithm = learner(**options, steps=2, rate=0.05)
        support, query = tasks(algorithm)
        found = torch.autograd.grad(algorithm.loss(support, query), algorithm.parameters)
        gradients.append(torch.cat([g.flatten() for g in found]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-10)
    assert (gradients[2] - gradients[0]).norm() > 1e-2 * gradients[0].norm()


@pytest.mark.parametrize("curvature", ["fisher", "hessian", "kfac"])
def test_evidence_of_a_linear_network_is_exact(curvature: str) -> None:
    """One step of the inverse curvature, here a multiple of the identity, ends at the mode."""
    algorithm = learner(
        network=Network(widths=()),
        outer="evidence",
        curvature=curvature,
        scale=0.5,
        noise=FAMILY.noise,
        learn_noise=False,
    )
    model, (support, query) = algorithm.inference.model, tasks(algorithm)
    noise, scale = model.output.log_noise.exp(), model.log_scale.exp()[0]
    with torch.no_grad():
        algorithm.inference.mode.optimizer.rate.fill_(10 / (10 / noise**2 + 1 / scale**2))
    data = concat([support, query])
    inputs = torch.cat([data.x, torch.ones_like(data.x)], -1)
    covariance = noise**2 * torch.eye(10, dtype=torch.float64) + scale**2 * inputs @ inputs.mT
    expected = MultivariateNormal(inputs @ model.mean, covariance).log_prob(data.y.squeeze(-1))
    found, expected, parameters = algorithm.loss(support, query), -expected.mean() / 10, algorithm.parameters
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_evidence_finds_the_generators_mean_and_scale() -> None:
    """Empirical Bayes where the model contains the truth: within 0.08 and 8 %, four standard errors of 3000 tasks."""
    algorithm = learner(
        network=Network(widths=()),
        outer="evidence",
        scale=0.3,
        learn_scale=True,
        noise=FAMILY.noise,
        learn_noise=False,
        steps=6,
        rate=0.4,
        episodes=Episodes(meta_batch=100, shots=4, queries=4, updates=60, lr=0.1, lr_half=25),
    )
    algorithm.inference.float()
    algorithm.setup(FAMILY, 1)
    algorithm.step()
    model = algorithm.inference.model
    torch.testing.assert_close(model.mean.detach(), torch.tensor(FAMILY.mean), rtol=0, atol=0.08)
    torch.testing.assert_close(model.log_scale.exp().detach(), torch.tensor(FAMILY.scale), rtol=0.08, atol=0)


def test_gradients_reach_what_is_learned_and_nothing_else() -> None:
    for options in ({}, {"outer": "evidence", "learn_scale": True, "steps": 2}):
        algorithm = learner(**options, learn_rate="parameter")
        names = [name for name, p in algorithm.inference.named_parameters() if p.requires_grad]
        assert any("log_scale" in name for name in names) == bool(options)
        gradients = torch.autograd.grad(algorithm.loss(*tasks(algorithm)), algorithm.parameters)
        assert all(g.abs().max() > 0 for g in gradients)


def test_queries_are_predicted_one_by_one_unless_transduction_is_asked_for() -> None:
    """Of a network that normalises over rows."""
    for transductive in (False, True):
        algorithm = learner(network=Network(widths=(4,), norm=True), transductive=transductive)
        support, query = tasks(algorithm)
        far = Context.of(torch.cat([query.x[:, :1], 9 + query.x[:, 1:]], 1), query.y)
        # The same query counts, beside others that do not.
        first = [Context(q.x, q.y, torch.arange(6).expand(3, -1) < 1) for q in (query, far)]
        losses = [algorithm.loss(support, q).item() for q in first]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-10)) is not transductive


def test_refused_options() -> None:
    with pytest.raises(ValueError, match=r"learn_scale needs outer=evidence"):
        learner(learn_scale=True)
    with pytest.raises(ValueError, match=r"compiled=false"):
        learner(episodes=Episodes(compiled=True))
