"""Networks against plain torch: conditioning equals concatenation, every product has the right gradients."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from bayesmeta.models import networks
from bayesmeta.models.networks import MLP, HeldActions, TanhGaussianPolicy, mlp


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("width", [8, 128])
def test_conditioning_equals_an_mlp_on_the_concatenation(members, width):
    torch.manual_seed(0)
    net = MLP(3, 5, (width, width), z_dim=2, members=members)
    x, z = torch.randn(4, 160, 3), torch.randn(4, 2)
    h = torch.cat([x, z.unsqueeze(1).expand(-1, 160, -1)], -1)
    outputs = []
    for e in range(members):
        first = torch.cat([net.weights[0][e], net.latent_weight[e]], -1)
        hidden = F.linear(h, first, net.biases[0][e]).relu()
        hidden = F.linear(hidden, net.weights[1][e], net.biases[1][e]).relu()
        outputs.append(F.linear(hidden, net.weights[2][e], net.biases[2][e]))
    expected = torch.stack(outputs) if members > 1 else outputs[0]
    ours = net(x, z)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)

    weights = torch.randn_like(expected)
    parameters = list(net.parameters())
    mine = torch.autograd.grad((ours * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(net(x, z), expected, rtol=1e-4, atol=1e-5)


def test_one_row_per_task_is_the_same_network():
    net = MLP(3, 2, (8,), z_dim=2)
    x, z = torch.randn(4, 3), torch.randn(4, 2)
    torch.testing.assert_close(net(x, z), net(x.unsqueeze(1), z).squeeze(1))


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("rows", [1, 7])
def test_blocks_of_rows_are_the_whole(rows, conditioned, monkeypatch):
    """Five tasks in blocks of two, the last one short: forwards and backwards as autograd has it layer by layer."""
    monkeypatch.setattr(networks, "_BLOCK", 2 * rows * 6)
    x, share, weights, biases = arguments(rows, conditioned)
    inputs = [t for t in (x, share, *weights, *biases) if t is not None]
    cotangent = torch.randn(2, 5 * rows, 1, dtype=torch.float64)
    mine = mlp(x, share, weights, biases)
    theirs = networks._layers(x, share, weights, biases)[-1]
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(theirs, inputs, cotangent)
    for a, b in zip(torch.autograd.grad(mine, inputs, cotangent), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("conditioned", [False, True])
def test_no_rows(conditioned):
    x, share, weights, biases = arguments(0, conditioned)
    out = mlp(x, share, weights, biases)
    assert out.shape == (2, 0, 1)
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), [*weights, *biases]))
    assert MLP(3, 2, (4,)).forward(torch.zeros(5, 0, 3)).shape == (5, 0, 2)


def test_gradients_of_the_gradient_and_function_transforms(monkeypatch):
    monkeypatch.setattr(networks, "_BLOCK", 12)
    x, share, weights, biases = arguments(2, True)

    def call(x, share, *parameters):
        return mlp(x, share, parameters[:3], parameters[3:]).square()

    inputs = (x, share, *weights, *biases)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    transformed = torch.func.grad(lambda x: call(x, *inputs[1:]).sum())(x)
    (plain,) = torch.autograd.grad(call(*inputs).sum(), [x])
    torch.testing.assert_close(transformed, plain)


def test_gradients_nobody_asked_for_are_not_computed(monkeypatch):
    x, share, weights, biases = arguments(3, True)
    fixed = [[t.detach() for t in group] for group in (weights, biases)]
    expected = torch.autograd.grad(mlp(x, share, weights, biases).sum(), [x])
    monkeypatch.setattr(torch.Tensor, "baddbmm_", None)  # accumulates the weights' gradients
    torch.testing.assert_close(torch.autograd.grad(mlp(x, share, *fixed).sum(), [x]), expected)


def arguments(rows, conditioned):
    """Two networks 3 -> 6 -> 4 -> 1 in float64 on ``rows`` rows of each of five tasks."""
    torch.manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    sizes = (3, 6, 4, 1)
    weights = [leaf(2, o, i) for i, o in pairwise(sizes)]
    biases = [leaf(2, o) for o in sizes[1:]]
    return leaf(5 * rows, 3), leaf(2, 5, 6) if conditioned else None, weights, biases


def test_a_conditioned_network_asks_for_its_latent():
    with pytest.raises(ValueError, match="expected a task latent, got z=None"):
        MLP(3, 2, (8,), z_dim=2)(torch.zeros(1, 3))


def test_the_policy_starts_wide_and_centred():
    torch.manual_seed(0)
    law = TanhGaussianPolicy(4, 2, 3, (64, 64))(torch.randn(100, 4), torch.randn(100, 3))
    assert law.loc.abs().max() < 0.1
    assert law.log_std.abs().max() < 0.1


def test_held_actions_go_everywhere_and_straight():
    """Directions are uniform: their mean is 0 within 4.5 standard errors; their size is that of a full action."""
    z = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    law = HeldActions(2)(torch.zeros(20_000, 4), z)
    torch.testing.assert_close(law.mode.norm(dim=-1), torch.full((20_000,), 0.95))
    assert law.mode.mean(0).abs().max() < 4.5 * 0.95 / math.sqrt(2 * 20_000)
    torch.testing.assert_close(law.mode, HeldActions(2)(torch.ones(20_000, 4), z).mode)
