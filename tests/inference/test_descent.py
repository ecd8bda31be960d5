"""The inner loop against a plain loop over tasks, in float64, and its gradients against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesmeta.inference import descent
from bayesmeta.inference.descent import SGD, Adam, Momentum, Preconditioned, descend
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.models.architectures import conv4, mlp
from bayesmeta.models.batch_norm import BatchNorm, statistics_from
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import ClassOutput, GaussianOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context

TASKS, SHOTS, QUERIES = 3, 5, 4


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with torch_seeded(0):
        return make().double()


NETWORKS = {
    "mlp": lambda: mlp(2, 2, (6, 5), activation="tanh"),
    "relu": lambda: mlp(2, 2, (6, 5)),
    "norm": lambda: mlp(2, 2, (6, 5), activation="tanh", norm=True),
    "no_bias": lambda: nn.Sequential(nn.Linear(2, 6, bias=False), nn.Tanh(), nn.Linear(6, 2)),
    "shared_middle": lambda: nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 2)),
    "own_module": lambda: Residual(),
    "conv": lambda: conv4((2, 4, 4), 2, filters=3),
}


class Residual(nn.Module):
    """Not a sequence: it goes through vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(2, 2), nn.Linear(2, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.second(self.first(x).tanh())


def data(x_dim: int, seed: int = 0) -> tuple[Context, Context]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TASKS, SHOTS + QUERIES, x_dim, generator=generator, dtype=torch.float64)
    y = torch.randn(TASKS, SHOTS + QUERIES, 2, generator=generator, dtype=torch.float64)
    both = Context.of(x, y)
    return both.rows(0, SHOTS), both.rows(SHOTS, SHOTS + QUERIES)


def looped(network: nn.Module, support: Context, query: Context, rate: float, steps: int, first_order: bool) -> Tensor:
    """MAML as one would write it: a loop over tasks and steps, autograd.grad, mean squared errors."""
    losses = []
    for xs, ys, xq, yq in zip(support.x, support.y, query.x, query.y, strict=True):
        weights = dict(network.named_parameters())
        for _ in range(steps):
            loss = (functional_call(network, weights, (xs,)) - ys).square().sum(-1).mean()
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
            weights = {n: w - rate * g for (n, w), g in zip(weights.items(), grads, strict=True)}
        losses.append((functional_call(network, weights, (xq,)) - yq).square().sum(-1).mean())
    return torch.stack(losses).mean()


def procedure(network: nn.Module, steps: int, **options: object) -> GradientDescent:
    model = NetworkModel(network, GaussianOutput(2).double())
    x_dim = 32 if isinstance(network, nn.Sequential) and isinstance(network[0], nn.Unflatten) else 2
    options = {
        "objective": "squared_error",
        "reduction": "mean",
        "optimizer": SGD(torch.tensor(0.1, dtype=torch.float64)),
    } | options
    return GradientDescent(model, x_dim=x_dim, y_dim=2, steps=steps, **options)


def query_loss(inference: GradientDescent, support: Context, query: Context) -> Tensor:
    """The mean squared error, of which the log-likelihood with a standard deviation of 1 is a linear function."""
    return -2 * inference.log_predictive(support, query).mean() - 2 * math.log(2 * math.pi)


FORMS = [(name, form) for name in NETWORKS for form in ("dense", "low rank", "checkpointed")]
FORMS = [case for case in FORMS if case not in (("own_module", "low rank"), ("conv", "low rank"))]


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_meta_gradient_is_the_loops(
    name: str, steps: int, first_order: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = built(NETWORKS[name])
    inference = procedure(network, steps, first_order=first_order, checkpointed=form == "checkpointed")
    support, query = data(inference.x_dim)
    monkeypatch.setattr("bayesmeta.inference.gradient.worthwhile", lambda *_: form == "low rank")
    parameters = list(network.parameters())
    expected = looped(network, support, query, 0.1, steps, first_order)
    found = query_loss(inference, support, query)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "norm", "conv"])
def test_first_order_is_another_gradient(name: str) -> None:
    """The twin that must fail: a first-order gradient is not the full one."""
    network = built(NETWORKS[name])
    support, query = data(procedure(network, 1).x_dim)
    full, first = (
        torch.autograd.grad(
            query_loss(procedure(network, 2, first_order=f), support, query), list(network.parameters())
        )
        for f in (False, True)
    )
    assert max(((a - b).norm() / a.norm()).item() for a, b in zip(full, first, strict=True)) > 1e-2


def test_torchs_own_batch_norm_under_vmap_is_wrong_and_ours_is_right() -> None:
    """Why there is one of our own: the meta-gradient with F.batch_norm under vmap is not the loop's."""

    def meta_gradient(norm: Callable[[int], nn.Module]) -> tuple[Tensor, Tensor]:
        network = built(lambda: nn.Sequential(nn.Linear(2, 6), norm(6), nn.Tanh(), nn.Linear(6, 2)))
        support, query = data(2)
        weights = dict(network.named_parameters())

        def one(xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
            def loss(w: dict[str, Tensor]) -> Tensor:
                return (functional_call(network, w, (xs,)) - ys).square().sum(-1).mean()

            adapted = {
                n: w - 0.1 * g
                for (n, w), g in zip(weights.items(), torch.func.grad(loss)(weights).values(), strict=True)
            }
            return (functional_call(network, adapted, (xq,)) - yq).square().sum(-1).mean()

        batched = torch.func.vmap(one)(support.x, support.y, query.x, query.y).mean()
        plain = looped(network, support, query, 0.1, 1, first_order=False)
        return tuple(torch.autograd.grad(loss, weights["0.weight"])[0] for loss in (batched, plain))

    ours, loop = meta_gradient(BatchNorm)
    torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-13)
    theirs, loop = meta_gradient(lambda c: nn.BatchNorm1d(c, track_running_stats=False))
    assert (theirs - loop).norm() / loop.norm() > 1e-4


