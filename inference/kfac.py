r"""The Fisher information of a stack of linear layers as Kronecker products (Martens and Grosse 2015, section 3).

A layer with inputs ``a_n`` (with a 1 where it has a bias) has the block ``\sum_n G_n (x) a_n a_n^T``, with ``G_n`` the
Fisher information of its outputs. KFAC takes the mean of the products for the product of the means,

    P = G (x) A + precision I,    A = 1/N \sum_n a_n a_n^T,    G = \sum_n G_n,

and nothing between layers. It is exact for one layer where ``G_n`` is the same for all data, as with Gaussian noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from bayesmeta.inference.curvature import information
from bayesmeta.models.batch_norm import BatchNorm
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.stacked import linear, linear_stack
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


@dataclass(frozen=True)
class Block:
    """One layer's precision, ``values [B, o, i]`` > 0 in the eigenbases of ``G`` and ``A``.

    ``places [o, i]`` are the coordinates of ``z`` that it is about: weights, with the biases as the last column.
    """

    values: Float[Tensor, "B o i"]
    left: Float[Tensor, "B o o"]
    right: Float[Tensor, "B i i"]
    places: Int[Tensor, "o i"]

    def into(self, z: Float[Tensor, "*S B D"]) -> Float[Tensor, "*S B o i"]:
        """The layer's part of ``z`` in the eigenbases."""
        return self.left.mT @ z[..., self.places] @ self.right

    def out(self, z: Float[Tensor, "*S B D"], part: Float[Tensor, "*S B o i"]) -> None:
        """Write a part that is given in the eigenbases to its places in ``z``."""
        z[..., self.places] = self.left @ part @ self.right.mT


