"""The network with precisions of its own: its density against Pyro's, its moments against its draws."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from bayesmeta.inference.gradient import require_real
from bayesmeta.models.architectures import mlp
from bayesmeta.models.noisy_network import NoisyNetworkModel, WeightsAndPrecisions
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(**options: object) -> NoisyNetworkModel:
    with torch_seeded(0):
        return NoisyNetworkModel(mlp(2, 1, (3,), activation="tanh").double(), 1, **options).double()


def test_density_is_that_of_its_parts_with_the_jacobian_of_the_logarithms() -> None:
    """The weights' normal, and Pyro's Gamma pushed through the logarithm."""
    one, z = model(noise=(3.0, 0.5), spread=(1.5, 2.0)), normal(4, 2, 15)
    noise, spread = (
        dist.TransformedDistribution(dist.Gamma(*law), dist.transforms.ExpTransform().inv)
        for law in (one.noise, one.spread)
    )
    weights = dist.Normal(0.0, (-0.5 * z[..., 14:]).exp()).log_prob(z[..., :13]).sum(-1)
    expected = weights + noise.log_prob(z[..., 13]) + spread.log_prob(z[..., 14])
    torch.testing.assert_close(one.prior(2).log_prob(z), expected, rtol=1e-12, atol=0)


def test_program_is_the_density() -> None:
    one, z = model(), normal(3, 15)
    data = Context(normal(3, 4, 2, seed=1), normal(3, 4, 1, seed=2), torch.rand(3, 4) < 0.7)
    trace = poutine.trace(poutine.condition(one, {"z": z.unsqueeze(1)})).get_trace(data)
    torch.testing.assert_close(trace.log_prob_sum(), one.log_joint(z, data).sum())


def test_likelihood_is_the_networks_with_the_tasks_own_noise() -> None:
    one, z = model(), normal(2, 3, 15)
    data = Context.of(normal(3, 4, 2, seed=1), normal(3, 4, 1, seed=2))
    net = mlp(2, 1, (3,), activation="tanh").double()
    law = one.likelihood(z.unsqueeze(-2), data)
    for s in range(2):
        for b in range(3):
            nn.utils.vector_to_parameters(z[s, b, :13], net.parameters())
            residual = (data.y[b] - net(data.x[b])).squeeze(-1)
            log_gamma = z[s, b, 13]
            expected = 0.5 * (log_gamma - math.log(2 * math.pi) - log_gamma.exp() * residual.square())
            torch.testing.assert_close(law.log_prob(data.y)[s, b], expected)


def test_moments_are_those_of_the_draws() -> None:
    """Means within 4.5 standard errors, variances too (15 coordinates each: p < 3e-4), with a fourth moment."""
    law = WeightsAndPrecisions(13, torch.tensor([3.0, 0.5]).double(), torch.tensor([12.0, 6.0]).double(), (1,))
    with torch_seeded(0):
        draws = law.rsample((40_000,)).squeeze(1)
    error = law.stddev[0] / 200
    assert ((draws.mean(0) - law.mean[0]).abs() < 4.5 * error).all()
    square = (draws - law.mean[0]).square()
    assert ((square.mean(0) - law.variance[0]).abs() < 4.5 * square.std(0) / 200).all()
    assert ((square.mean(0) - 1.1 * law.variance[0]).abs() > 4.5 * square.std(0) / 200).any(), "the twin"
    assert law.expand((5,)).sample().shape == (5, 15)


def test_only_real_latents_and_frozen_networks() -> None:
    one = model()
    require_real("test", one)
    assert not [p for p in one.parameters() if p.requires_grad]
    assert one.weights == 13 and one.prior(2).event_shape == (15,)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"predicts each datum by itself, got one with BatchNorm.*norm=false"):
        NoisyNetworkModel(mlp(2, 1, (3,), norm=True), 1)
    with pytest.raises(ValueError, match=r"shapes and rates > 0, got \(2.0, 0.0\)"):
        model(noise=(2.0, 0.0))
