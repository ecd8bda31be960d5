"""Reptile: its update is the paper's, by plain loops over tasks; what trains the noise; minibatches."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesmeta.algorithms.reptile import _NOISE_RATE, Reptile, minibatches
from bayesmeta.episodic import Episodes
from bayesmeta.models.architectures import Network
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context, Spec, concat

TASKS = 3
EPISODES = Episodes(meta_batch=TASKS, shots=4, queries=6, optimizer="sgd", lr=0.3)
SMALL = {"network": Network(widths=(6, 5), activation="tanh"), "episodes": EPISODES, "inner_batch": 4}


def learner(**options: object) -> tuple[Reptile, Context, Context]:
    family = Sinusoid()
    with torch_seeded(0):
        found = Reptile(family.spec, **(SMALL | {"steps": 6} | options))
    found.setup(family, 0)
    found.inference.double()
    support, query = (Context(c.x.double(), c.y.double(), c.mask) for c in found.draw())
    return found, support, query


def looped(network: nn.Module, batches: list[Context], inner: str) -> dict[str, Tensor]:
    """Mean over tasks of the weights after training on the minibatches, with torch's optimisers."""
    ends = []
    for task in range(TASKS):
        weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
        kind = {
            "sgd": lambda w: torch.optim.SGD(w, lr=0.02),
            "adam": lambda w: torch.optim.Adam(w, lr=0.02, betas=(0.0, 0.999)),
        }
        optimizer = kind[inner](weights.values())
        for batch in batches:
            optimizer.zero_grad()
            out = functional_call(network, weights, (batch.x[task],))
            (out - batch.y[task]).square().sum(-1).mean().backward()
            optimizer.step()
        ends.append(weights)
    return {name: torch.stack([end[name].detach() for end in ends]).mean(0) for name in ends[0]}


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("inner_batch", [4, 12, None])
def test_an_update_moves_a_share_of_the_way_to_the_mean_of_the_tasks_weights(
    inner: str, inner_batch: int | None
) -> None:
    algorithm, support, query = learner(inner=inner, inner_batch=inner_batch)
    network = algorithm.inference.model.network
    with torch_seeded(7):
        batches = minibatches(concat([support, query]), 6, min(inner_batch or 10, 10))
    ends = looped(network, batches, inner)
    expected = {name: p.detach() + 0.3 * (ends[name] - p.detach()) for name, p in network.named_parameters()}
    with torch_seeded(7):
        algorithm.update(support, query)
    for name, parameter in network.named_parameters():
        # Adam's eps stands elsewhere in torch's, which shows where a gradient is small.
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-8 if inner == "sgd" else 1e-5)
    assert sum((p - ends[name]).norm() for name, p in network.named_parameters()) > 1e-2


def test_weights_and_noise_have_gradients_of_their_own() -> None:
    """The weights' is ``theta - mean phi`` with the noise learned or not; the noise's that of the queries' density."""
    found = {}
    for learn_noise in (False, True):
        algorithm, support, query = learner(learn_noise=learn_noise, inner_batch=None, noise=0.8)
        grads = torch.autograd.grad(algorithm.loss(support, query), algorithm.parameters)
        names = {p: name for name, p in algorithm.inference.named_parameters()}
        found[learn_noise] = {names[p]: g for p, g in zip(algorithm.parameters, grads, strict=True)}
    noise = found[True].pop("model.output.log_noise")
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], rtol=1e-10, atol=1e-12)
    model, inference = algorithm.inference.model, algorithm.inference
    with torch.no_grad():
        z = inference.update(inference.init(TASKS), support).z
        squared = (model.likelihood(z.unsqueeze(-2), query).mean - query.y).square().mean()
    expected = _NOISE_RATE * (1 - squared / 0.8**2)
    torch.testing.assert_close(noise, expected, rtol=1e-6, atol=0)


def test_minibatches_go_through_the_data_in_another_order_each_time() -> None:
    _, support, query = learner()
    data = concat([support, query])
    data = Context(data.x, data.y, torch.arange(10).expand(TASKS, -1) < 9)
    with torch_seeded(0):
        batches = minibatches(data, 5, 4)
    assert [b.x.shape for b in batches] == [(TASKS, 4, 1)] * 5
    rows = torch.cat([b.x for b in batches], 1).squeeze(-1)
    for task in range(TASKS):
        for one_pass in rows[task].split(10):
            torch.testing.assert_close(one_pass.sort().values, data.x[task, :, 0].sort().values)
    assert (rows[:, :10] != rows[:, 10:]).any() and (rows.argsort(1)[0] != rows.argsort(1)[1]).any()
    hidden = torch.cat([b.x[~b.mask] for b in batches])
    assert sorted(hidden.flatten().tolist()) == sorted(2 * data.x[:, 9, 0].tolist())


def test_a_task_that_is_its_start_does_not_move_it() -> None:
    algorithm, support, query = learner(learn_noise=False)
    model = algorithm.inference.model
    both = concat([support, query])
    with torch.no_grad():
        own = model.outputs(model.prior(TASKS).mean.unsqueeze(-2), both.x)
    data = Context.of(both.x, own)
    assert algorithm.loss(data.rows(0, 4), data.rows(4, 10)).item() < 1e-20
    assert algorithm.loss(support, query).item() > 1e-3


def test_classes_have_no_noise_to_learn() -> None:
    spec = Spec("classes", 2, 3, (), classes=True)
    algorithm = Reptile(spec, **SMALL)
    generator = torch.Generator().manual_seed(0)
    y = nn.functional.one_hot(torch.randint(3, (TASKS, 8), generator=generator), 3).float()
    data = Context.of(torch.randn(TASKS, 8, 2, generator=generator), y)
    loss = algorithm.loss(data.rows(0, 4), data.rows(4, 8))
    assert math.isfinite(loss.item()) and len(torch.autograd.grad(loss, algorithm.parameters)) == 6


def test_what_it_refuses() -> None:
    for wrong in ({"steps": 0}, {"inner_batch": 0}):
        with pytest.raises(ValueError, match="expected steps >= 1 and inner_batch >= 1"):
            learner(**wrong)
