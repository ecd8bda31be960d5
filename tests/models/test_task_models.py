"""The supervised task models: shapes, conventions, and what they refuse."""

import math

import pyro.distributions as dist
import pytest
import torch

from bayesmeta.models.beta_bernoulli import BetaBernoulliModel
from bayesmeta.models.distributions import OneRow
from bayesmeta.models.finite import FiniteModel
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.sinusoid import SinusoidModel
from bayesmeta.models.task_model import TaskModel
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context, SupervisedFamily


@pytest.mark.parametrize(
    "family",
    [LinearGaussian(dim=3), Sinusoid(), BernoulliBandit(arms=4), FiniteHypotheses()],
    ids=lambda f: f.spec.name,
)
def test_shapes_with_and_without_draws(family: SupervisedFamily) -> None:
    """``z [*S, B, D]`` for any number of leading axes of draws; every draw by itself gives the same."""
    generator = torch.Generator().manual_seed(0)
    z = family.sample(6, "train", generator).reshape(3, 2, -1)
    data = family.context(z[0], 5, generator)
    model = family.model
    assert model.prior(2).batch_shape == (2,) and model.prior(2).event_shape == z.shape[-1:]
    law = model.likelihood(z.unsqueeze(-2), data)
    assert law.batch_shape == (3, 2, 5) and law.event_shape == (1,)
    joint = model.log_joint(z, data)
    assert joint.shape == (3, 2)
    torch.testing.assert_close(joint, torch.stack([model.log_joint(each, data) for each in z]))
    torch.testing.assert_close(model.log_joint(z.unsqueeze(1), data), joint.unsqueeze(1))
    assert torch.equal(model.log_likelihood(z, data.rows(0, 0)), torch.zeros(3, 2))


def test_sinusoid_is_shifted_by_x_minus_phase() -> None:
    """``a sin(x - phi)``, as published: a root at the phase and the amplitude a quarter turn later."""
    z = torch.tensor([[[2.0, 1.0]]])
    x = torch.tensor([[[1.0], [1.0 + math.pi / 2]]])
    law = SinusoidModel(noise=0.1).likelihood(z, Context.of(x, torch.zeros_like(x)))
    torch.testing.assert_close(law.mean.flatten(), torch.tensor([0.0, 2.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(law.stddev.flatten(), torch.tensor([0.1, 0.1]))


def test_sinusoid_has_no_density_outside_its_box() -> None:
    model = SinusoidModel(noise=0.1)
    inside = model.log_prior(torch.tensor([[2.0, 1.0]]))
    assert math.isclose(float(inside), -math.log(4.9 * math.pi), rel_tol=1e-6)
    assert float(model.log_prior(torch.tensor([[6.0, 1.0]]))) == -math.inf


def test_a_box_of_each_task_is_the_support_beside_the_datum_axis() -> None:
    """Samplers move in the unconstrained space of the site ``z [B, 1, D]``: each task must land in its own box."""
    low = torch.tensor([[0.0, 10.0], [20.0, 30.0], [40.0, 50.0]])
    site = OneRow(dist.Uniform(low, low + 2.0).to_event(1))
    centre = torch.distributions.biject_to(site.support)(torch.zeros(3, 1, 2))
    torch.testing.assert_close(centre, (low + 1.0).unsqueeze(1))
    assert site.support.check(centre).all() and not site.support.check(centre.roll(1, 0)).any()


def test_a_linear_datum_is_an_inner_product_in_noise() -> None:
    model = LinearGaussianModel(torch.zeros(2), torch.eye(2), noise=0.5)
    data = Context.of(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5]]]))
    by_hand = -0.5 * ((0.5 - (3.0 - 2.0)) / 0.5) ** 2 - math.log(0.5 * math.sqrt(2 * math.pi))
    assert math.isclose(float(model.log_likelihood(torch.tensor([[3.0, 1.0]]), data)), by_hand, rel_tol=1e-6)


def test_bandit_pays_with_the_pulled_arms_probability() -> None:
    model = BetaBernoulliModel(torch.ones(2), torch.ones(2))
    data = Context.of(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[[1.0], [0.0], [1.0]]]))
    found = model.log_likelihood(torch.tensor([[0.3, 0.8]]), data)
    assert math.isclose(float(found.exp()), 0.3 * 0.2 * 0.8, rel_tol=1e-5)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="noise is a standard deviation, expected > 0, got 0"):
        LinearGaussianModel(torch.zeros(1), torch.eye(1), noise=0.0)
    with pytest.raises(ValueError, match="symmetric positive definite covariance"):
        LinearGaussianModel(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), noise=1.0)
    with pytest.raises(ValueError, match="symmetric positive definite covariance"):
        LinearGaussianModel(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), noise=1.0)
    with pytest.raises(ValueError, match="noise is a standard deviation, expected > 0, got -1"):
        SinusoidModel(noise=-1.0)
    with pytest.raises(ValueError, match=r"expected phase = \(low, high\) with low < high"):
        SinusoidModel(phase=(1.0, 1.0), noise=0.1)
    with pytest.raises(ValueError, match="alpha, beta > 0 for every arm"):
        BetaBernoulliModel(torch.tensor([1.0, 0.0]), torch.ones(2))
    with pytest.raises(ValueError, match="distinct points, got duplicates"):
        FiniteModel(torch.zeros(2, 1), torch.zeros(2), lambda z, x: dist.Normal(z, 1.0).to_event(1))


def test_a_model_that_states_nothing_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match=r"TaskModel needs `prior\(batch\)`"):
        TaskModel().prior(1)
    with pytest.raises(NotImplementedError, match=r"TaskModel needs `likelihood\(z, data\)`"):
        TaskModel().likelihood(torch.zeros(1, 1, 1), Context.empty(1, 1, 1))
