"""The networks of few-shot learning, as plain torch modules on flat inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from bayesmeta.models.batch_norm import BatchNorm
from bayesmeta.types import Spec

Activation = Literal["relu", "tanh", "elu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}


def mlp(
    in_dim: int, out_dim: int, widths: Sequence[int], *, activation: Activation = "relu", norm: bool = False
) -> nn.Sequential:
    """``in -> widths -> out`` with torch's initialisation; ``norm`` normalises before every activation."""
    layers: list[nn.Module] = []
    for i, o in pairwise([in_dim, *widths]):
        layers += [nn.Linear(i, o), *([BatchNorm(o)] if norm else []), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear([in_dim, *widths][-1], out_dim))


def conv4(
    x_shape: Sequence[int], out_dim: int, *, filters: int = 64, down: Literal["stride", "pool"] = "stride"
) -> nn.Sequential:
    """Four blocks of 3 x 3 convolution, batch normalisation and ReLU, then a linear layer, on flat images.

    ``down="stride"`` halves the image by strides and averages over what is left of it (Finn et al. 2017 on Omniglot, 64
    filters); ``"pool"`` by 2 x 2 maxima and keeps it (on miniImageNet, 32 filters). ``x_shape`` is (channels, height,
    width); images too small to be halved four times are halved as often as they can be.
    """
    channels, height, width = x_shape
    layers: list[nn.Module] = [nn.Unflatten(-1, tuple(x_shape))]
    for _ in range(4):
        halve = min(height, width) >= 2
        stride = 2 if halve and down == "stride" else 1
        layers += [nn.Conv2d(channels, filters, 3, stride=stride, padding=1), BatchNorm(filters), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if halve and down == "pool" else []
        if halve:
            round_up = 1 if down == "stride" else 0
            height, width = (height + round_up) // 2, (width + round_up) // 2
        channels = filters
    if down == "stride":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(-3), nn.Linear(filters, out_dim)]
    else:
        layers += [nn.Flatten(-3), nn.Linear(filters * height * width, out_dim)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Network:
    """Which network to build once a family's sizes are known.

    ``kind="mlp"`` has layers of ``widths``, ``activation`` and, with ``norm``, batch normalisation; ``"conv4"`` is
    :func:`conv4` with ``filters``, halving by strides for grey images and by maxima for coloured ones, as published.
    """

    kind: Literal["mlp", "conv4"] = "mlp"
    widths: Sequence[int] = (40, 40)
    activation: Activation = "relu"
    norm: bool = False
    filters: int = 64

    def build(self, spec: Spec, out_dim: int) -> nn.Sequential:
        """The network. Raises ValueError where convolutions are asked for and inputs are no images."""
        if self.kind == "mlp":
            return mlp(spec.x_dim, out_dim, self.widths, activation=self.activation, norm=self.norm)
        if len(spec.x_shape) != 3:
            raise ValueError(
                f"network.kind = conv4: expected a family of images, whose spec has x_shape = (channels, height, "
                f"width), got {spec.name} with inputs of {spec.x_shape or spec.x_dim}; use network.kind=mlp"
            )
        return conv4(spec.x_shape, out_dim, filters=self.filters, down="stride" if spec.x_shape[0] == 1 else "pool")


def head(network: nn.Module) -> str:
    """What the names of the last layer's parameters begin with: the part that ANIL adapts."""
    *_, last = (name for name, layer in network.named_modules() if isinstance(layer, nn.Linear))
    return f"{last}."
