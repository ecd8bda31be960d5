r"""Laplace's method: a Gaussian at the point that descent reaches, and the evidence that it implies.

    log p(D) ~ log p(D | z*) + log p(z*) + D/2 log 2 pi - 1/2 log det P

with ``P`` the curvature of ``- log p(D, z)`` at ``z*`` (MacKay 1992): exact where the log joint is quadratic, with an
error of order 1/n for n data elsewhere. With the points of MAML it is LLAMA's reading (Grant et al. 2018, section 4).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.curvature import Curvature, Diagonal, Full, LowRank, fisher_root, hessian, prior_precision
from bayesmeta.inference.descent import gradient
from bayesmeta.inference.gradient import Adapted, GradientDescent
from bayesmeta.inference.kfac import kronecker
from bayesmeta.inference.proximal import ProximalMAP
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context

CurvatureKind = Literal["hessian", "fisher", "diagonal", "kfac"]


@dataclass(frozen=True)
class LaplaceBelief:
    """A Gaussian at ``z [B, D]`` with the precision ``curvature``, and the data that led there."""

    z: Float[Tensor, "B D"]
    curvature: Curvature
    data: Context

    @property
    def posterior(self) -> Distribution:
        return self.curvature.law(self.z)


class Laplace(nn.Module):
    r"""``N(z*, P^{-1})`` at the point ``z*`` that ``mode`` reaches, on all data so far.

    ``z*`` is the posterior mode, as Laplace's method has it, if ``mode`` descends on ``objective="joint"`` for long
    enough; ``newton`` further steps ``z <- z - P^{-1} grad`` on the minus log joint get there fast. Descent on the
    likelihood alone gives MAML's point instead, around which no quadratic approximation of the joint is centred.

    ``curvature`` is the form of ``P``, the curvature of the minus log joint density: ``"hessian"``, exact, for few
    dimensions and at a point that is a mode; ``"fisher"``, the likelihood's Fisher information plus the prior's
    precision, positive definite anywhere and cheap for few data whatever the dimension; ``"diagonal"``, the diagonal of
    that; ``"kfac"``, its approximation by Kronecker products, one for each linear layer, cheap for many data
    (:mod:`bayesmeta.inference.kfac`). All but the first need a Gaussian prior.

    Gradients flow through the descent and the curvature unless ``mode`` stops them.
    """

    def __init__(
        self, mode: GradientDescent | ProximalMAP, *, curvature: CurvatureKind = "fisher", newton: int = 0
    ) -> None:
        super().__init__()
        if curvature not in ("hessian", "fisher", "diagonal", "kfac") or newton < 0:
            raise ValueError(
                f"Laplace: expected curvature hessian, fisher, diagonal or kfac and newton >= 0, got {curvature!r} and "
                f"{newton}"
            )
        self.mode, self.curvature, self.newton = mode, curvature, newton
        self.init(1)  # says now what the curvature would say later

    @property
    def model(self) -> TaskModel:
        """The task model whose latent is inferred."""
        return self.mode.model

    def init(self, batch: int) -> LaplaceBelief:
        """The prior, if it is Gaussian; else the Gaussian with its curvature at its mean."""
        start = self.mode.init(batch)
        return LaplaceBelief(start.z, self.curvature_at(start.z, start.data), start.data)

    def update(self, belief: LaplaceBelief, data: Context) -> LaplaceBelief:
        """The mode and the curvature on the belief's data and ``data`` together.

        Raises ValueError as ``mode`` does, and where the Hessian is not positive definite.
        """
        adapted = self.mode.update(Adapted(belief.z, belief.data), data)
        z, seen = adapted.z, adapted.data
        for _ in range(self.newton):
            slope = gradient(lambda z: -self.model.log_joint(z, seen), z, differentiable=True)
            z = z - self.curvature_at(z, seen).solve(slope)
        return LaplaceBelief(z, self.curvature_at(z, seen), seen)

    def log_evidence(self, belief: LaplaceBelief) -> Float[Tensor, "B"]:
        """Laplace's approximation to ``log p(y | x)`` of all data of each task."""
        volume = 0.5 * (belief.z.shape[-1] * math.log(2 * math.pi) - belief.curvature.log_det())
        return self.model.log_joint(belief.z, belief.data) + volume

    def curvature_at(self, z: Float[Tensor, "B D"], data: Context, *, model: TaskModel | None = None) -> Curvature:
        """``P`` at any point, of data of which ``model`` is the model, by default the procedure's own."""
        model = model or self.model
        if self.curvature == "hessian":
            found = hessian(lambda z: -model.log_joint(z, data), z)
            _require_positive(found)
            return Full(found)
        prior = prior_precision(model.prior(len(z)))
        if self.curvature == "kfac":
            return kronecker(model, z, data, prior)
        root = fisher_root(model, z, data)
        if self.curvature == "diagonal":
            diagonal = prior if prior.ndim == 2 else prior.diagonal(dim1=-2, dim2=-1)
            return Diagonal(diagonal + root.square().sum(1))
        if prior.ndim == 2 and root.shape[1] < root.shape[2]:
            return LowRank(prior, root)
        return Full(root.mT @ root + (prior.diag_embed() if prior.ndim == 2 else prior))


def _require_positive(matrix: Float[Tensor, "B D D"]) -> None:
    failed = torch.linalg.cholesky_ex(matrix.detach()).info.nonzero().flatten()
    if len(failed):
        raise ValueError(
            f"Laplace: expected a positive definite Hessian, as it is at a mode, got another for {len(failed)} of "
            f"{len(matrix)} tasks, the first being task {int(failed[0])}; descend on the joint density for longer, or "
            f"use curvature='fisher'"
        )
