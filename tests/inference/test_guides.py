"""Pyro's ELBO objects on a procedure's guide: values as Pyro has them, gradients as derived by hand."""

import math

import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from bayesmeta.inference.beliefs import DiagonalGaussian
from bayesmeta.inference.guides import elbo_loss, guide, posterior_guide
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.models.task_model import FactorModel
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.types import Context

BATCH, PARTICLES = 3, 4
FAMILY = NormalNormal(noise=0.8)
RENYI = {"alpha": 0.5, "num_particles": PARTICLES, "max_plate_nesting": 2}
OBJECTS = [
    Trace_ELBO(),
    TraceMeanField_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=2),
    RenyiELBO(**RENYI),
    RenyiELBO(**RENYI, vectorize_particles=True),
]


@pytest.fixture
def data() -> Context:
    generator = torch.Generator().manual_seed(0)
    full = FAMILY.context(FAMILY.sample(BATCH, "train", generator), 4, generator)
    return Context(full.x, full.y, torch.arange(4) < torch.tensor([[4], [2], [1]]))


def encoder() -> ProductOfGaussians:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ProductOfGaussians(1, 1, 1, widths=(8,))


@pytest.mark.parametrize("elbo", OBJECTS, ids=lambda elbo: type(elbo).__name__)
def test_value_is_pyros(elbo: Trace_ELBO, data: Context) -> None:
    program = guide(encoder())
    torch.manual_seed(2)
    ours = elbo_loss(elbo, FAMILY.model, program, data)
    torch.manual_seed(2)
    assert ours.item() == pytest.approx(elbo.loss(FAMILY.model, program, data), rel=1e-5)


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_renyi_gradient_by_hand(alpha: float, vectorised: bool, data: Context) -> None:
    """``-sum_b log mean_k w_kb^(1 - alpha) / (1 - alpha)`` of written-out normals at the same draws."""

    def by_hand(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        def normal(value: Tensor, loc: Tensor, scale: Tensor | float) -> Tensor:
            scale = torch.as_tensor(scale)
            return -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)

        z = mean + log_std.exp() * noise  # [K, B, 1]
        likelihood = (normal(data.y.squeeze(-1), z, 0.8) * data.mask).sum(-1)
        log_weight = (
            normal(z, torch.zeros(()), 1.0).squeeze(-1) + likelihood - normal(z, mean, log_std.exp()).squeeze(-1)
        )
        powered = (1 - alpha) * log_weight
        return -((powered.logsumexp(0) - math.log(PARTICLES)) / (1 - alpha)).sum()

    mean = torch.randn(BATCH, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_std = torch.full((BATCH, 1), -0.5, requires_grad=True)

    def program(_: Context) -> Tensor:
        precision = (-2 * log_std).exp()
        return posterior_guide(DiagonalGaussian(mean * precision, precision).posterior)

    elbo = RenyiELBO(alpha=alpha, num_particles=PARTICLES, vectorize_particles=vectorised, max_plate_nesting=2)
    torch.manual_seed(3)
    ours = elbo_loss(elbo, FAMILY.model, program, data)
    torch.manual_seed(3)
    noise = torch.randn(PARTICLES, BATCH, 1)
    theirs = by_hand(mean, log_std, noise)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, (mean, log_std)), torch.autograd.grad(theirs, (mean, log_std)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kl_weight", [0.1, 3.0])
def test_control_as_inference_is_factor_minus_weighted_kl(kl_weight: float, data: Context) -> None:
    """``E[factor] - kl_weight KL(q || prior)``, the KL in closed form, for a factor that does not depend on z."""
    procedure = encoder()
    model = FactorModel(FAMILY.model.prior, lambda z, _: torch.arange(3.0), kl_weight)

    def program(_batch: int, _data: Context) -> Tensor:
        return posterior_guide(procedure.update(procedure.init(BATCH), data).posterior, kl_weight)

    loss = elbo_loss(TraceMeanField_ELBO(), model, program, BATCH, data)
    q = procedure.update(procedure.init(BATCH), data).posterior
    kl = 0.5 * (q.variance + q.mean**2 - 1 - q.variance.log()).sum()
    torch.testing.assert_close(loss, kl_weight * kl - 3.0)
