"""Networks conditioned on a task latent, batched over tasks.

Rows of data are ``[B, R, .]`` and the latent is one vector per task, ``[B, Z]``: its share of the first layer is
computed once per task and broadcast over the rows, which equals an MLP on the concatenation ``[row, z]``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.models.distributions import TanhNormal

# From this size on oneDNN's matrix product is at least as fast as torch's default on every CPU measured, and up to
# twice as fast for tall-and-thin products; below it the default's smaller overhead wins.
_ONEDNN_MIN_ROWS = 512
_ONEDNN_MIN_WIDTH = 128


class _OneDNNLinear(torch.autograd.Function):
    """``x W^T + b`` through oneDNN in fp32, with its three gradients; ``relu`` is fused into the product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0.0)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = torch.ops.mkldnn._linear_pointwise(grad, weight.t(), None, "none", [], "") if need_x else None
        grad_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if need_weight else None
        grad_bias = rows.sum(0) if need_bias else None
        return grad_x, grad_weight, grad_bias, None


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, "o"], *, relu: bool = False
) -> Float[Tensor, "*b o"]:
    """``x W^T + b``, rectified if ``relu``: through oneDNN where that is the faster product.

    That is on a CPU in fp32 with many rows and wide layers. The choice depends on shapes only, so that a run computes
    the same on every repeat. First-order gradients only on the oneDNN path.
    """
    if (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and min(weight.shape) >= _ONEDNN_MIN_WIDTH
        and x.numel() // x.shape[-1] >= _ONEDNN_MIN_ROWS
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    ):
        return _OneDNNLinear.apply(x.contiguous(), weight, bias, relu)
    out = F.linear(x, weight, bias)
    return out.relu_() if relu else out


class MLP(nn.Module):
    """ReLU multi-layer perceptron on ``[..., in_dim]``, optionally conditioned on a task latent ``[..., z_dim]``.

    With ``members=E`` it is an ensemble of ``E`` independent networks and returns ``[E, ..., out_dim]``.
    Weights start uniform within ``1/sqrt(fan_in)``, biases at 0, the last layer scaled by ``out_scale``. ``bf16`` runs
    the products in bfloat16 (autocast); parameters and the output stay in float32.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        widths: Sequence[int],
        *,
        z_dim: int = 0,
        members: int = 1,
        out_scale: float = 1.0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        sizes = [in_dim, *widths, out_dim]
        self.members, self.bf16 = members, bf16
        self.weights = nn.ParameterList(
            _uniform(members, o, i, fan_in=i + (z_dim if layer == 0 else 0))
            for layer, (i, o) in enumerate(pairwise(sizes))
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, o)) for o in sizes[1:])
        self.latent_weight = _uniform(members, sizes[1], z_dim, fan_in=in_dim + z_dim) if z_dim else None
        with torch.no_grad():
            self.weights[-1].mul_(out_scale)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """``x [..., in_dim]`` with ``z [B, z_dim]`` for ``x [B, in_dim]`` or ``[B, R, in_dim]``."""
        if (z is None) != (self.latent_weight is None):
            raise ValueError(
                f"MLP: expected {'no' if self.latent_weight is None else 'a'} task latent, got z="
                f"{None if z is None else tuple(z.shape)}; z_dim says whether a network is conditioned on one"
            )
        if not self.bf16:
            return self._forward(x, z)
        with torch.autocast(x.device.type, torch.bfloat16):
            return self._forward(x, z).float()

    def _forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        if self.members == 1:
            return self._member(0, x, z)
        if self.weights[-1].shape[-1] >= _ONEDNN_MIN_WIDTH:
            return torch.stack([self._member(e, x, z) for e in range(self.members)])
        return self._batched(x, z)

    def _member(self, e: int, x: Tensor, z: Tensor | None) -> Tensor:
        """One network by itself: its products are large enough to run at full speed."""
        h, last = x, len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer == 0 and self.latent_weight is not None and z is not None:
                share = z @ self.latent_weight[e].t()  # [B, width]
                h = linear(h, weight[e], bias[e]).add_(share if x.dim() == 2 else share.unsqueeze(1))
                h = h.relu_() if last else h
            else:
                h = linear(h, weight[e], bias[e], relu=layer < last)
        return h

    def _batched(self, x: Tensor, z: Tensor | None) -> Tensor:
        """All members in one product per layer: small ones gain from it."""
        h, last = x.reshape(1, -1, x.shape[-1]).expand(self.members, -1, -1), len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
            if layer == 0 and self.latent_weight is not None and z is not None:
                share = (z @ self.latent_weight.mT).unsqueeze(2)  # [E, B, 1, width]
                h = h.view(self.members, share.shape[1], -1, h.shape[-1]).add_(share).view(h.shape)
            if layer < last:
                h = h.relu_()
        return h.view(self.members, *x.shape[:-1], -1)


def _uniform(members: int, out_dim: int, in_dim: int, *, fan_in: int) -> nn.Parameter:
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(members, out_dim, in_dim).uniform_(-bound, bound))


class TanhGaussianPolicy(nn.Module):
    """``pi(a | s, z)``: an MLP to the mean and log standard deviation of a tanh-squashed normal.

    The log standard deviation is clamped to [-20, 2]. The head starts near zero (mean 0, standard deviation 1).
    """

    def __init__(self, obs_dim: int, action_dim: int, z_dim: int, widths: Sequence[int], *, bf16: bool = False) -> None:
        super().__init__()
        self.net = MLP(obs_dim, 2 * action_dim, widths, z_dim=z_dim, out_scale=1e-2, bf16=bf16)

    def forward(self, obs: Float[Tensor, "*b S"], z: Float[Tensor, "B Z"]) -> TanhNormal:
        loc, log_std = self.net(obs, z).chunk(2, -1)
        return TanhNormal(loc, log_std.clamp(-20.0, 2.0))


class Critics(nn.Module):
    """``members`` independent action-value networks ``Q(s, a, z)``, returned as ``[E, *b]``."""

    def __init__(
        self, obs_dim: int, action_dim: int, z_dim: int, widths: Sequence[int], *, members: int = 2, bf16: bool = False
    ) -> None:
        super().__init__()
        self.net = MLP(obs_dim + action_dim, 1, widths, z_dim=z_dim, members=members, bf16=bf16)

    def forward(
        self, obs: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], z: Float[Tensor, "B Z"]
    ) -> Float[Tensor, "E *b"]:
        return self.net(torch.cat([obs, action], -1), z).squeeze(-1)
