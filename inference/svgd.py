r"""Stein variational gradient descent (Liu and Wang 2016): particles that climb the posterior and repel each other.

    phi(z_i) = 1/M \sum_j [ K(z_j, z_i) grad log p(z_j | data) + grad_{z_j} K(z_j, z_i) ]

One particle climbs to the posterior's mode. A Gaussian's mean and covariance are exact at the fixed point of the linear
kernel with more particles than dimensions. With the usual RBF kernel they are not: from ``M - 1`` dimensions on, the
particles of a standard normal come to rest at a regular simplex whose variance is ``log M`` *in total*, whatever the
dimension. The spread of ten particles of a network's weights is therefore no posterior variance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.inference.descent import SGD, InnerOptimizer, gradient
from bayesmeta.inference.evidence import checked
from bayesmeta.inference.gradient import refuse_padding, require_real
from bayesmeta.inference.particles import Particles, log_densities, log_mixture, unmoved_without_data
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, concat


@dataclass(frozen=True)
class RBF:
    """``K(x, y) = exp(-|x - y|^2 / h)`` with ``h = median^2 / log M``, the median of the distances of all pairs.

    So the kernels of a particle with its neighbours sum to about 1 (Liu and Wang 2016, section 5). No gradient flows
    through ``h``, as published.
    """

    def __call__(self, z: Float[Tensor, "B M D"]) -> tuple[Float[Tensor, "B M M"], Float[Tensor, "B M D"]]:
        """``K(z_j, z_i)``, and the repulsion of each particle, ``sum_j grad_{z_j} K(z_j, z_i)``."""
        count = z.shape[1]
        if count == 1:  # log M = 0; whatever h is, K = 1 and nothing repels
            return torch.ones_like(z[..., :1]), torch.zeros_like(z)
        # Differences do not depend on the mean, and without it their squares lose no digits in the product.
        z = z - z.mean(1, keepdim=True)
        square = z.square().sum(-1)
        distance = (square.unsqueeze(2) + square.unsqueeze(1) - 2.0 * z @ z.mT).clamp_min(0.0)
        distance = distance * (1.0 - torch.eye(count, dtype=z.dtype, device=z.device))
        one, other = torch.triu_indices(count, count, 1, device=z.device)
        median = distance.detach()[:, one, other].sqrt().quantile(0.5, dim=-1)
        least = torch.finfo(z.dtype).tiny ** 0.5  # particles that coincide have no scale
        rate = math.log(count) / median.square().clamp_min(least)[:, None, None]
        kernel = (-rate * distance).exp()
        return kernel, 2.0 * rate * (kernel.sum(-1, keepdim=True) * z - kernel @ z)


@dataclass(frozen=True)
class Linear:
    """``K(x, y) = x^T y + 1``: a fixed point has a Gaussian target's mean and covariance, if ``M > D``."""

    def __call__(self, z: Float[Tensor, "B M D"]) -> tuple[Float[Tensor, "B M M"], Float[Tensor, "B M D"]]:
        """As :meth:`RBF.__call__`; here every particle repels another by the latter's own place."""
        return z @ z.mT + 1.0, z.shape[1] * z


Kernel = RBF | Linear


def stein_direction(z: Float[Tensor, "B M D"], score: Float[Tensor, "B M D"], kernel: Kernel) -> Float[Tensor, "B M D"]:
    """``phi`` of each particle, ``score`` being the gradients of the log density there."""
    weights, repulsion = kernel(z)
    return (weights @ score + repulsion) / z.shape[1]


def transport(
    log_density: Callable[[Tensor], Tensor],
    start: Float[Tensor, "B M D"],
    optimizer: InnerOptimizer,
    steps: int,
    kernel: Kernel,
    *,
    first_order: bool = False,
) -> Float[Tensor, "B M D"]:
    """The particles after ``steps`` steps of ``optimizer`` along ``phi``, for ``log_density [B, M, D] -> [B, M]``.

    It may lack a constant. Gradients flow through every step, but for the bandwidth; with ``first_order`` every
    direction is a constant, and ``start`` keeps its gradient.
    """
    flat = start.flatten(0, 1)
    if not torch.is_grad_enabled():  # torch calls a view of a parameter differentiable, and then cannot do it
        flat = flat.detach()
    state = optimizer.start(flat)
    for index in range(steps):
        score = gradient(lambda z: log_density(z.view_as(start)), flat, differentiable=not first_order)
        direction = stein_direction(flat.view_as(start), score.view_as(start), kernel)
        direction = direction.detach() if first_order else direction
        flat, state = optimizer.step(flat, -direction.flatten(0, 1), state, index)
    return flat.view_as(start)


