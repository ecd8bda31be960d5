"""The posterior mode, with its gradient found implicitly: iMAML's adaptation as inference (Rajeswaran et al. 2019)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bayesmeta.inference.descent import InnerOptimizer, descend
from bayesmeta.inference.evidence import checked
from bayesmeta.inference.gradient import Adapted, Reduction, refuse_padding, require_real
from bayesmeta.inference.implicit import conjugate_gradients, derivatives, minimum
from bayesmeta.inference.newton import newton
from bayesmeta.inference.predictive import log_predictive
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, concat


@dataclass(frozen=True)
class Accuracy:
    """How good the two approximations of an implicit gradient are, for each task.

    ``slope [B]`` is the inner loss's gradient at the point that was found, as a share of that at the start: 0 at the
    minimum. ``residual [B]`` is that of the linear system for the gradient of the queries' loss, as a share of its
    right-hand side: 0 if solved. ``definite [B]``: no direction of no or negative curvature was met; where one was, the
    point is no minimum.
    """

    slope: Float[Tensor, "B"]
    residual: Float[Tensor, "B"]
    definite: Bool[Tensor, "B"]


class ProximalMAP(nn.Module):
    r"""``z* = argmin_z -log p(data | z) - log p(z)``, the posterior's mode.

    With a Gaussian prior ``N(theta, I / lambda)`` that is iMAML's inner problem,

        z* = argmin_z -log p(data | z) + lambda (z - theta)^T (z - theta) / 2.

    ``steps`` steps of ``optimizer`` on this loss, the prior included throughout, lead there from the prior's mean;
    without an optimiser they are truncated Newton steps (:func:`~bayesmeta.inference.newton.newton`), of which a few
    are enough and none diverges. ``reduction="mean"`` divides the whole loss by the number of data: the same minimum,
    gradients that do not grow with it.

    Gradients do not flow through the steps but by the implicit function theorem at ``z*`` (Lemma 1 of the paper)
    into everything the loss depends on: the prior's mean, its scale, parameters that tasks share, the noise. With
    ``H`` the Hessian of minus the log-likelihood, ``theta`` receives ``(I + H / lambda)^{-1} g``. The memory does not
    depend on ``steps``. ``cg_steps`` conjugate gradients solve for it, with ``damping`` added to the Hessian of the
    inner loss. Too few of them, or of the steps, raise nothing and give a wrong gradient: see :meth:`accuracy`.

    The published code steps on the data's loss alone and pulls towards ``theta`` once at the end; here it is as the
    paper has it. Works on any :class:`TaskModel` whose latent ranges over all of R^D. Obeys the filter law because it
    starts anew from all data. Raises ValueError for an optimiser with a learned rate, which has no gradient,
    and for numbers out of range.
    """

    def __init__(
        self,
        model: TaskModel,
        *,
        x_dim: int,
        y_dim: int,
        steps: int = 5,
        optimizer: InnerOptimizer | None = None,
        reduction: Reduction = "sum",
        cg_steps: int = 5,
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        if optimizer is not None and any(p.requires_grad for p in optimizer.parameters()):
            raise ValueError(
                "ProximalMAP: expected an optimiser with nothing to learn, since the minimum does not depend on how it "
                "is found; learn the prior's scale instead, or use GradientDescent"
            )
        if cg_steps < 1 or damping < 0:
            raise ValueError(f"ProximalMAP: expected cg_steps >= 1 and damping >= 0, got {cg_steps} and {damping}")
        require_real("ProximalMAP", model)
        if steps < 0 or reduction not in ("sum", "mean"):
            raise ValueError(f"ProximalMAP: expected steps >= 0, reduction sum or mean, got {steps} and {reduction!r}")
        self.model, self.optimizer = model, optimizer
        self.x_dim, self.y_dim, self.steps, self.reduction = x_dim, y_dim, steps, reduction
        self.cg_steps, self.damping = cg_steps, damping

    def init(self, batch: int) -> Adapted:
        """The prior's mean."""
        z = self.model.prior(batch).mean
        return Adapted(z, Context.empty(batch, self.x_dim, self.y_dim, z.device))

    def update(self, belief: Adapted, data: Context) -> Adapted:
        """The mode given the belief's data and ``data`` together.

        Raises ValueError on data of a wrong shape or not finite, and on padding where a network mixes rows.
        """
        data = checked("ProximalMAP", data, batch=len(belief.z), x_dim=self.x_dim, y_dim=self.y_dim)
        refuse_padding("ProximalMAP", self.model, data)
        seen = concat([belief.data, data])
        start = self.model.prior(seen.batch).mean
        if not seen.size:
            return Adapted(start, seen)

        def loss(z: Tensor) -> Tensor:
            return self.loss(z, seen)

        with torch.no_grad():
            if self.optimizer is None:
                z = newton(loss, start.detach(), self.steps, cg_steps=self.cg_steps)
            else:
                z = descend(loss, start.detach(), self.optimizer, self.steps)
        return Adapted(minimum(loss, z, steps=self.cg_steps, damping=self.damping), seen)

    def loss(self, z: Float[Tensor, "B D"], data: Context) -> Float[Tensor, "B"]:
        """Minus the log joint density of each task, by ``reduction`` over the number of its data."""
        loss = -self.model.log_joint(z, data)
        return loss if self.reduction == "sum" else loss / data.mask.sum(1).clamp_min(1)

    def log_predictive(self, support: Context, query: Context, *, transductive: bool = True) -> Float[Tensor, "B Q"]:
        """``log p(y | x, z*)`` of the queries, as in :class:`~bayesmeta.inference.gradient.GradientDescent`."""
        posterior = self.update(self.init(support.batch), support).posterior
        return log_predictive(self.model, posterior, query, support=None if transductive else support)

    def accuracy(self, support: Context, query: Context) -> Accuracy:
        """How far the steps are from the minimum, and the conjugate gradients from the implicit gradient."""
        with torch.no_grad():
            belief = self.update(self.init(support.batch), support)

        def inner(z: Tensor) -> Tensor:
            return self.loss(z, belief.data)

        first, _ = derivatives(inner, self.model.prior(support.batch).mean)
        last, product = derivatives(inner, belief.z)
        outer, _ = derivatives(lambda z: -self.model.log_likelihood(z, query), belief.z)
        solved = conjugate_gradients(product, outer.detach(), steps=self.cg_steps, damping=self.damping)
        tiny = torch.finfo(first.dtype).tiny
        slope = last.detach().norm(dim=-1) / first.detach().norm(dim=-1).clamp_min(tiny)
        return Accuracy(slope, solved.residual, solved.definite)
