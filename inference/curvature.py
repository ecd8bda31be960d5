r"""The curvature of a task's minus log joint density at a point, in the forms that Laplace's method needs.

The Hessian is exact and need not be positive definite. The Fisher information of the likelihood plus the prior's
precision is: it is the Hessian where the likelihood's natural parameters are linear in the latent, and the generalised
Gauss-Newton matrix where they are not (Martens 2020, section 9). All of it is differentiable.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pyro.distributions import Normal as PyroNormal
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
)

from bayesmeta.inference.beliefs import FullGaussian
from bayesmeta.models.low_rank_precision import LowRankPrecision
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


@runtime_checkable
class Curvature(Protocol):
    """A positive definite matrix ``P [D, D]`` for each task, in whatever form."""

    def log_det(self) -> Float[Tensor, "B"]:
        """``log det P``."""
        ...

    def law(self, mean: Float[Tensor, "B D"]) -> Distribution:
        """``N(mean, P^{-1})``: batch ``[B]``, event ``[D]``."""
        ...

    def solve(self, value: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``P^{-1} value``."""
        ...


@dataclass(frozen=True)
class Full:
    """``P = matrix [B, D, D]``."""

    matrix: Float[Tensor, "B D D"]

    def log_det(self) -> Float[Tensor, "B"]:
        return 2 * torch.linalg.cholesky(self.matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def law(self, mean: Float[Tensor, "B D"]) -> Distribution:
        return FullGaussian((self.matrix @ mean.unsqueeze(-1)).squeeze(-1), self.matrix).posterior

    def solve(self, value: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return torch.cholesky_solve(value.unsqueeze(-1), torch.linalg.cholesky(self.matrix)).squeeze(-1)


@dataclass(frozen=True)
class Diagonal:
    """``P = diag(diagonal)``, ``diagonal [B, D]`` > 0."""

    diagonal: Float[Tensor, "B D"]

    def log_det(self) -> Float[Tensor, "B"]:
        return self.diagonal.log().sum(-1)

    def law(self, mean: Float[Tensor, "B D"]) -> Distribution:
        return PyroNormal(mean, self.diagonal.rsqrt(), validate_args=False).to_event(1)

    def solve(self, value: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return value / self.diagonal


@dataclass(frozen=True)
class LowRank:
    """``P = diag(diagonal) + R^T R``, ``diagonal [B, D]`` > 0 and ``R = root [B, R, D]``."""

    diagonal: Float[Tensor, "B D"]
    root: Float[Tensor, "B R D"]

    def log_det(self) -> Float[Tensor, "B"]:
        return self.law(self.diagonal).log_det_precision

    def law(self, mean: Float[Tensor, "B D"]) -> LowRankPrecision:
        return LowRankPrecision(mean, self.diagonal, self.root)

    def solve(self, value: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.law(value).solve(value)


def hessian(loss: Callable[[Tensor], Tensor], z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
    """Second derivatives of each task's own loss, ``loss(z) [B]``."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        z = _variable(z, keep)
        (first,) = torch.autograd.grad(loss(z).sum(), z, create_graph=True)
        second = _jacobian(first, z, keep)
    return torch.zeros_like(z).diag_embed() if second is None else (second + second.mT) / 2


def fisher_root(model: TaskModel, z: Float[Tensor, "B D"], data: Context) -> Float[Tensor, "B R D"]:
    r"""``R`` with ``R^T R = \sum_n J_n^T I_n J_n``, the Fisher information of a task's data about its latent.

    ``J_n`` is the Jacobian of the parameters of datum ``n``'s distribution, ``I_n`` their information. Rows of padding
    are 0. Raises ValueError for a likelihood other than those of :func:`information`.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        z = _variable(z, keep)
        rows = []
        for value, weight in information(model.likelihood(z.unsqueeze(-2), data)) if data.size else ():
            jacobian = _jacobian(value.flatten(1), z, keep) if value.requires_grad else None
            if jacobian is not None:
                weight = weight.masked_fill(~data.mask.unsqueeze(-1), 0.0)
                rows.append(weight.flatten(1).unsqueeze(-1) * jacobian)
    root = torch.cat(rows, 1) if rows else z.new_zeros(len(z), 0, z.shape[-1])
    return root if keep else root.detach()


def information(law: Distribution) -> list[tuple[Float[Tensor, "B N Y"], Float[Tensor, "B N Y"]]]:
    """Parameters of a law with the square roots of their Fisher information, which is diagonal in them.

    ``N(m, s^2)``: ``m`` with ``1 / s`` and ``s`` with ``sqrt(2) / s``; Bernoulli: its logit with ``sqrt(p (1 - p))``;
    Poisson: its rate with ``rate^{-1/2}``; a one-hot class: ``log p_k`` with ``sqrt(p_k)``.
    """
    while isinstance(law, Independent):
        law = law.base_dist
    if isinstance(law, Normal):
        return [(law.loc, 1 / law.scale), (law.scale, math.sqrt(2) / law.scale)]
    if isinstance(law, Bernoulli):
        return [(law.logits, (law.probs * (1 - law.probs)).sqrt())]
    if isinstance(law, Poisson):
        return [(law.rate, law.rate.rsqrt())]
    if isinstance(law, OneHotCategorical):
        return [(law.logits, law.probs.sqrt())]  # torch's logits are the log probabilities
    raise ValueError(
        f"expected a likelihood that is Normal, Bernoulli, Poisson or OneHotCategorical, whose Fisher information is "
        f"known, got {type(law).__name__}; use curvature='hessian'"
    )


def prior_precision(prior: Distribution) -> Float[Tensor, "B *D_D"]:
    """The precision of a Gaussian prior: ``[B, D]`` where it is diagonal, else ``[B, D, D]``.

    Raises ValueError for another prior, whose curvature is no constant.
    """
    if isinstance(prior, MultivariateNormal):
        return prior.precision_matrix.expand(*prior.batch_shape, -1, -1)
    if isinstance(prior, Independent) and isinstance(prior.base_dist, Normal):
        return prior.base_dist.scale.square().reciprocal()
    raise ValueError(f"expected a Gaussian prior, got {prior}; use curvature='hessian'")


def _variable(z: Float[Tensor, "B D"], keep: bool) -> Float[Tensor, "B D"]:
    """``z`` as something to differentiate by. A view of a parameter made under no_grad claims to be and is not."""
    return z if keep and z.requires_grad else z.detach().requires_grad_()


def _jacobian(value: Float[Tensor, "B K"], z: Float[Tensor, "B D"], keep: bool) -> Any:
    """``d value_k / d z [B, K, D]`` of each task; None where the value does not depend on ``z``."""
    one_hot = torch.eye(value.shape[-1], dtype=z.dtype, device=z.device).unsqueeze(1).expand(-1, len(z), -1)
    (found,) = torch.autograd.grad(
        value, z, one_hot, is_grads_batched=True, create_graph=keep, retain_graph=True, allow_unused=True
    )
    return None if found is None else found.transpose(0, 1)