class SVGD(nn.Module):
    """``steps`` steps of SVGD on the posterior ``p(z | data)`` of a task model with a latent in all of R^D.

    Particles start at ``start [M, D]``, which is then a parameter and the belief without data (BMAML's, Yoon et al.
    2018), whatever the model's prior. By default they start at ``particles`` draws of the prior, the same for all tasks
    and always those that follow from ``seed``; where the prior is reparameterised they follow it as it is learned.

    Gradients flow through all steps into the start, the model and the optimiser, unless ``first_order`` holds the
    directions constant. Obeys the filter law because it starts anew from all data. The belief is points, which have no
    density: it does not obey Bayes' law, and its spread is too small (see the module's docstring).
    """

    def __init__(
        self,
        model: TaskModel,
        *,
        x_dim: int,
        y_dim: int,
        particles: int = 10,
        steps: int = 100,
        optimizer: InnerOptimizer | None = None,
        kernel: Kernel | None = None,
        start: Float[Tensor, "M D"] | None = None,
        seed: int = 0,
        first_order: bool = False,
    ) -> None:
        super().__init__()
        require_real("SVGD", model)
        if steps < 0 or particles < 1:
            raise ValueError(f"SVGD: expected steps >= 0 and particles >= 1, got {steps} and {particles}")
        dim = model.prior(1).event_shape[0]
        if start is not None and start.shape[-1] != dim:
            raise ValueError(f"SVGD: expected start [M, {dim}], as the model's prior has it, got {tuple(start.shape)}")
        self.model, self.optimizer = model, SGD() if optimizer is None else optimizer
        self.kernel: Kernel = RBF() if kernel is None else kernel
        self.start = None if start is None else nn.Parameter(start.clone())
        self.x_dim, self.y_dim, self.steps = x_dim, y_dim, steps
        self.particles = particles if start is None else len(start)
        self.seed, self.first_order = seed, first_order

    def init(self, batch: int) -> Particles:
        """The particles where they start."""
        start: Tensor | None = self.start
        if start is None:
            prior = self.model.prior(1)
            with torch_seeded(self.seed):
                draw = prior.rsample if prior.has_rsample else prior.sample
                start = draw(torch.Size((self.particles,))).squeeze(1)
        z = start.expand(batch, -1, -1)
        return Particles(z, Context.empty(batch, self.x_dim, self.y_dim, z.device))

    def update(self, belief: Particles, data: Context) -> Particles:
        """SVGD on the belief's data and ``data`` together, from the start. Tasks without data stay there.

        Raises ValueError on data of a wrong shape or not finite, and on padding where a network mixes rows.
        """
        data = checked("SVGD", data, batch=len(belief.z), x_dim=self.x_dim, y_dim=self.y_dim)
        refuse_padding("SVGD", self.model, data)
        seen, start = concat([belief.data, data]), self.init(data.batch).z
        return Particles(unmoved_without_data(start, self.moved(start, seen, self.steps), seen), seen)

    def moved(self, z: Float[Tensor, "B M D"], data: Context, steps: int) -> Float[Tensor, "B M D"]:
        """Any particles after ``steps`` steps on the posterior given ``data``."""

        def log_joint(z: Tensor) -> Tensor:
            return self.model.log_joint(z.transpose(0, 1), data).T

        return transport(log_joint, z, self.optimizer, steps, self.kernel, first_order=self.first_order)

    def log_predictive(self, support: Context, query: Context, *, transductive: bool = True) -> Float[Tensor, "B Q"]:
        """``log 1/M sum_m p(y | x, z_m)`` of the queries over all particles after ``support``; 0 under the mask.

        ``transductive`` says whether a network that normalises over rows does so over the queries together, or with the
        support's statistics.
        """
        z = self.update(self.init(support.batch), support).z
        return log_mixture(log_densities(self.model, z, query, support=None if transductive else support))
