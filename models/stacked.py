"""Any module as a function of its parameters, run for many tasks with parameters of their own at once.

Stacks of linear layers run as batched matrix products, which is several times faster than ``vmap``; every other module
runs under ``torch.func.vmap`` of ``functional_call``. Parameters that are not given per task are shared by all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bayesmeta.models.batch_norm import BatchNorm

_ELEMENTWISE = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.Identity,
)
_RUNNING = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)


def check_differentiable_twice(network: nn.Module) -> None:
    """Raise ValueError for layers of which the second derivative is wrong or missing, naming what to use instead."""
    for name, layer in network.named_modules():
        if isinstance(layer, _RUNNING):
            raise ValueError(
                f"expected a network without torch's batch normalisation, got {type(layer).__name__} at {name!r}: its "
                f"running statistics tie tasks together, and vmap of it gives a wrong second derivative; use "
                f"bayesmeta.models.batch_norm.BatchNorm, or GroupNorm or LayerNorm"
            )
        if isinstance(layer, nn.RNNBase) and any(p.is_cuda for p in layer.parameters()):
            raise ValueError(
                f"expected a network that can be differentiated twice, got {type(layer).__name__} at {name!r} on CUDA: "
                f"cuDNN's recurrent layers cannot; use a loop over nn.{type(layer).__name__}Cell, keep it on the CPU, "
                f"or wrap the calls in torch.backends.cudnn.flags(enabled=False)"
            )


@dataclass(frozen=True)
class Layer:
    """One layer of a stack: the name of its parameters' owner, and the module."""

    name: str
    module: Any


def linear_stack(network: nn.Module) -> tuple[Layer, ...] | None:
    """The layers of a network that is a plain sequence of linear, normalising and elementwise ones, else None."""
    if type(network) is not nn.Sequential:
        return None
    layers = tuple(Layer(name, child) for name, child in network.named_children())
    kinds = (nn.Linear, BatchNorm, *_ELEMENTWISE)
    return layers if all(type(layer.module) in kinds for layer in layers) else None


def run(
    network: nn.Module, own: Mapping[str, Tensor], x: Float[Tensor, "B N X"], *, chunk: int | None = None
) -> Float[Tensor, "B N O"]:
    """``network`` on the rows of each task: ``own`` are its per-task parameters ``[B, *shape]`` by name.

    The network sees the rows of one task as a batch ``[N, X]``. All other parameters are the network's. ``chunk`` tasks
    run at a time where ``vmap`` is used (None: all).
    """
    shared = {name: p for name, p in network.named_parameters() if name not in own}
    layers = linear_stack(network)
    if layers is not None:
        return _run_stack(layers, {**shared, **own}, x)

    def one(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
        return functional_call(network, {**shared, **parameters}, (rows,))

    return vmap(one, randomness="different", chunk_size=chunk)(dict(own), x)


def _run_stack(layers: tuple[Layer, ...], parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    for name, module in ((layer.name, layer.module) for layer in layers):
        if isinstance(module, nn.Linear):
            x = linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
        elif isinstance(module, BatchNorm):
            x = module.batched(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
        else:
            x = module(x)
    return x


def linear(x: Float[Tensor, "B N i"], weight: Tensor, bias: Tensor | None) -> Float[Tensor, "B N o"]:
    """``x W^T + b`` with ``W [o, i]`` for all tasks or ``[B, o, i]`` for each, and likewise ``b [o]`` or ``[B, o]``."""
    if weight.ndim == 3 and bias is not None and bias.ndim == 2:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    out = F.linear(x, weight) if weight.ndim == 2 else torch.bmm(x, weight.mT)
    return out if bias is None else out + (bias.unsqueeze(1) if bias.ndim == 2 else bias)
