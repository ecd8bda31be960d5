"""PACOH: the hyper-posterior's density and direction where the evidence is known, and the mixture of its priors."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from bayesmeta.algorithms.pacoh import PACOH
from bayesmeta.episodic import Episodes
from bayesmeta.inference.svgd import stein_direction
from bayesmeta.models.architectures import Network, mlp
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.models.prior_mixture import EqualMixture, PriorMixtureModel
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, Spec

SPEC = Spec("test", 2, 1, ("parameter",))
CLASSES = Spec("test", 2, 3, ("parameter",), classes=True)
TASKS, SHOTS, QUERIES = 3, 2, 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learner(spec: Spec = SPEC, **options: object) -> PACOH:
    options = {"priors": 3, "scale": 0.5, "network": Network(widths=()), "steps": 3} | options
    with torch_seeded(0):
        made = PACOH(spec, episodes=Episodes(meta_batch=2, updates=1), **options)
    made.inference.double()
    return made


def data(spec: Spec = SPEC) -> Context:
    x, y = normal(TASKS, SHOTS + QUERIES, 2, seed=1), normal(TASKS, SHOTS + QUERIES, spec.y_dim, seed=2)
    return Context.of(x, nn.functional.one_hot(y.argmax(-1), 3).double() if spec.classes else y)


def test_evidence_of_a_linear_network_is_the_exact_one() -> None:
    """By the mean over many draws, within 4.5 standard errors of each of 9 (p < 1e-4); 5 % less noise is found."""
    pacoh, rows, draws = learner(), data(), 5_000
    xi = pacoh.inference.model.priors.detach()
    noise = normal(draws, 3, TASKS, 3, seed=4)
    mean, log_scale = xi.chunk(2, -1)
    with torch.no_grad():
        found = pacoh.log_evidence(xi, rows, noise)
        z = mean.unsqueeze(1) + log_scale.exp().unsqueeze(1) * noise
        weights = (pacoh.inference.model.log_likelihood(z, rows) - found).exp()
    error = weights.std(0) / math.sqrt(draws)  # relative: the weights' mean is 1
    x = torch.cat([rows.x, torch.ones_like(rows.x[..., :1])], -1)

    def exact(sd: float) -> Tensor:
        centre = torch.einsum("bnd,kd->kbn", x, mean)
        covariance = torch.einsum("bnd,kd,bmd->kbnm", x, (2 * log_scale).exp(), x)
        return MultivariateNormal(centre, covariance + sd**2 * torch.eye(4)).log_prob(rows.y.squeeze(-1))

    assert ((found - exact(1.0)).abs() < 4.5 * error).all()
    assert ((found - exact(0.95)).abs() > 4.5 * error).any()


def test_hyper_posterior_is_the_formula() -> None:
    pacoh, rows, noise = learner(tasks=7, hyper_weight=0.3, mean_scale=2.0), data(), normal(2, 3, TASKS, 3)
    rows = Context(rows.x, rows.y, torch.arange(4) < torch.tensor([[4], [2], [1]]))
    xi = pacoh.inference.model.priors.detach() + normal(3, 6, seed=5)
    hyperprior = Normal(0.0, 2.0).log_prob(xi[:, :3]) + Normal(math.log(0.5), 1.0).log_prob(xi[:, 3:])
    evidence = pacoh.log_evidence(xi, rows, noise) / torch.tensor([5.0, 3.0, 2.0])
    expected = 7 * evidence.mean(1) + 0.3 * hyperprior.sum(1)
    torch.testing.assert_close(pacoh.log_hyper_posterior(xi, rows, noise), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("priors", [1, 3])
def test_an_update_is_a_step_of_svgd(priors: int) -> None:
    """The priors' gradient is minus the direction, for one prior the score; the noise's is that of the evidence."""
    pacoh, rows = learner(priors=priors, draws=2), data()
    with torch_seeded(3):
        loss = pacoh.loss(rows.rows(0, SHOTS), rows.rows(SHOTS, 4))
    with torch_seeded(3):
        noise = torch.randn(2, priors, TASKS, 3, dtype=torch.float64)
    model = pacoh.inference.model
    log_noise = model.weights_model.output.log_noise
    assert len(pacoh.parameters) == 2
    found = torch.autograd.grad(loss, [model.priors, log_noise])
    (score,) = torch.autograd.grad(pacoh.log_hyper_posterior(model.priors, rows, noise).sum(), model.priors)
    direction = stein_direction(model.priors.detach()[None], score[None], pacoh.inference.kernel)[0]
    torch.testing.assert_close(found[0], -direction, rtol=1e-10, atol=1e-12)
    evidence = -pacoh.log_evidence(model.priors, rows, noise).mean()
    torch.testing.assert_close(found[1], torch.autograd.grad(evidence, log_noise)[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, evidence, rtol=1e-12, atol=0)
    assert torch.equal(direction, score) == (priors == 1)


def test_the_mixture_is_torchs() -> None:
    loc, scale = normal(3, 2), normal(3, 2, seed=1).exp()
    law = EqualMixture(loc, scale, (4,))
    theirs = MixtureSameFamily(Categorical(torch.ones(3).double()), Independent(Normal(loc, scale), 1))
    z = normal(5, 4, 2, seed=2)
    torch.testing.assert_close(law.log_prob(z), theirs.log_prob(z), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(law.mean, theirs.mean.expand(4, -1))
    torch.testing.assert_close(law.variance, theirs.variance.expand(4, -1))
    with torch_seeded(0):
        draws = law.sample((20_000,))
    assert draws.shape == (20_000, 4, 2) and not torch.equal(draws[:, 0], draws[:, 1])
    far = (draws.mean((0, 1)) - theirs.mean).abs() / (theirs.variance / 80_000).sqrt()
    assert far.max() < 4.5  # p < 2e-5


@pytest.mark.parametrize("spec", [SPEC, CLASSES], ids=["numbers", "classes"])
def test_a_new_tasks_belief_begins_at_the_mixture(spec: Spec) -> None:
    pacoh = learner(spec, particles=6, network=Network(widths=(4,)))
    inference, rows = pacoh.inference, data(spec)
    start, belief = inference.init(TASKS), inference.update(inference.init(TASKS), rows)
    assert start.z.shape == belief.z.shape == (TASKS, 6, sum(inference.model.weights_model.sizes))
    assert (belief.z - start.z).abs().amin() > 0
    assert inference.log_predictive(rows, rows).isfinite().all()


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"predicts each datum by itself, got one with BatchNorm"):
        learner(network=Network(widths=(4,), norm=True))
    with pytest.raises(ValueError, match=r"expected priors \[K, 6\].* of 3 weights, got \(2, 5\)"):
        PriorMixtureModel(mlp(2, 1, ()), GaussianOutput(1), torch.zeros(2, 5))
