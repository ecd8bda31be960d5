"""Networks conditioned on a task latent, batched over tasks.

Rows of data are ``[B, R, .]`` and the latent is one vector per task, ``[B, Z]``: its share of the first layer is
computed once per task and broadcast over the rows, which equals an MLP on the concatenation ``[row, z]``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.models.distributions import TanhNormal

# Activations of one block of rows, in numbers: small enough for a core's second-level cache. Tall-and-thin products run
# at full speed in such pieces (some BLAS run them at half speed whole), and what is elementwise never waits for memory.
_BLOCK = 160_000


def mlp(
    x: Float[Tensor, "n i"],
    share: Float[Tensor, "E B w"] | None,
    weights: Sequence[Float[Tensor, "E _ _"]],
    biases: Sequence[Float[Tensor, "E _"]],
) -> Float[Tensor, "E n _"]:
    """``E`` ReLU networks on the same rows; ``share`` is added to the first layer, the same for ``n / B`` rows in turn.

    Gradients of any order. On a CPU in full precision the rows run through all layers in blocks, forwards and
    backwards; elsewhere, and for higher orders and function transforms, layer by layer.
    """
    elsewhere = x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if elsewhere or torch._C._are_functorch_transforms_active() or not len(x):
        return _layers(x, share, weights, biases)[-1]
    if not torch.is_grad_enabled():
        return _joined(_blocks(x, share, weights, biases)[0])
    return _Blocked.apply(x, share, len(weights), *weights, *biases)


def _layers(x: Tensor, share: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """What comes out of every layer."""
    h, outs = x.expand(len(weights[0]), -1, -1), []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
        if layer == 0 and share is not None:
            h = h.view(*share.shape[:2], len(x) // share.shape[1], h.shape[-1]).add_(share.unsqueeze(2)).view(h.shape)
        h = h.relu_() if layer + 1 < len(weights) else h
        outs.append(h)
    return outs


def _blocks(
    x: Tensor, share: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[list[list[Tensor]], int, int]:
    """:func:`_layers` of each block of whole tasks, the rows of a task and the rows of a block."""
    rows = 1 if share is None else len(x) // share.shape[1]
    tasks = max(1, _BLOCK // (max(weight.shape[1] for weight in weights) * rows))
    pieces = x.split(tasks * rows)
    shares = [None] * len(pieces) if share is None else share.split(tasks, 1)
    outs = [_layers(piece, part, weights, biases) for piece, part in zip(pieces, shares, strict=True)]
    return outs, rows, tasks * rows


def _joined(blocks: list[list[Tensor]]) -> Tensor:
    """The last layer's, taken from the blocks."""
    outs = [block.pop() for block in blocks]
    return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


class _Blocked(torch.autograd.Function):
    """The blocks with their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor | None, layers: int, *parameters: Tensor) -> Tensor:
        ctx.blocks, ctx.rows, ctx.size = _blocks(x, share, parameters[:layers], parameters[layers:])
        ctx.layers = layers
        ctx.save_for_backward(x, share, *parameters)
        return _joined(ctx.blocks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, share, *parameters = ctx.saved_tensors
        need_x, need_share, _, *need = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient is going to be differentiated
            return _graph(x, share, ctx.layers, parameters, grad, ctx.needs_input_grad)
        weights = parameters[: ctx.layers]
        grads = [torch.zeros_like(p) for p in parameters] if any(need) else []
        grad_x, grad_share = [], []
        for piece, outs, g in zip(x.split(ctx.size), ctx.blocks, grad.split(ctx.size, 1), strict=True):
            for layer in reversed(range(ctx.layers)):
                if any(need):
                    h = outs[layer - 1] if layer else piece.expand(len(g), -1, -1)
                    grads[layer].baddbmm_(g.mT, h)
                    grads[ctx.layers + layer] += g.sum(1)
                if layer:
                    g = g * weights[layer] if g.shape[-1] == 1 else g @ weights[layer]
                    torch.ops.aten.threshold_backward.grad_input(g, outs[layer - 1], 0.0, grad_input=g)
            grad_x += [(g @ weights[0]).sum(0)] if need_x else []
            if need_share:
                grad_share.append(g.reshape(len(g), -1, ctx.rows, g.shape[-1]).sum(2))
        return (
            torch.cat(grad_x) if need_x else None,
            torch.cat(grad_share, 1) if need_share else None,
            None,
            *(grads or (None,) * len(parameters)),
        )


def _graph(
    x: Tensor, share: Tensor | None, layers: int, parameters: Sequence[Tensor], grad: Tensor, need: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The same gradients, layer by layer and with a graph of their own."""
    inputs = [x, share, None, *parameters]
    wanted = [tensor for tensor, needed in zip(inputs, need, strict=True) if needed and tensor is not None]
    out = _layers(x, share, parameters[:layers], parameters[layers:])[-1]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if needed else None for needed in need)


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
        share = None if z is None or self.latent_weight is None else z @ self.latent_weight.mT
        out = mlp(x.reshape(x.shape[:-1].numel(), x.shape[-1]), share, [*self.weights], [*self.biases])
        return out.view(*((self.members,) if self.members > 1 else ()), *x.shape[:-1], out.shape[-1])


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


class HeldActions(nn.Module):
    """Straight ahead: the action of an episode is a random direction at almost full size, with a little noise.

    The direction is that of the first ``action_dim`` coordinates of ``z``, uniform if ``z`` is standard normal. Nothing
    is learned.
    """

    def __init__(self, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim

    def forward(self, obs: Float[Tensor, "B S"], z: Float[Tensor, "B Z"]) -> TanhNormal:
        direction = nn.functional.normalize(z[:, : self.action_dim], dim=-1)
        return TanhNormal((0.95 * direction).atanh(), torch.full_like(direction, -1.5))


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
