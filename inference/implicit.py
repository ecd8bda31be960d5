r"""Implicit differentiation: the gradient of a minimum, without the path that led to it.

Where ``z*`` is the minimum of a loss that depends on parameters ``w``, ``dz*/dw = -H^{-1} d^2 loss / dz dw``, with
``H`` the Hessian in ``z``. A gradient ``g`` with respect to ``z*`` therefore becomes that of ``-<grad loss, H^{-1} g>``
with respect to ``w``, one solution of a linear system for all parameters at once. The system is solved by conjugate
gradients, which need products with ``H`` only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesmeta.inference.descent import Loss

Product = Callable[[Tensor], Tensor]  # vectors [B, D] -> each task's matrix times its vector [B, D]


@dataclass(frozen=True)
class Solved:
    """Solutions ``x [B, D]`` and their ``residual [B]``, ``|A x - b| / |b|``.

    ``definite [B]``: no direction of no or negative curvature was met, so that the matrix may be positive definite.
    """

    x: Float[Tensor, "B D"]
    residual: Float[Tensor, "B"]
    definite: Bool[Tensor, "B"]


def derivatives(loss: Loss, z: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Product]:
    """Each task's gradient at ``z``, with the graph that leads to the loss's parameters, and products with its Hessian.

    Tasks are independent, so one gradient of the sum of their losses holds every task's own.
    """
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at).sum(), at, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(gradient, at, v, retain_graph=True)
        return found

    return gradient, product


def conjugate_gradients(product: Product, b: Float[Tensor, "B D"], *, steps: int, damping: float = 0.0) -> Solved:
    """``(A + damping I) x = b`` of each task by ``steps`` conjugate gradients from 0 (Hestenes and Stiefel 1952).

    Every task has step sizes of its own. One that is solved to the precision of its numbers stops, and so does one
    that meets a direction of no or negative curvature, with the solution so far. In exact arithmetic ``D`` steps are
    enough, and the error falls with each, measured as ``(x - x*)^T A (x - x*)``.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    size = first = b.square().sum(-1)
    least = first * torch.finfo(b.dtype).eps ** 2
    definite = torch.ones_like(size, dtype=torch.bool)
    for _ in range(steps):
        active = definite & (size > least)
        if not active.any():
            break
        image = product(direction) + damping * direction
        curvature = (direction * image).sum(-1)
        definite = definite & ((curvature > 0) | ~active)
        active = active & definite
        length = torch.where(active, size / curvature, 0.0).unsqueeze(-1)
        x, residual = x + length * direction, residual - length * image
        size, before = torch.where(active, residual.square().sum(-1), size), size
        direction = residual + torch.where(active, size / before, 0.0).unsqueeze(-1) * direction
    return Solved(x, (size / first.clamp_min(torch.finfo(b.dtype).tiny)).sqrt(), definite)


def minimum(loss: Loss, z: Float[Tensor, "B D"], *, steps: int, damping: float = 0.0) -> Float[Tensor, "B D"]:
    """``z``, the minimum of each task's loss, as a function of all parameters that the loss depends on.

    The value is ``z`` itself. Its gradient is exact where ``z`` is the minimum and ``steps`` conjugate gradients solve
    the system; ``damping`` is added to the Hessian. It keeps the graph of one gradient of the loss, however ``z`` was
    found. Raises RuntimeError where it is to be differentiated twice. Under ``torch.no_grad`` nothing is computed.
    """
    if not torch.is_grad_enabled():
        return z
    gradient, product = derivatives(loss, z)
    return _Minimum.apply(
        gradient, z.detach(), lambda g: conjugate_gradients(product, g, steps=steps, damping=damping).x
    )


class _Minimum(torch.autograd.Function):
    """Forward the minimum, backward ``-H^{-1} g`` to the gradient of the loss, whose graph leads on."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, z: Tensor, solve: Product) -> Tensor:
        ctx.solve = solve
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # asked for a graph of the gradient, which the solution would not be part of
            raise RuntimeError(
                "an implicit gradient cannot be differentiated again: expected create_graph=False; use GradientDescent "
                "on the log joint, whose gradient through all steps can be"
            )
        return -ctx.solve(g), None, None
