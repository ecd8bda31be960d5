"""Mixtures of codes against torch's own, and the exact posterior of a code against enumeration."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily

from bayesmeta.diagnostics.codes import CodeMixture, CodePosterior, log_densities
from bayesmeta.diagnostics.distances import distances
from bayesmeta.diagnostics.exploration import implied_log_weights, problem_log_weights
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.bus import SmallMap
from bayesmeta.types import Context


def code(mean, scale):
    return dist.Normal(mean, scale, validate_args=False).to_event(1)


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(0)
    law = code(torch.randn(5, 3, generator=generator), 0.2 + torch.rand(5, 3, generator=generator))
    return law, torch.randn(4, 5, generator=generator)


def torchs(law, log_weights):
    components = code(law.mean.expand(len(log_weights), -1, -1), law.stddev.expand(len(log_weights), -1, -1))
    return MixtureSameFamily(Categorical(logits=log_weights), components, validate_args=False)


def test_density_and_moments_are_those_of_torchs_mixture(random):
    ours, theirs = CodeMixture(*random), torchs(*random)
    z = 3.0 * torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_draws_have_the_moments(random):
    law = CodeMixture(*random)
    with torch_seeded(0):
        z = law.sample(torch.Size((200, 100)))
    assert z.shape == (200, 100, 4, 3)
    z = z.flatten(0, 1)
    error = (z.mean(0) - law.mean) / (law.variance / len(z)).sqrt()
    assert error.abs().max() < 5  # twelve normal variables: one in a hundred thousand by chance
    torch.testing.assert_close(z.var(0), law.variance, rtol=0.1, atol=0)


def test_densities_of_narrow_codes_lose_no_digits():
    law = code(torch.tensor([[30.0, -30.0], [30.1, -30.0]], dtype=torch.float64), torch.full((2, 2), 0.05).double())
    z = torch.tensor([[30.05, -30.0]], dtype=torch.float64)
    torch.testing.assert_close(log_densities(law, z), law.log_prob(z.unsqueeze(1)), rtol=1e-9, atol=1e-9)


def test_the_exact_posterior_of_a_code_is_the_mixture_that_enumeration_gives():
    """A ride of the first line tells where it ends: six of 24 problems are left, and the codes of these."""
    family = SmallMap()
    problems = family.posterior_over("test")
    law = code(torch.eye(24), torch.full((24, 24), 0.1))
    env = family.env(problems.points)
    obs, _ = env.reset(options={"explore": True})
    rows = []
    for action in (2, 5):  # right, ride
        new, reward, *_ = env.step(torch.full((24,), action))
        rows.append(torch.cat([obs, torch.eye(9)[action].expand(24, -1), reward.unsqueeze(1), new], 1))
        obs = new
    x, y = torch.stack(rows, 1).split([14, 6], -1)
    data = Context.of(x, y)
    exact = CodePosterior(problems, law)
    belief = exact.update(exact.init(24), data)
    same = (obs[:, None] == obs[None]).all(-1).float()
    assert same.sum(1).tolist() == [6.0] * 24
    torch.testing.assert_close(belief.posterior.mean, same / 6)
    torch.testing.assert_close(belief.posterior.log_weights.exp(), same / 6)
    prefixes = exact.scan(exact.init(24), data).posterior.mean.unflatten(0, (3, 24))
    torch.testing.assert_close(prefixes[2], same / 6)
    torch.testing.assert_close(prefixes[:2], torch.full((2, 24, 24), 1 / 24))
    with torch_seeded(0):
        draws = [belief.posterior.sample(torch.Size((30,))) for _ in range(2)]
    found = distances(belief.posterior, exact.update(exact.init(24), data).posterior, *draws)
    for name, exactly in (("kl_reference", 0.0), ("mean_error", 0.0), ("sd_ratio", 1.0)):
        torch.testing.assert_close(found[name], torch.full_like(found[name], exactly))


def test_what_a_mixture_implies_is_its_weights_to_the_resolution_of_the_draws():
    law = code(10.0 * torch.eye(4), torch.full((4, 4), 0.1))
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    with torch_seeded(0):
        found = implied_log_weights(law, CodeMixture(law, weights.log()), draws=2000).exp()
    assert found.sum() == pytest.approx(1.0, abs=1e-5)
    sd = (weights * (1 - weights) / 2000).sqrt()
    assert ((found - weights).abs() < 5 * sd + 1 / 2000).all()
    assert float(found[0, 3]) == pytest.approx(0.25 / 2001, rel=1e-3)  # a quarter of a draw


def test_resolution_changes_nothing_that_draws_can_tell():
    law = code(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.ones(4, 2))
    with torch_seeded(0):
        raw = problem_log_weights(law, law, 500)
    with torch_seeded(0):
        found = implied_log_weights(law, law, 500)
    torch.testing.assert_close(found.exp(), (500 * raw.exp() + 1 / 4) / 501)
    assert float(found.min()) > -math.log(501 * 4)
