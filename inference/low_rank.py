r"""Gradient descent on stacks of linear layers without any task's own weight matrix.

The gradient of a linear layer's weights is ``G = D^T X``, with ``X [N, i]`` its inputs and ``D [N, o]`` the loss's
gradient at its outputs, so that after a step ``x W'^T = x W^T - rate (x X^T) D``: exact, of rank ``N``, and ``W`` stays
one matrix for all tasks. A bias is a weight of the constant input 1; normalisations get values of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    if torch.compiler.is_compiling():  # which makes the weights without writing them down, and knows no autograd.grad
        return False
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
    layers = linear_stack(model.network)
    assert layers is not None
    norms: dict[str, Tensor] = {
        name: p.expand(len(support), -1).clone()
        for name, p in model.network.named_parameters()
        if _owner(model, name) is BatchNorm
    }
    adapted = _Adapted(layers, norms, {})
    keep = torch.is_grad_enabled() and not first_order
    for _ in range(steps):
        with torch.enable_grad():
            norms = {name: v if v.requires_grad else v.detach().requires_grad_() for name, v in adapted.norms.items()}
            record: list[tuple[Tensor, Tensor]] = []
            out = _Adapted(layers, norms, adapted.factors).run(support, record)
            wanted = [*(outputs for _, outputs in record), *norms.values()]
            found = torch.autograd.grad(loss(out).sum(), wanted, create_graph=keep)
        inputs = [rows if keep else rows.detach() for rows, _ in record]
        adapted = adapted.stepped(rate, inputs, found[: len(inputs)], found[len(inputs) :])
    return adapted.run(x)


def _owner(model: NetworkModel, name: str) -> type[nn.Module]:
    """The kind of layer that a parameter belongs to."""
    return type(model.network.get_submodule(name.rpartition(".")[0]))


@dataclass(frozen=True)
class _Adapted:
    """The layers, each task's normalisations ``[B, C]``, and what was subtracted from each linear layer.

    ``factors`` are ``X [B, R, i]`` and ``rate D [B, R, o]`` by layer: at ``x`` they subtract ``(x X^T + 1) rate D``,
    where the 1 is there if the layer has a bias, whose gradient is the sum of ``D`` over rows.
    """

    layers: tuple[Layer, ...]
    norms: dict[str, Tensor]
    factors: dict[str, tuple[Tensor, Tensor]]

    def run(self, x: Tensor, record: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """The outputs at ``x``; ``record`` receives the inputs and outputs of every linear layer."""
        for layer in self.layers:
            if isinstance(layer.module, nn.Linear):
                rows = x
                x = self._linear(layer, rows)
                if record is not None:
                    x = x if x.requires_grad else x.requires_grad_()
                    record.append((rows, x))
            elif isinstance(layer.module, BatchNorm):
                x = layer.module.batched(x, self.norms[f"{layer.name}.weight"], self.norms[f"{layer.name}.bias"])
            else:
                x = layer.module(x)
        return x

    def _linear(self, layer: Layer, x: Tensor) -> Tensor:
        out = layer.module(x)
        if layer.name not in self.factors:
            return out
        rows, gradients = self.factors[layer.name]
        one = x.new_ones(()) if layer.module.bias is not None else x.new_zeros(())
        return torch.baddbmm(out, torch.baddbmm(one, x, rows.mT), gradients, alpha=-1.0)

    def stepped(
        self, rate: Tensor, inputs: list[Tensor], outer: Sequence[Tensor], norms: Sequence[Tensor]
    ) -> "_Adapted":
        """One step further. ``outer`` are gradients at the outputs of linear layers, ``norms`` of normalisations."""
        linear = [layer.name for layer in self.layers if isinstance(layer.module, nn.Linear)]
        new = {}
        for name, rows, gradients in zip(linear, inputs, outer, strict=True):
            before = self.factors.get(name)
            pair = rows, rate * gradients
            new[name] = (
                pair if before is None else (torch.cat([before[0], pair[0]], 1), torch.cat([before[1], pair[1]], 1))
            )
        moved = {name: v - rate * g for (name, v), g in zip(self.norms.items(), norms, strict=True)}
        return _Adapted(self.layers, moved, new)