@pytest.mark.parametrize(
    "optimizer",
    [
        Momentum(0.05),
        Adam(0.05),
        SGD(torch.tensor([[0.1], [0.02]])),
        Preconditioned(torch.tensor([[0.3, 0.1], [0.1, 0.2]])),
    ],
    ids=lambda o: type(o).__name__,
)
def test_optimisers_are_torchs_and_differentiable(optimizer: descent.InnerOptimizer) -> None:
    """Three steps on a quadratic: torch.optim's where it has the optimiser, and gradients by finite differences."""
    optimizer = optimizer.double()
    target = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return (curvature * (z - target).square()).sum(-1) + (z[:, 0] * z[:, 1]).sin()

    start = torch.tensor([[0.3, 0.7], [-0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: descend(loss, z, optimizer, 3), start)
    assert torch.autograd.gradcheck(lambda z: descend(loss, z, optimizer, 3, checkpointed=True), start)
    theirs = {
        Momentum: lambda z: torch.optim.SGD([z], lr=0.05, momentum=0.9),
        Adam: lambda z: torch.optim.Adam([z], lr=0.05),
    }.get(type(optimizer))
    if theirs:
        z = start.detach().clone().requires_grad_()
        theirs = theirs(z)
        for _ in range(3):
            theirs.zero_grad()
            loss(z).sum().backward()
            theirs.step()
        torch.testing.assert_close(descend(loss, start, optimizer, 3), z, rtol=1e-6, atol=1e-8)


def test_adam_has_a_gradient_where_the_loss_does_not_depend_on_a_parameter() -> None:
    start = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    end = descend(lambda z: z[:, 0].square(), start, Adam(0.1).double(), 2)
    (gradient,) = torch.autograd.grad(end.sum(), start)
    assert gradient.isfinite().all() and gradient[0, 1] == 1


def test_statistics_of_the_support_make_queries_independent_of_each_other() -> None:
    network = built(NETWORKS["norm"])
    support, query = data(2)
    x = torch.cat([support.x, query.x], 1)
    other = torch.cat([support.x, query.x[:, :1], 5 + query.x[:, 1:]], 1)
    weights = NetworkModel(network, GaussianOutput(2).double()).prior(TASKS).mean.unsqueeze(-2)
    outputs = NetworkModel(network, GaussianOutput(2).double()).outputs
    with statistics_from(SHOTS):
        inductive, inductive_other = outputs(weights, x), outputs(weights, other)
    torch.testing.assert_close(inductive[:, SHOTS], inductive_other[:, SHOTS])
    assert (outputs(weights, x)[:, SHOTS] - outputs(weights, other)[:, SHOTS]).abs().min() > 1e-3


def test_memory_of_checkpoints_does_not_grow_like_the_graphs() -> None:
    """The tensors that backward keeps, counted: with checkpoints a few per step, without them the whole graph."""

    def kept(checkpointed: bool) -> int:
        network = built(NETWORKS["own_module"])
        support, _ = data(2)
        inference = procedure(network, 10, checkpointed=checkpointed)
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            inference.update(inference.init(TASKS), support)
        return sum(sizes)

    assert kept(True) < 0.5 * kept(False)


def test_layers_that_cannot_be_differentiated_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d at '1'.*bayesmeta.models.batch_norm.BatchNorm"):
        NetworkModel(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), GaussianOutput(3))


def test_padding_is_refused_where_rows_mix_and_ignored_elsewhere() -> None:
    support, _ = data(2)
    padded = Context(support.x, support.y, torch.arange(SHOTS).expand(TASKS, -1) < 3)
    inference = procedure(built(NETWORKS["norm"]), 1)
    with pytest.raises(ValueError, match=r"normalises over the rows.*6 padded rows"):
        inference.update(inference.init(TASKS), padded)
    inference = procedure(built(NETWORKS["mlp"]), 2)
    z = inference.update(inference.init(TASKS), padded).z
    short = inference.update(inference.init(TASKS), support.rows(0, 3)).z
    torch.testing.assert_close(z, short, rtol=1e-12, atol=0)


def test_shared_parameters_are_no_part_of_the_latent_and_are_trained() -> None:
    """ANIL: only the head moves in the inner loop, and the body's gradient comes through it."""
    network = built(NETWORKS["mlp"])
    model = NetworkModel(network, ClassOutput(2), adapt=("4.",))
    inference = GradientDescent(model, x_dim=2, y_dim=2, steps=2, optimizer=SGD(0.3).double(), reduction="mean")
    support, query = data(2)
    one_hot = nn.functional.one_hot(support.y.argmax(-1), 2).double()
    belief = inference.update(inference.init(TASKS), Context.of(support.x, one_hot))
    assert belief.z.shape == (TASKS, 2 * 5 + 2) and len(belief.z.unique(dim=0)) == TASKS
    labelled = Context.of(query.x, nn.functional.one_hot(query.y.argmax(-1), 2).double())
    loss = -inference.log_predictive(Context.of(support.x, one_hot), labelled).sum()
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, list(network.parameters())))
    with pytest.raises(ValueError, match=r"adapt names no parameter with \['5.'\]"):
        NetworkModel(network, ClassOutput(2), adapt=("5.",))


def test_no_graph_is_built_where_none_is_wanted() -> None:
    inference = procedure(built(NETWORKS["mlp"]), 2)
    support, query = data(2)
    with torch.no_grad():
        assert not inference.update(inference.init(TASKS), support).z.requires_grad
        expected = inference.log_predictive(support, query)
    assert not expected.requires_grad
    torch.testing.assert_close(expected, inference.log_predictive(support, query))
