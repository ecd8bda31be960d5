"""iMAML: what its gradient reaches. That it is the right one is in tests/inference/test_hierarchical_bayes.py."""

import pytest
import torch
from torch import Tensor, nn

from bayesmeta.algorithms.imaml import IMAML
from bayesmeta.episodic import Episodes
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.models.architectures import Network
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context, Spec

SMALL = {"network": Network(widths=(6, 5), activation="tanh"), "episodes": Episodes(meta_batch=3, shots=4, queries=5)}


def learner(spec: Spec | None = None, **options: object) -> tuple[IMAML, Context, Context]:
    family = Sinusoid()
    with torch_seeded(0):
        found = IMAML(spec or family.spec, **(SMALL | options))
    found.setup(family, 0)
    found.inference.double()
    support, query = (Context(c.x.double(), c.y.double(), c.mask) for c in found.draw())
    return found, support, query


def gradients(found: IMAML, support: Context, query: Context) -> dict[str, Tensor]:
    names = {p: name for name, p in found.inference.named_parameters()}
    grads = torch.autograd.grad(found.loss(support, query), found.parameters)
    return {names[p]: g for p, g in zip(found.parameters, grads, strict=True)}


def test_the_gradient_reaches_the_start_the_noise_and_the_scales_and_not_the_inner_rate() -> None:
    found = gradients(*learner(learn_scale=True))
    assert len(found) == 8 and not any("optimizer" in name for name in found)
    assert all(g.abs().max() > 1e-6 for g in found.values())
    assert not any("log_scale" in name for name in gradients(*learner()))
    assert not any("log_noise" in name for name in gradients(*learner(learn_noise=False)))


def test_the_body_is_trained_through_a_head_that_alone_adapts() -> None:
    algorithm, support, query = learner(adapt="head")
    z = algorithm.inference.update(algorithm.inference.init(3), support).z
    assert z.shape == (3, 6) and len(z.unique(dim=0)) == 3
    assert all(g.abs().max() > 1e-6 for g in gradients(algorithm, support, query).values())


def test_a_narrow_prior_leaves_plain_training_on_the_queries() -> None:
    """``lambda`` without bound: nothing adapts, and the gradient is that of one network for all tasks."""
    algorithm, support, query = learner(scale=1e-5)
    model = algorithm.inference.model
    joint = -model.log_likelihood(model.prior(3).mean, query).mean() / 5
    names = {p: name for name, p in algorithm.inference.named_parameters()}
    plain = torch.autograd.grad(joint, algorithm.parameters)
    found = gradients(algorithm, support, query)
    for parameter, expected in zip(algorithm.parameters, plain, strict=True):
        torch.testing.assert_close(found[names[parameter]], expected, rtol=1e-5, atol=1e-9)
    adapting = gradients(*learner(scale=0.3))
    assert max((adapting[name] - found[name]).abs().max().item() for name in found) > 0.1


@pytest.mark.parametrize(
    ("inner", "rate", "steps"), [("newton", 1.0, 1), ("sgd", 0.6, 40), ("momentum", 0.1, 130), ("adam", 0.05, 150)]
)
def test_every_inner_optimiser_arrives_at_the_posterior_mode(inner: str, rate: float, steps: int) -> None:
    """A linear network: ridge regression around the start, the conjugate posterior's mean."""
    spec = Spec("linear", 1, 1, ())
    algorithm, support, _ = learner(
        spec, network=Network(widths=()), inner=inner, rate=rate, steps=steps, scale=0.7, noise=1.0
    )
    support = Context.of(support.x / 5, support.y)
    model = algorithm.inference.model
    covariance = torch.diag(model.log_scale.detach().exp().square())
    exact = ConjugateGaussian(LinearGaussianModel(model.mean.detach(), covariance, 1.0))
    columns = torch.cat([support.x, torch.ones_like(support.x)], -1)
    expected = exact.update(exact.init(3), Context.of(columns, support.y)).posterior.mean
    with torch.no_grad():
        z = algorithm.inference.update(algorithm.inference.init(3), support).z
    torch.testing.assert_close(z, expected, rtol=0, atol=2e-3)
    assert (z - model.mean).abs().max() > 0.1


def test_classes_and_normalised_networks() -> None:
    spec = Spec("classes", 2, 3, (), classes=True)
    generator = torch.Generator().manual_seed(0)

    def data(rows: int) -> Context:
        y = nn.functional.one_hot(torch.randint(3, (4, rows), generator=generator), 3).double()
        return Context.of(torch.randn(4, rows, 2, generator=generator).double(), y)

    support, query = data(6), data(5)
    losses = []
    for transductive in (False, True):
        algorithm, *_ = learner(spec, network=Network(widths=(5,), norm=True), transductive=transductive)
        losses.append(algorithm.loss(support, query).item())
    assert losses[0] != losses[1] and all(0 < loss < 10 for loss in losses)
    assert [name for name in gradients(algorithm, support, query) if "noise" in name] == []


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected episodes.compiled = false, as an implicit gradient"):
        learner(episodes=Episodes(compiled=True))
