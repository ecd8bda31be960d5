"""Networks against plain torch: conditioning equals concatenation, every product has the right gradients."""

import pytest
import torch
import torch.nn.functional as F

from bayesmeta.models.networks import MLP, TanhGaussianPolicy, linear


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


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rows", [4, 600])
def test_linear_and_its_three_gradients(rows, relu):
    """600 rows of width 128 take the oneDNN path, 4 rows do not; both are F.linear."""
    torch.manual_seed(0)
    x = torch.randn(2, rows // 2, 128, requires_grad=True)
    weight = torch.randn(130, 128, requires_grad=True)
    bias = torch.randn(130, requires_grad=True)
    cotangent = torch.randn(2, rows // 2, 130)
    expected = F.linear(x, weight, bias)
    expected = expected.relu() if relu else expected
    mine = torch.autograd.grad((linear(x, weight, bias, relu=relu) * cotangent).sum(), (x, weight, bias))
    theirs = torch.autograd.grad((expected * cotangent).sum(), (x, weight, bias))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_wide_layers_skip_gradients_nobody_asked_for():
    x = torch.randn(600, 128, requires_grad=True)
    weight, bias = torch.randn(128, 128, requires_grad=True), torch.zeros(128, requires_grad=True)
    (gradient,) = torch.autograd.grad(linear(x, weight, bias).sum(), [x])
    torch.testing.assert_close(gradient, weight.sum(0).expand_as(gradient).detach(), rtol=1e-4, atol=1e-3)


def test_a_conditioned_network_asks_for_its_latent():
    with pytest.raises(ValueError, match="expected a task latent, got z=None"):
        MLP(3, 2, (8,), z_dim=2)(torch.zeros(1, 3))


def test_the_policy_starts_wide_and_centred():
    torch.manual_seed(0)
    law = TanhGaussianPolicy(4, 2, 3, (64, 64))(torch.randn(100, 4), torch.randn(100, 3))
    assert law.loc.abs().max() < 0.1
    assert law.log_std.abs().max() < 0.1
