"""The hierarchical model of gradient-based meta-learning: the task latent is the weights of a network."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.models.batch_norm import BatchNorm, statistics_from
from bayesmeta.models.outputs import Output
from bayesmeta.models.stacked import check_differentiable_twice, run
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class NetworkModel(TaskModel):
    r"""``z ~ N(theta, scale^2)`` are weights, ``y_n ~ output(f_z(x_n))``: any torch module ``f`` on rows ``[N, X]``.

    ``theta`` are the network's own parameters: training the model trains the network's initialisation. ``adapt`` names
    the parameters that belong to a task, by the beginnings of their names (None: all); the others are shared by all
    tasks and no part of ``z``, which has ``D`` numbers in the order of ``named_parameters``. ``adapt=("4.",)`` on a
    sequence whose last layer is number 4 is the model of ANIL (Raghu et al. 2020). ``scale`` > 0 is the prior's
    standard deviation, with ``learn_scale`` a parameter for each weight. ``chunk`` tasks run at a time where the
    network needs vmap.

    Raises ValueError for layers that cannot be differentiated twice, and for names in ``adapt`` that fit no parameter.
    """

    def __init__(
        self,
        network: nn.Module,
        output: Output,
        *,
        adapt: Sequence[str] | None = None,
        scale: float = 1.0,
        learn_scale: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        check_differentiable_twice(network)
        names = [name for name, _ in network.named_parameters()]
        unknown = [start for start in adapt or () if not any(name.startswith(start) for name in names)]
        if unknown:
            raise ValueError(f"NetworkModel: adapt names no parameter with {unknown}; the network has {names}")
        if not scale > 0:
            raise ValueError(f"NetworkModel: scale is the prior's standard deviation, expected > 0, got {scale}")
        self.network, self.output, self.chunk = network, output, chunk
        self.names = [name for name in names if adapt is None or name.startswith(tuple(adapt))]
        self.shapes = [network.get_parameter(name).shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        first = network.get_parameter(self.names[0])
        log_scale = torch.full((sum(self.sizes),), scale, dtype=first.dtype).log()
        self.log_scale = nn.Parameter(log_scale, requires_grad=learn_scale)

    @property
    def mean(self) -> Float[Tensor, "D"]:
        """``theta``: the adapted parameters of the network, one after another."""
        # Not by get_parameter, which insists on nn.Parameter: torch.func puts plain tensors in their place.
        return torch.cat([attrgetter(name)(self.network).reshape(-1) for name in self.names])

    def prior(self, batch: int) -> Distribution:
        mean = self.mean.expand(batch, -1)
        return dist.Normal(mean, self.log_scale.exp().expand_as(mean), validate_args=False).to_event(1)

    def split(self, z: Float[Tensor, "T D"]) -> dict[str, Tensor]:
        """The network's parameters by name, ``[T, *shape]``."""
        parts = z.split(self.sizes, -1)
        return {name: part.view(-1, *shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def outputs(self, z: Float[Tensor, "*S B 1 D"], x: Float[Tensor, "B N X"]) -> Float[Tensor, "*S B N O"]:
        """The network's outputs on the rows of each task, for every draw."""
        draws = z.shape[:-3]
        flat, rows = z.reshape(-1, z.shape[-1]), x.expand(*draws, *x.shape).reshape(-1, *x.shape[1:])
        out = run(self.network, self.split(flat), rows, chunk=self.chunk)
        return out.view(*draws, *x.shape[:2], out.shape[-1])

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return self.output(self.outputs(z, data.x))


class _Inductive(TaskModel):
    """A network model whose normalisations take their statistics from the support, whatever the data."""

    def __init__(self, model: NetworkModel, support: Context) -> None:
        super().__init__()
        self.model, self.support = model, support

    def prior(self, batch: int) -> Distribution:
        return self.model.prior(batch)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        with statistics_from(self.support.size):
            out = self.model.outputs(z, torch.cat([self.support.x, data.x], 1))
        return self.model.output(out[..., self.support.size :, :])


@runtime_checkable
class ReadsSupport(Protocol):
    """A model whose likelihood depends on the task's data beyond what the latent knows of them."""

    def given(self, support: Context) -> TaskModel:
        """The model of tasks with these data."""
        ...


def inductive(model: TaskModel, support: Context) -> TaskModel:
    """The model for predicting each query by itself: a network that normalises over rows does so with the support's.

    A model that reads the support otherwise, by attention for instance, is given it. Other models are returned as they
    are, and so is every network where there is no support. Without this, queries are normalised together, which is
    transduction.
    """
    if isinstance(model, ReadsSupport):
        return model.given(support)
    if support.size and isinstance(model, NetworkModel) and mixes_rows(model):
        return _Inductive(model, support)
    return model


def mixes_rows(model: TaskModel) -> bool:
    """Whether what a model says of one datum depends on those beside it: its network normalises over them."""
    return isinstance(model, NetworkModel) and any(isinstance(m, BatchNorm) for m in model.network.modules())
