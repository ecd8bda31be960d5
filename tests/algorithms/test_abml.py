"""ABML on a linear network, where its objective, its optimum and its posteriors have closed forms."""

import math

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal, kl_divergence

from bayesmeta.algorithms.abml import ABML, Hyperprior
from bayesmeta.episodic import Episodes
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.guides import elbo_loss, posterior_guide
from bayesmeta.models.architectures import Network
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, concat
from tests.algorithms.signs import Signs

FAMILY = Signs()


def learner(**options: object) -> ABML:
    """A linear network with the family's noise, set up on the family."""
    options = {
        "network": Network(widths=()),
        "noise": FAMILY.noise,
        "learn_noise": False,
        "learn_rate": "no",
        "scale_rate": 1.0,
    } | options
    with torch_seeded(0):
        built = ABML(FAMILY.spec, **{"episodes": Episodes(meta_batch=5, shots=4, queries=4), **options})
    built.setup(FAMILY, 0)
    return built


def exact(algorithm: ABML, data: Context) -> tuple[LinearGaussianModel, Context]:
    """The same prior and noise as a linear-Gaussian model, whose inputs are the network's with a 1."""
    model = algorithm.inference.model
    covariance = (2 * model.log_scale).exp().diag().detach()
    inputs = torch.cat([data.x, torch.ones_like(data.x)], -1)
    return LinearGaussianModel(model.mean.detach(), covariance, FAMILY.noise), Context.of(inputs, data.y)


def log_evidence(algorithm: ABML, data: Context) -> Tensor:
    model, data = exact(algorithm, data)
    covariance = FAMILY.noise**2 * torch.eye(data.size) + data.x @ model.covariance @ data.x.mT
    return MultivariateNormal(data.x @ model.mean, covariance).log_prob(data.y.squeeze(-1))


def test_loss_is_minus_pyros_elbo_of_the_models_own_program() -> None:
    algorithm = learner(steps=3, network=Network(widths=(4,)), draws=6)
    support, query = algorithm.draw()
    model = algorithm.inference.model
    with torch_seeded(1):
        found = algorithm.loss(support, query)
    with torch_seeded(1):
        inference = algorithm.inference.at(draws=6)
        posterior = inference.update(inference.init(5), support).posterior
        bound = TraceMeanField_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=2)
        expected = elbo_loss(bound, model, lambda _: posterior_guide(posterior), concat([support, query])) / 5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    parameters = algorithm.parameters
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_kl_weight_and_hyperprior_enter_as_they_say() -> None:
    weights, tasks = (0.3, 1.0), 40
    algorithm = learner(steps=2, draws=4, kl_weight=weights[0], hyperprior=Hyperprior(tasks, 2.0, 3.0, 0.5))
    support, query = algorithm.draw()
    model = algorithm.inference.model
    with torch_seeded(1):
        found = algorithm.loss(support, query)
    with torch_seeded(1):
        inference = algorithm.inference.at(draws=4)
        q = inference.update(inference.init(5), support).posterior
        z = q.rsample((4,))
    fit = model.log_likelihood(z, concat([support, query])).mean(0)
    precision = (-2 * model.log_scale).exp()
    hyper = Normal(0.0, 2.0).log_prob(model.mean).sum() + Gamma(3.0, 0.5).log_prob(precision).sum()
    expected = (weights[0] * kl_divergence(q, model.prior(5)) - fit).mean() - hyper / tasks
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [0, 2, 12])
def test_elbo_is_below_the_exact_evidence(steps: int) -> None:
    """With 4000 draws, of which the ELBO of every task is the mean: below to four standard errors."""
    algorithm = learner(steps=steps, draws=4000, scale=0.5)
    support, query = algorithm.draw()
    with torch.no_grad(), torch_seeded(0):
        bound = -algorithm.loss(support, query)
        spread = algorithm.inference.model.log_likelihood(
            algorithm.inference.model.prior(5).sample((4000,)), concat([support, query])
        ).std(0)
    error = spread.mean() / math.sqrt(4000 * 5)
    gap = log_evidence(algorithm, concat([support, query])).mean() - bound
    assert gap > -4 * error
    assert gap > 0.05  # strictly, because the belief has seen the support only