@dataclass(frozen=True)
class Kronecker:
    """A precision with one block for each layer; see :class:`bayesmeta.inference.curvature.Curvature`."""

    blocks: tuple[Block, ...]

    def log_det(self) -> Float[Tensor, "B"]:
        """Exact, from the eigenvalues."""
        return torch.stack([block.values.log().sum((-2, -1)) for block in self.blocks]).sum(0)

    def law(self, mean: Float[Tensor, "B D"]) -> "KroneckerPrecision":
        return KroneckerPrecision(mean, self.blocks)

    def solve(self, value: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        found = torch.zeros_like(value)
        for block in self.blocks:
            block.out(found, block.into(value) / block.values)
        return found


class KroneckerPrecision(TorchDistribution):
    """``N(loc, P^{-1})`` with a precision of blocks: batch ``[B]``, event ``[D]``.

    Draws carry no gradient, because that of eigenvectors does not exist where eigenvalues are equal.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, loc: Float[Tensor, "B D"], blocks: Sequence[Block]) -> None:
        self.loc, self.blocks = loc, tuple(blocks)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        found = torch.empty_like(self.loc)
        for block in self.blocks:
            found[:, block.places] = block.left.square() @ block.values.reciprocal() @ block.right.square().mT
        return found

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        found = self.loc.expand(*sample_shape, *self.loc.shape).clone()
        for block in self.blocks:
            noise = torch.randn(*sample_shape, *block.values.shape, dtype=found.dtype, device=found.device)
            away = torch.zeros_like(found)
            block.out(away, noise * block.values.rsqrt())
            found += away
        return found

    def log_prob(self, value: Tensor) -> Tensor:
        away = value - self.loc
        square = sum((block.values * block.into(away).square()).sum((-2, -1)) for block in self.blocks)
        constant = self.event_shape[0] * math.log(2 * math.pi)
        return 0.5 * (Kronecker(self.blocks).log_det() - square - constant)


def kronecker(model: TaskModel, z: Float[Tensor, "B D"], data: Context, prior: Float[Tensor, "B *D_D"]) -> Kronecker:
    """The precision at ``z``: the likelihood's KFAC plus the ``prior``'s precision.

    Raises ValueError unless the model is a stack of linear and elementwise layers, of which whole layers are adapted,
    and the prior's precision one number for each layer.
    """
    layers = _layers(model)
    assert isinstance(model, NetworkModel)
    if not data.size:  # torch cannot evaluate every distribution at no values, but at padding
        row = Context.of(*(values.new_zeros(len(z), 1, values.shape[-1]) for values in (data.x, data.y)))
        data = Context(row.x, row.y, ~row.mask)
    parameters = {**dict(model.network.named_parameters()), **model.split(z)}
    places = _places(model)
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x, inputs, outputs = data.x.to(z), {}, {}
        for name, layer in layers:
            if isinstance(layer, nn.Linear):
                inputs[name] = x if layer.bias is None else torch.cat([x, torch.ones_like(x[..., :1])], -1)
                x = linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
                x = outputs[name] = x if x.requires_grad else x.requires_grad_()
            else:
                x = layer(x)
        roots = _output_roots(model, x, [outputs[name] for name in places], data, keep)
    blocks = []
    for (name, where), root in zip(places.items(), roots, strict=True):
        a = inputs[name] * data.mask.unsqueeze(-1)
        a, root = (a, root) if keep else (a.detach(), root.detach())
        real = data.mask.sum(1).clamp_min(1).to(a)[:, None, None]
        own = prior[:, where.flatten()] if prior.ndim == 2 else prior.new_full((1, 2), torch.nan)
        if not torch.equal(own, own[:, :1].expand_as(own)):
            raise ValueError(
                f"kfac: expected a prior with one scale for all of layer {name!r}, which is all that can be added to a "
                f"Kronecker product; use curvature='fisher' or 'diagonal', or a NetworkModel without learn_scale"
            )
        right = torch.linalg.eigh(a.mT @ a / real)
        left = torch.linalg.eigh(root.mT @ root)
        values = left.eigenvalues.clamp_min(0).unsqueeze(-1) * right.eigenvalues.clamp_min(0).unsqueeze(-2)
        blocks.append(Block(values + own[:, :1, None], left.eigenvectors, right.eigenvectors, where))
    return Kronecker(tuple(blocks))


def _output_roots(
    model: NetworkModel, out: Tensor, outputs: list[Tensor], data: Context, keep: bool
) -> list[Float[Tensor, "B R o"]]:
    """For each layer the derivatives of every root of the information, one row for each datum and parameter.

    Data are rows that do not mix, so one gradient of the sum over them holds each datum's own.
    """
    found: list[list[Tensor]] = [[] for _ in outputs]
    for value, weight in information(model.output(out)):
        if not value.requires_grad:
            continue
        for k in range(value.shape[-1]):
            slopes = torch.autograd.grad(
                value[..., k].sum(), outputs, create_graph=keep, retain_graph=True, allow_unused=True
            )
            scale = weight[..., k : k + 1] * data.mask.unsqueeze(-1)
            for rows, slope, output in zip(found, slopes, outputs, strict=True):
                rows.append(torch.zeros_like(output) if slope is None else scale * slope)
    return [torch.cat(rows, 1) for rows in found]


def _layers(model: TaskModel) -> list[tuple[str, nn.Module]]:
    layers = linear_stack(model.network) if isinstance(model, NetworkModel) else None
    if layers is None or any(isinstance(layer.module, BatchNorm) for layer in layers):
        raise ValueError(
            "kfac: expected a NetworkModel whose network is a sequence of linear and elementwise layers, got another; "
            "use curvature='fisher' or 'diagonal'"
        )
    return [(layer.name, layer.module) for layer in layers]


def _places(model: NetworkModel) -> dict[str, Int[Tensor, "o i"]]:
    """For each adapted layer where its weights ``[o, i]`` and, as a last column, its biases stand in ``z``."""
    index = torch.arange(sum(model.sizes), device=model.log_scale.device).split(model.sizes)
    parts = {name: part.view(shape) for name, part, shape in zip(model.names, index, model.shapes, strict=True)}
    found: dict[str, Tensor] = {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in parts):
        module = model.network.get_submodule(layer)
        wanted = [f"{layer}.{name}" for name, _ in module.named_parameters()]
        if any(name not in parts for name in wanted):
            raise ValueError(f"kfac: expected all parameters of layer {layer!r} in adapt, got only some of them")
        columns = [parts[name].unsqueeze(-1) if parts[name].ndim == 1 else parts[name] for name in wanted]
        found[layer] = torch.cat(columns, -1)
    return found
