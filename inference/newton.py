"""Truncated Newton descent to the minimum of many tasks' losses at once, without making any Hessian."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.descent import Loss
from bayesmeta.inference.implicit import conjugate_gradients, derivatives

_DECREASE = 1e-4  # the share of the promised decrease that a step must bring
_HALVINGS = 30


@torch.no_grad()
def newton(loss: Loss, start: Float[Tensor, "B D"], steps: int, *, cg_steps: int = 10) -> Float[Tensor, "B D"]:
    """The parameters after ``steps`` Newton steps on ``loss`` from ``start``; nothing is differentiated through.

    A direction is ``cg_steps`` conjugate gradients on ``H d = gradient``, so far as the curvature is positive, and the
    gradient itself where it is not at once. Each task goes along its own as far as its loss falls enough (Armijo's
    condition), halving from 1, and stays where it is if it never does. So no loss ever rises, whatever its scale
    (Nocedal and Wright 2006, algorithm 7.1).
    """
    z = start
    for _ in range(steps):
        gradient, product = derivatives(loss, z)
        gradient = gradient.detach()
        direction = conjugate_gradients(product, gradient, steps=cg_steps).x
        direction = torch.where((direction == 0).all(-1, keepdim=True), gradient, direction)
        z = _along(loss, z, direction, (gradient * direction).sum(-1))
    return z


def _along(loss: Loss, z: Tensor, direction: Tensor, slope: Tensor) -> Tensor:
    """``z`` less a multiple of each task's direction, along which its loss falls by ``slope`` per unit at first."""
    before, length, accepted = loss(z), torch.ones_like(slope), torch.zeros_like(slope, dtype=torch.bool)
    for _ in range(_HALVINGS):
        after = loss(z - length.unsqueeze(-1) * direction)
        accepted = after <= before - _DECREASE * length * slope  # False where it is not finite
        if accepted.all():
            break
        length = torch.where(accepted, length, length / 2)
    return z - torch.where(accepted, length, 0.0).unsqueeze(-1) * direction
