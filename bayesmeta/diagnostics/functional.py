r"""What is inferred by a learner of functions: not its weights, which have no true value, but what they compute.

A belief about a latent ``z`` is a belief about the function ``f(x) = E[y | x, z]``. It is looked at through the values
at ``P`` fixed inputs, the probes: a latent of ``V = P Y`` numbers whatever the method, with a true value wherever the
family knows its own functions. Of a class the value is its probability; of two classes that of class 1 is enough.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical, constraints

from bayesmeta.diagnostics.held_out import KnowsFunction, KnowsModel
from bayesmeta.models.cells import Cells
from bayesmeta.models.network_model import inductive
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, Inference, Spec, SupervisedFamily, concat

PROBES = 8
_VALUES = 48  # function values of a task at most: they are kept for every draw
_ELEMENTS = 1 << 24  # numbers of all draws of a latent in memory at once: 64 MiB in fp32


class Draws(TorchDistribution):
    """A law known by ``G`` draws alone, ``points [*b, G, V]``: its moments are theirs, and it has no density.

    ``sample`` gives them in random order, none for a second time before all were given, so that ranks among as many
    are ranks among independent draws. ``log_prob`` is NaN.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector

    def __init__(self, points: Float[Tensor, "*b G V"]) -> None:
        self.points = points
        super().__init__(points.shape[:-2], points.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: object = None) -> "Draws":
        return Draws(self.points.expand(*batch_shape, *self.points.shape[-2:]))

    @property
    def mean(self) -> Tensor:
        return self.points.mean(-2)

    @property
    def variance(self) -> Tensor:
        return self.points.var(-2, correction=0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape, count = torch.Size(sample_shape), self.points.shape[-2]
        order = torch.randperm(count, device=self.points.device)
        index = order.repeat(-(-shape.numel() // count))[: shape.numel()]
        return self.points[..., index, :].movedim(-2, 0).reshape(*shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_full(value.shape[:-1], torch.nan)


@dataclass(frozen=True)
class FunctionBelief:
    """``values [B, G, V]`` of the function at the probes under ``G`` draws of the ``inner`` belief, and the data."""

    inner: Any
    data: Context
    values: Float[Tensor, "B G V"]

    @property
    def posterior(self) -> Draws:
        return Draws(self.values)


@dataclass(frozen=True)
class FunctionValues:
    r"""The belief of ``inference`` about the latent of ``model``, seen through the function's values at ``probes``.

    ``probes`` are the same for all tasks, ``[P, X]``, or each task's own, ``[B, P, X]``, for which ``init`` takes ``B``
    tasks only. The belief is ``draws`` values ``E[y | x_p, z_l]`` with ``z_l`` from the posterior: of a point just one,
    and of at most as many particles of equal weight each one's. Values are predicted inductively: a model that reads
    the task's data is given them. Obeys the laws that ``inference`` obeys.

    Everything random follows from ``seed``, the same after any data, so that a belief that data do not change has the
    same draws; the global random state is left as it was. No gradients flow. Raises ValueError for probes of other
    tasks, and for a likelihood without a mean.
    """

    inference: Inference
    model: TaskModel
    probes: Float[Tensor, "*B P X"]
    y_dim: int
    draws: int = 200
    seed: int = 0

    def init(self, batch: int) -> FunctionBelief:
        """The values under the prior belief of ``inference``."""
        nothing = Context.empty(batch, self.probes.shape[-1], self.y_dim, self.probes.device)
        with torch.no_grad(), torch_seeded(self.seed):
            return self._belief(self.inference.init(batch), nothing)

    def update(self, belief: FunctionBelief, data: Context) -> FunctionBelief:
        """The values under the updated belief."""
        with torch.no_grad(), torch_seeded(self.seed):
            return self._belief(self.inference.update(belief.inner, data), concat([belief.data, data]))

    def of_tasks(self, rows: slice) -> "FunctionValues":
        """The procedure for some of the tasks that the probes are of."""
        if self.probes.ndim == 2:
            return self
        return FunctionValues(self.inference, self.model, self.probes[rows], self.y_dim, self.draws, self.seed)

    def _belief(self, inner: Any, seen: Context) -> FunctionBelief:
        if self.probes.ndim == 3 and len(self.probes) != seen.batch:
            raise ValueError(
                f"FunctionValues: expected the {len(self.probes)} tasks that the probes are of, got {seen.batch}; use "
                f"of_tasks"
            )
        model, x = inductive(self.model, seen), self.probes.expand(seen.batch, -1, -1)
        posterior = inner.posterior
        points = _points(posterior, self.draws)
        if points is not None:
            parts = points.movedim(-2, 0).split(self._at_once(posterior))
        else:
            counts = torch.ones(self.draws).split(self._at_once(posterior))
            parts = (posterior.sample(torch.Size(count.shape)) for count in counts)
        return FunctionBelief(inner, seen, torch.cat([values_at(model, z, x) for z in parts]).transpose(0, 1))

    def _at_once(self, posterior: Distribution) -> int:
        each = max(posterior.event_shape.numel(), self.probes.shape[-2] * (self.y_dim + self.probes.shape[-1]))
        return max(1, _ELEMENTS // (posterior.batch_shape.numel() * each))


def _points(posterior: Distribution, most: int) -> Float[Tensor, "B G D"] | None:
    """The support of a law that is a point or at most so many of equal weight, else None."""
    if isinstance(posterior, Delta):
        return posterior.mean.unsqueeze(-2)
    if not isinstance(posterior, Cells) or bool((posterior.cell > 0).any()) or posterior.points.shape[-2] > most:
        return None
    weights = posterior.log_weights
    return posterior.points if bool((weights.amax(-1) - weights.amin(-1) < 1e-6).all()) else None


def values_at(model: TaskModel, z: Float[Tensor, "S B D"], x: Float[Tensor, "B P X"]) -> Float[Tensor, "S B V"]:
    """``E[y | x, z]`` for every draw of the latent; the coordinates of the first input come first.

    Raises ValueError where the likelihood has no mean.
    """
    law: Any = model.likelihood(z.unsqueeze(-2), Context.of(x, x.new_zeros(*x.shape[:2], 0)))
    try:
        mean = law.mean
    except NotImplementedError:
        mean = x.new_tensor(torch.nan)
    if bool(mean.isnan().all()):
        raise ValueError(
            f"function values: expected a likelihood with a mean, got {type(law).__name__}; use a one-hot code of "
            f"classes, whose mean are their probabilities"
        )
    return flattened(mean.expand(len(z), *x.shape[:2], -1), classes=isinstance(law, OneHotCategorical))


def flattened(values: Float[Tensor, "*b P Y"], *, classes: bool) -> Float[Tensor, "*b V"]:
    """Values of targets as one vector per task, of two classes those of class 1."""
    return (values[..., 1:] if classes and values.shape[-1] == 2 else values).flatten(-2)


def value_names(probes: Float[Tensor, "*B P X"], spec: Spec) -> list[str]:
    """A name for each of the ``V`` values: ``f(-3.1)``, ``f0(x2)`` of a vector, ``p1(x2)`` of a class."""
    count, x_dim = probes.shape[-2:]
    shared_line = probes.ndim == 2 and x_dim == 1
    places = [f"{float(probes[p, 0]):.3g}" if shared_line else f"x{p}" for p in range(count)]
    targets = [f"p{c}" for c in range(spec.y_dim)] if spec.classes else [f"f{d}" for d in range(spec.y_dim)]
    targets = targets[1:] if spec.classes and spec.y_dim == 2 else ["f"] if targets == ["f0"] else targets
    return [f"{target}({place})" for place in places for target in targets]


def probes_per_task(spec: Spec) -> int:
    """How many probes there are, fewer where a target has many coordinates."""
    return max(1, min(PROBES, _VALUES // spec.y_dim))


def shared_probes(family: SupervisedFamily, rows: int, generator: torch.Generator) -> Float[Tensor, "P X"]:
    """Different inputs of one test task's ``rows`` data, in order: on a line, evenly spaced in rank; else the last."""
    x, count = family.context(family.sample(1, "test", generator), rows, generator).x[0], probes_per_task(family.spec)
    if x.shape[-1] > 1:
        return x[-count:].unique(dim=0)
    x = x.unique(dim=0)
    return x[((torch.arange(count) + 0.5) * len(x) / count).long().unique()]


def true_values(
    family: SupervisedFamily, params: Float[Tensor, "B M"], probes: Float[Tensor, "P X"]
) -> Float[Tensor, "B V"] | None:
    """The values of the tasks' own functions at the probes, None where the family does not tell.

    They are the means of its model's likelihood at the true parameters, so that exact inference is exact about them.
    What a family tells of classes without a model, labels that are never wrong, is not their probability.
    """
    x = probes.expand(len(params), -1, -1)
    model = family.model if isinstance(family, KnowsModel) else None
    if model is not None and model.prior(1).event_shape == (family.spec.param_dim,):
        return values_at(model, params.unsqueeze(0), x).squeeze(0)
    if isinstance(family, KnowsFunction) and not family.spec.classes:
        return family.mean(params, x).flatten(1)
    return None


def misfit(probes: Float[Tensor, "P X"], *, classes: bool) -> Any:
    r"""A quantity to rank: how far the function's values are from the targets of the data nearest to each probe.

    ``\sum_p |f(x_p) - y_{n(p)}|^2``, 0 where there are no data. Values alone cannot tell a belief that ignores its data
    from an exact one, as the prior is calibrated, too; a quantity that depends on the data can.
    """

    def quantity(values: Float[Tensor, "*S B V"], data: Context) -> Float[Tensor, "*S B"]:
        if not data.size:
            return values.new_zeros(values.shape[:-1])
        distance = torch.cdist(probes.to(data.x).expand(data.batch, -1, -1), data.x)
        nearest = distance.masked_fill(~data.mask.unsqueeze(1), torch.inf).argmin(-1, keepdim=True)
        targets = flattened(data.y.take_along_dim(nearest, 1), classes=classes)
        return (values - targets.to(values)).square().sum(-1)

    return quantity
