"""BMAML's losses: the chaser's gradient by hand where it is known, both losses against loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from bayesmeta.algorithms.bmaml import BMAML
from bayesmeta.episodic import Episodes
from bayesmeta.inference.svgd import stein_direction
from bayesmeta.models.architectures import Network
from bayesmeta.models.noisy_network import NoisyNetworkModel
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, Spec, concat

SPEC = Spec("test", 2, 1, ("parameter",))
CLASSES = Spec("test", 2, 3, ("parameter",), classes=True)
TASKS, SHOTS, QUERIES = 3, 4, 5
RATE = 1 / 64  # the same number in single precision


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learner(spec: Spec = SPEC, **options: object) -> BMAML:
    options = {"particles": 4, "rate": RATE, "noise": 0.5, "network": Network(widths=(5,), activation="tanh")} | options
    with torch_seeded(0):
        made = BMAML(spec, episodes=Episodes(meta_batch=2, updates=1), **options)
    made.inference.double()
    return made


def data(spec: Spec = SPEC) -> tuple[Context, Context]:
    x, y = normal(TASKS, SHOTS + QUERIES, 2, seed=1), normal(TASKS, SHOTS + QUERIES, spec.y_dim, seed=2)
    if spec.classes:
        y = nn.functional.one_hot(y.argmax(-1), spec.y_dim).double()
    both = Context.of(x, y)
    return both.rows(0, SHOTS), both.rows(SHOTS, SHOTS + QUERIES)


def test_chasers_gradient_is_the_one_by_hand() -> None:
    """One particle of a linear network with fixed precisions: everything is quadratic.

    With ``H = X^T X / s^2 + I / t^2`` and ``b = X^T y / s^2`` the follower is ``f = w - a (H w - b)``, the leader with
    all data ``l = f - a (H' f - b')``, the loss ``|f - l|^2`` and, the leader being held, its gradient ``2 (I - a H) (f
    - l)``. Were it not held there would be a factor ``a H'`` more.
    """
    chaser = learner(particles=1, network=Network(widths=()), precisions="fixed", prior_scale=2.0)
    support, query = data()
    (start,) = (p for p in chaser.inference.parameters() if p.requires_grad)
    noise, scale = chaser.inference.model.output.log_noise.exp(), chaser.inference.model.log_scale[0].exp()
    loss = chaser.loss(support, query)

    def quadratic(rows: Context) -> tuple[Tensor, Tensor]:
        x = torch.cat([rows.x, torch.ones_like(rows.x[..., :1])], -1)
        return x.mT @ x / noise**2 + torch.eye(3).double() / scale**2, x.mT @ rows.y / noise**2

    (h, b), (h_all, b_all) = quadratic(support), quadratic(concat([support, query]))
    w = start.detach().T
    follower = w - RATE * (h @ w - b)
    difference = RATE * (h_all @ follower - b_all)
    torch.testing.assert_close(loss, difference.square().sum((1, 2)).mean(), rtol=1e-10, atol=0)
    expected = 2 * (difference - RATE * h @ difference).mean(0).T
    (found,) = torch.autograd.grad(loss, start)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    not_held = (RATE * h_all @ expected.T).mean(0).T
    assert (found - not_held).norm() / found.norm() > 0.1


@pytest.mark.parametrize("kind", ["chaser", "emaml", "mixture"])
def test_losses_of_many_particles_are_the_loops(kind: str) -> None:
    """Task by task: two steps of the support's particles, and one of the leader's; distances without precisions."""
    bmaml = learner(loss=kind, steps=2, leader_steps=1)
    (support, query), inference = data(), bmaml.inference
    model = inference.model
    assert isinstance(model, NoisyNetworkModel)

    def row(rows: Context, b: int) -> Context:
        return Context.of(rows.x[b : b + 1], rows.y[b : b + 1])

    def stepped(z: Tensor, rows: Context) -> Tensor:
        z = z if z.requires_grad else z.requires_grad_()
        joint = sum(model.log_joint(p[None], rows).sum() for p in z.unbind())
        (scores,) = torch.autograd.grad(joint, z, create_graph=True)
        return z + RATE * stein_direction(z[None], scores[None], inference.kernel)[0]

    losses = []
    for b in range(TASKS):
        z = inference.start
        for _ in range(2):
            z = stepped(z, row(support, b))
        if kind == "chaser":
            leader = stepped(z.detach(), concat([row(support, b), row(query, b)])).detach()
            losses.append((z - leader)[:, :-2].square().sum())
        else:
            data_of_one = row(query, b)
            rows = [Context.of(data_of_one.x[:, i : i + 1], data_of_one.y[:, i : i + 1]) for i in range(QUERIES)]
            for together in [data_of_one] if kind == "emaml" else rows:
                log_prob = torch.stack([model.log_likelihood(p[None], together).sum() for p in z])
                losses.append(-(log_prob.exp().mean().log()))
    expected, found = torch.stack(losses).sum() / TASKS, bmaml.loss(support, query)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    ours, theirs = (torch.autograd.grad(loss, inference.start)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
    assert (ours.norm(dim=-1) > 0).all() and (ours[:, -2:].abs() > 0).any()


def test_the_start_is_all_that_is_learned() -> None:
    for options in ({}, {"precisions": "fixed"}):
        bmaml = learner(**options)
        assert [n for n, p in bmaml.inference.named_parameters() if p.requires_grad] == ["start"]
    start = learner().inference.start
    assert len(start[:, :-2].unique(dim=0)) == 4
    torch.testing.assert_close(start[:, -2:], torch.tensor([[-2 * math.log(0.5), 0.0]]).double().expand(4, -1))


def test_fixed_precisions_have_a_prior_around_zero() -> None:
    prior = learner(precisions="fixed", prior_scale=0.3).inference.model.prior(1)
    assert prior.mean.abs().max() == 0
    torch.testing.assert_close(prior.stddev, torch.full_like(prior.stddev, 0.3))


@pytest.mark.parametrize("kind", ["chaser", "emaml", "mixture"])
def test_classes_have_fixed_precisions(kind: str) -> None:
    bmaml = learner(CLASSES, loss=kind)
    loss = bmaml.loss(*data(CLASSES))
    assert torch.autograd.grad(loss, bmaml.inference.start)[0].abs().max() > 0
    with pytest.raises(ValueError, match="expected precisions = fixed for classes"):
        learner(CLASSES, precisions="latent")


def test_batch_normalisation_is_inductive_unless_asked() -> None:
    """Whether a query's density depends on the other queries."""
    network = Network(widths=(5,), norm=True)
    support, query = data(CLASSES)
    other = Context.of(torch.cat([query.x[:, :1], 5 + query.x[:, 1:]], 1), query.y)
    one = [Context(q.x, q.y, torch.arange(QUERIES).expand(TASKS, -1) < 1) for q in (query, other)]
    change = {}
    for asked in (False, True):
        emaml = learner(CLASSES, loss="emaml", network=network, transductive=asked)
        change[asked] = (emaml.loss(support, one[0]) - emaml.loss(support, one[1])).abs().item()
    assert change[False] < 1e-12 < 1e-4 < change[True]
