"""PLATIPUS's ELBO: against a loop over tasks with autograd, and which part of it reaches which parameter."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from bayesmeta.algorithms.platipus import PLATIPUS
from bayesmeta.episodic import Episodes
from bayesmeta.models.architectures import Network
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, Spec

SPEC = Spec("test", 2, 1, ("parameter",))
CLASSES = Spec("test", 2, 3, ("parameter",), classes=True)
TASKS, SHOTS, QUERIES, DRAWS = 3, 4, 5, 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learner(spec: Spec = SPEC, **options: object) -> PLATIPUS:
    options = {"steps": 2, "rate": 0.125, "shift_rate": 0.0625, "start_scale": 0.5, "draws": DRAWS} | options
    options = {"network": Network(widths=(5,), activation="tanh")} | options
    with torch_seeded(0):
        made = PLATIPUS(spec, episodes=Episodes(meta_batch=2, updates=1), **options)
    made.inference.double()
    return made


def data(spec: Spec = SPEC) -> tuple[Context, Context]:
    x, y = normal(TASKS, SHOTS + QUERIES, 2, seed=1), normal(TASKS, SHOTS + QUERIES, spec.y_dim, seed=2)
    if spec.classes:
        y = nn.functional.one_hot(y.argmax(-1), spec.y_dim).double()
    both = Context.of(x, y)
    return both.rows(0, SHOTS), both.rows(SHOTS, SHOTS + QUERIES)


def looped(platipus: PLATIPUS, support: Context, query: Context, noise: Tensor, kl_weight: float) -> Tensor:
    """Algorithm 1 as one would write it, with mean squared errors inside and the sum of log densities outside."""
    inference = platipus.inference
    network, log_noise = inference.model.network, inference.model.output.log_noise
    sigma, v = inference.model.log_scale.exp(), inference.proposal_log_scale.exp()
    shapes = {name: p.shape for name, p in network.named_parameters()}

    def squared_error(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = z.split([shape.numel() for shape in shapes.values()])
        weights = {n: p.view(shape) for (n, shape), p in zip(shapes.items(), parts, strict=True)}
        return (functional_call(network, weights, (x,)) - y).square().mean()

    def gradient(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.autograd.grad(squared_error(z, x, y), z, create_graph=True)[0]

    mu, losses = nn.utils.parameters_to_vector(network.parameters()), []
    for b, (xs, ys, xq, yq) in enumerate(zip(support.x, support.y, query.x, query.y, strict=True)):
        q = Normal(mu - inference.proposal_rate * gradient(mu, xq, yq), v)
        p = Normal(mu - inference.rate * gradient(mu, xs, ys), sigma)
        fit = 0.0
        for draw in noise[:, b]:
            z = q.loc + v * draw
            for _ in range(2):
                z = z - 0.125 * gradient(z, xs, ys)
            residual = squared_error(z, xq, yq) * QUERIES
            constant = QUERIES * (log_noise + 0.5 * torch.log(2 * torch.tensor(torch.pi, dtype=torch.float64)))
            fit = fit - (0.5 * residual * (-2 * log_noise).exp() + constant) / DRAWS
        losses.append(kl_weight * kl_divergence(q, p).sum() - fit)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_loss_and_gradients_are_the_loops(kl_weight: float) -> None:
    platipus = learner(kl_weight=kl_weight)
    support, query = data()
    with torch_seeded(3):
        found = platipus.loss(support, query)
    with torch_seeded(3):
        noise = torch.randn(DRAWS, TASKS, 21, dtype=torch.float64)
    expected = looped(platipus, support, query, noise, kl_weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    names = [n for n, p in platipus.inference.named_parameters() if p.requires_grad]
    assert len(names) == 4 + 5  # the network; sigma, v, the noise and both shifts
    gradients = [torch.autograd.grad(loss, platipus.parameters, retain_graph=True) for loss in (found, expected)]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        assert ours.abs().max() > 0, name
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=name)


def test_first_order_is_another_gradient() -> None:
    gradients = []
    for first_order in (False, True):
        platipus = learner(first_order=first_order)
        weight = platipus.inference.model.network.get_parameter("0.weight")
        with torch_seeded(3):
            gradients.append(torch.autograd.grad(platipus.loss(*data()), weight)[0])
    assert ((gradients[0] - gradients[1]).norm() / gradients[0].norm()) > 1e-2


def test_prior_and_its_shift_are_in_the_divergence_alone() -> None:
    """Without its weight they have no gradient at all, and q, whose draws are what descends, has one."""
    platipus = learner(kl_weight=0.0)
    inference = platipus.inference
    parameters = [inference.model.log_scale, inference.rate, inference.proposal_log_scale, inference.proposal_rate]
    with torch_seeded(3):
        gradients = torch.autograd.grad(platipus.loss(*data()), parameters)
    assert [bool(g.abs().max() > 0) for g in gradients] == [False, False, True, True]


def test_divergence_is_zero_where_both_have_seen_the_same() -> None:
    """q of the query and p of the support are then one law: the loss is the likelihood's alone."""
    support, _ = data()
    losses = []
    for kl_weight in (0.0, 1.0):
        platipus = learner(kl_weight=kl_weight)
        with torch_seeded(3):
            losses.append(platipus.loss(support, support).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


def test_beliefs_have_as_many_draws_as_asked() -> None:
    platipus, (support, _) = learner(particles=7), data()
    inference = platipus.inference
    belief = inference.update(inference.init(TASKS), support)
    assert belief.z.shape == (TASKS, 7, 21)
    torch.testing.assert_close(belief.posterior.mean, belief.z.mean(1))


def test_classes_and_their_normalisation() -> None:
    """By the support unless asked: whether a query's density depends on the other queries."""
    support, query = data(CLASSES)
    other = Context.of(torch.cat([query.x[:, :1], 5 + query.x[:, 1:]], 1), query.y)
    first = torch.arange(QUERIES).expand(TASKS, -1) < 1
    change = {}
    for asked in (False, True):
        platipus = learner(CLASSES, network=Network(widths=(5,), norm=True), transductive=asked, first_order=True)
        proposal = platipus.inference.proposal(query)  # the same for both: only what is predicted may differ
        platipus.inference.proposal = lambda _, proposal=proposal: proposal
        losses = []
        for rows in (query, other):
            with torch_seeded(3):
                losses.append(platipus.loss(support, Context(rows.x, rows.y, first)).item())
        change[asked] = abs(losses[0] - losses[1])
    assert change[False] < 1e-12 < 1e-4 < change[True]
