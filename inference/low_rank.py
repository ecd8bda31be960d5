r"""Gradient descent on stacks of linear layers without any task's own weight matrix.

The gradient of a linear layer's weights is ``G = D^T X``, with ``X [N, i]`` its inputs and ``D [N, o]`` the loss's
gradient at its outputs, so that after a step ``x W'^T = x W^T - rate (x X^T) D``: exact, of rank ``N``, and ``W`` stays
one matrix for all tasks. Biases and normalisations have small gradients and get values of their own.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.inference.descent import SGD, InnerOptimizer
from bayesmeta.models.batch_norm import BatchNorm
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.stacked import Layer, linear_stack
from bayesmeta.types import Context


def worthwhile(model: NetworkModel, optimizer: InnerOptimizer, support: Context, steps: int) -> bool:
    """Whether the form applies, which needs plain steps of one rate on all weights, and is likely to be faster."""
    if type(optimizer) is not SGD or optimizer.rate.ndim or not steps or not support.size:
        return False
    layers = linear_stack(model.network)
    if layers is None or len(model.names) != len(list(model.network.parameters())):
        return False
    rank = steps * support.size
    factors = sum(rank * sum(layer.module.weight.shape) for layer in layers if isinstance(layer.module, nn.Linear))
    return factors < sum(model.sizes) or steps == 1


def low_rank_outputs(
    model: NetworkModel,
    loss: Callable[[Tensor], Tensor],
    support: Float[Tensor, "B N X"],
    x: Float[Tensor, "B Q X"],
    rate: Float[Tensor, ""],
    steps: int,
    *,
    first_order: bool = False,
) -> Float[Tensor, "B Q O"]:
    """The network's outputs at ``x`` after ``steps`` steps on ``loss(outputs at support) -> [B]``.

    The same numbers, and the same gradients, as those of the adapted weights.
    """
    adapted = _Adapted(model, len(support))
    keep = torch.is_grad_enabled() and not first_order
    for _ in range(steps):
        with torch.enable_grad():
            adapted.small = {n: v if v.requires_grad else v.detach().requires_grad_() for n, v in adapted.small.items()}
            out, inputs, outputs = adapted.recorded(support)
            found = torch.autograd.grad(loss(out).sum(), [*outputs, *adapted.small.values()], create_graph=keep)
        inputs = inputs if keep else [rows.detach() for rows in inputs]
        adapted = adapted.stepped(rate, inputs, found[: len(outputs)], found[len(outputs) :])
    return adapted.recorded(x)[0]


class _Adapted:
    """Weights shared by all tasks, biases of each, and the factors that were subtracted from each layer's weights."""

    def __init__(self, model: NetworkModel, batch: int) -> None:
        layers = linear_stack(model.network)
        assert layers is not None
        self.layers: tuple[Layer, ...] = layers
        self.small = {
            name: p.expand(batch, *p.shape).clone() for name, p in model.network.named_parameters() if p.ndim == 1
        }
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}

    def recorded(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The outputs at ``x``, with the inputs and outputs of every linear layer."""
        inputs, outputs = [], []
        for layer in self.layers:
            if isinstance(layer.module, nn.Linear):
                inputs.append(x)
                x = self._linear(layer, x)
                outputs.append(x)
            elif isinstance(layer.module, BatchNorm):
                x = layer.module.batched(x, self.small[f"{layer.name}.weight"], self.small[f"{layer.name}.bias"])
            else:
                x = layer.module(x)
        return x, inputs, outputs

    def _linear(self, layer: Layer, x: Tensor) -> Tensor:
        bias = self.small.get(f"{layer.name}.bias")
        out = x @ layer.module.weight.mT
        if not out.requires_grad and torch.is_grad_enabled():
            out = out.requires_grad_()
        out = out if bias is None else out + bias.unsqueeze(1)
        if layer.name not in self.factors:
            return out
        rows, gradients = self.factors[layer.name]
        return torch.baddbmm(out, torch.bmm(x, rows.mT), gradients, alpha=-1.0)

    def stepped(self, rate: Tensor, inputs: list[Tensor], outer: tuple[Tensor, ...], small: tuple) -> "_Adapted":
        """One step further. ``outer`` are the gradients at the outputs of the linear layers, ``small`` of the rest."""
        new = object.__new__(_Adapted)
        new.layers = self.layers
        new.small = {name: value - rate * g for (name, value), g in zip(self.small.items(), small, strict=True)}
        new.factors = {}
        linear = [layer for layer in self.layers if isinstance(layer.module, nn.Linear)]
        for layer, rows, gradients in zip(linear, inputs, outer, strict=True):
            before = self.factors.get(layer.name)
            pair = (rows, rate * gradients)
            new.factors[layer.name] = (
                pair if before is None else (torch.cat([before[0], pair[0]], 1), torch.cat([before[1], pair[1]], 1))
            )
        return new