def test_belief_after_training_data_is_the_exact_posterior() -> None:
    """On this design it is diagonal, so that nothing but noise and the number of steps stands between them."""
    algorithm = learner(steps=25, evaluation_draws=2000, scale=0.5, draws=2)
    support, _ = algorithm.draw()
    model, data = exact(algorithm, support)
    conjugate = ConjugateGaussian(model)
    expected = conjugate.update(conjugate.init(5), data).posterior
    with torch.no_grad(), torch_seeded(0):
        found = algorithm.inference.update(algorithm.inference.init(5), support).posterior
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.stddev, expected.variance.sqrt(), rtol=0.03, atol=0)


def optimum(scale: float, shots: int, queries: int) -> float:
    """The prior's standard deviation that ABML's objective has its optimum at, for one coordinate of the family.

    The belief has seen ``n`` data of the support and is scored on all ``n + m``, so that the objective is ``log p(S)``
    plus the expected log-likelihood of the queries, in which a narrower belief is rewarded:
    ``-1/2 log(t + s) - (v + s) / 2(t + s) - m / 2 noise^2 (t w + w^2 v + (1 - w)^2 s)``, with ``t`` the prior's
    variance, ``v`` the true one, ``s = noise^2 / n`` and ``w = s / (t + s)``.
    """
    t = torch.linspace(1e-4, 1.0, 100_000, dtype=torch.float64)
    v, s = scale**2, FAMILY.noise**2 / shots
    w = s / (t + s)
    evidence = -0.5 * (t + s).log() - (v + s) / (2 * (t + s))
    return (
        t[(evidence - queries / (2 * FAMILY.noise**2) * (t * w + w**2 * v + (1 - w) ** 2 * s)).argmax()].sqrt().item()
    )


def test_training_finds_the_generators_mean_and_the_optimum_of_its_objective() -> None:
    """From a standard deviation of 0.3: scales within 6 %, means within 0.08, four standard errors of 6000 tasks.

    The generator's own scales are further away than that.
    """
    episodes = Episodes(meta_batch=150, shots=4, queries=6, updates=80, lr=0.1, lr_half=25)
    algorithm = learner(steps=8, draws=16, episodes=episodes, scale=0.3)
    algorithm.setup(FAMILY, 1)
    with torch_seeded(0):
        algorithm.step()
    model = algorithm.inference.model
    expected, truth = torch.tensor([optimum(scale, 4, 6) for scale in FAMILY.scale]), torch.tensor(FAMILY.scale)
    torch.testing.assert_close(model.mean.detach(), torch.tensor(FAMILY.mean), rtol=0, atol=0.08)
    torch.testing.assert_close(model.log_scale.exp().detach(), expected, rtol=0.06, atol=0)
    assert (expected < truth / 1.12).all()
    assert optimum(0.6, 400, 6) == pytest.approx(0.6, rel=0.01), "with many data of support it is the generator's"


def test_gradients_reach_what_is_learned_and_nothing_else() -> None:
    algorithm = learner(steps=2, learn_rate="parameter", learn_noise=True, network=Network(widths=(4,)), draws=2)
    names = [name for name, p in algorithm.inference.named_parameters() if p.requires_grad]
    assert any("rate" in n for n in names) and any("log_scale" in n for n in names)
    with torch_seeded(0):
        gradients = torch.autograd.grad(algorithm.loss(*algorithm.draw()), algorithm.parameters)
    assert all(g.abs().max() > 0 for g in gradients)


def test_first_order_is_another_gradient() -> None:
    gradients = []
    for first_order in (False, True):
        algorithm = learner(steps=3, network=Network(widths=(4,)), first_order=first_order, scale=0.3)
        with torch_seeded(0):
            loss = algorithm.loss(*algorithm.draw())
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, algorithm.parameters)]))
    assert (gradients[0] - gradients[1]).norm() > 1e-2 * gradients[0].norm()


def test_training_and_evaluation_draws_are_their_own() -> None:
    algorithm = learner(draws=2, evaluation_draws=8)
    assert (algorithm.training_inference.draws, algorithm.inference.draws) == (2, 8)
    assert all(
        a is b for a, b in zip(algorithm.training_inference.parameters(), algorithm.inference.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match=r"compiled=false"):
        learner(episodes=Episodes(compiled=True))
