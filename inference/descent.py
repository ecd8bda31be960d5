"""The inner loop: gradient descent on the parameters of many tasks at once, itself differentiable.

Tasks are independent, so one gradient of the *sum* of their losses with respect to the stacked parameters ``[B, D]``
holds every task's own. Nothing loops over tasks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Loss = Callable[[Tensor], Tensor]  # parameters [B, D] -> the loss of each task [B]
State = tuple[Tensor, ...]


class SGD(nn.Module):
    """``z <- z - rate * gradient``. ``rate`` is a number, a vector for the ``D`` parameters, or one row per step.

    With ``learn`` it is a parameter: Meta-SGD's where it is a vector (Li et al. 2017), MAML++'s where it has rows
    (Antoniou et al. 2019). A learned rate may become negative. A step beyond the last row uses the last.
    """

    def __init__(self, rate: float | Tensor = 0.01, *, learn: bool = False) -> None:
        super().__init__()
        self.rate = _rate(rate, learn)

    def start(self, z: Float[Tensor, "B D"]) -> State:
        return ()

    def step(self, z: Float[Tensor, "B D"], gradient: Float[Tensor, "B D"], state: State, index: int) -> Any:
        return z - _at(self.rate, index) * gradient, state


class Momentum(nn.Module):
    """``v <- momentum v + gradient``, ``z <- z - rate v``, as in torch.optim.SGD."""

    def __init__(self, rate: float | Tensor = 0.01, *, momentum: float = 0.9, learn: bool = False) -> None:
        super().__init__()
        self.rate, self.momentum = _rate(rate, learn), momentum

    def start(self, z: Float[Tensor, "B D"]) -> State:
        return (torch.zeros_like(z),)

    def step(self, z: Float[Tensor, "B D"], gradient: Float[Tensor, "B D"], state: State, index: int) -> Any:
        velocity = self.momentum * state[0] + gradient
        return z - _at(self.rate, index) * velocity, (velocity,)


class Adam(nn.Module):
    """Adam (Kingma and Ba 2015) with ``eps^2`` under the root, ``sqrt(v + eps^2)`` instead of ``sqrt(v) + eps``.

    The root of 0 has no derivative, and a parameter that a task's loss does not depend on has ``v = 0``.
    """

    def __init__(
        self,
        rate: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        learn: bool = False,
    ) -> None:
        super().__init__()
        self.rate, self.betas, self.eps = _rate(rate, learn), betas, eps

    def start(self, z: Float[Tensor, "B D"]) -> State:
        return torch.zeros_like(z), torch.zeros_like(z)

    def step(self, z: Float[Tensor, "B D"], gradient: Float[Tensor, "B D"], state: State, index: int) -> Any:
        first = self.betas[0] * state[0] + (1 - self.betas[0]) * gradient
        second = self.betas[1] * state[1] + (1 - self.betas[1]) * gradient.square()
        mean, square = (m / (1 - b ** (index + 1)) for m, b in zip((first, second), self.betas, strict=True))
        return z - _at(self.rate, index) * mean * (square + self.eps**2).rsqrt(), (first, second)


class Preconditioned(nn.Module):
    """``z <- z - P gradient`` with a symmetric matrix ``P [D, D]`` for all tasks, or ``[B, D, D]`` for each.

    ``P = (prior precision + Hessian)^-1`` makes one step from the prior's mean the posterior's mean, where the model is
    linear and Gaussian. With ``learn`` it is a parameter, the full matrix of Meta-Curvature (Park and Oliva 2019).
    """

    def __init__(self, matrix: Float[Tensor, "*B D D"], *, learn: bool = False) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone(), requires_grad=learn)

    def start(self, z: Float[Tensor, "B D"]) -> State:
        return ()

    def step(self, z: Float[Tensor, "B D"], gradient: Float[Tensor, "B D"], state: State, index: int) -> Any:
        return z - (self.matrix @ gradient.unsqueeze(-1)).squeeze(-1), state


InnerOptimizer = SGD | Momentum | Adam | Preconditioned


def descend(
    loss: Loss,
    start: Float[Tensor, "B D"],
    optimizer: InnerOptimizer,
    steps: int,
    *,
    first_order: bool = False,
    checkpointed: bool = False,
) -> Float[Tensor, "B D"]:
    """The parameters after ``steps`` steps on ``loss`` from ``start``.

    The gradient of the result flows through every step: ``prod_j (I - rate Hessian_j)`` times the incoming one. With
    ``first_order`` the inner gradients are constants (FOMAML), which leaves the identity in its place; ``start`` keeps
    its gradient either way. ``checkpointed`` recomputes each step when it is differentiated, so that memory does not
    grow with the steps but for one ``[B, D]`` each. Under ``torch.no_grad`` no graph is built.
    """
    z, state = start, optimizer.start(start)

    def step(index: int, z: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        z, state = optimizer.step(z, gradient(loss, z, differentiable=not first_order), state, index)
        return z, *state

    for index in range(steps):
        if checkpointed and torch.is_grad_enabled():
            z, *rest = checkpoint(step, index, z, *state, use_reentrant=False)
        else:
            z, *rest = step(index, z, *state)
        state = tuple(rest)
    return z


def gradient(loss: Loss, z: Float[Tensor, "B D"], *, differentiable: bool) -> Float[Tensor, "B D"]:
    """Each task's own gradient. It carries a graph if asked to and if gradients are being recorded."""
    if torch.compiler.is_compiling():  # the compiler cannot look into torch.autograd.grad
        found = torch.func.grad(lambda value: loss(value).sum())(z)
        return found if differentiable else found.detach()
    recording = torch.is_grad_enabled()
    keep = differentiable and recording
    with torch.enable_grad():
        # A view of a parameter requires a gradient even where none is recorded, and then has none.
        z = z if recording and z.requires_grad else z.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(z).sum(), z, create_graph=keep)
    return found


def _rate(rate: float | Tensor, learn: bool) -> nn.Parameter:
    value = torch.as_tensor(rate, dtype=rate.dtype if isinstance(rate, Tensor) else torch.get_default_dtype())
    if value.ndim > 2:
        raise ValueError(f"expected a rate that is a number, [D] or [steps, D], got shape {tuple(value.shape)}")
    if not value.isfinite().all():
        raise ValueError(f"expected a finite rate, got {value}")
    return nn.Parameter(value.clone(), requires_grad=learn)


def _at(rate: Tensor, index: int) -> Tensor:
    return rate[min(index, len(rate) - 1)] if rate.ndim == 2 else rate


def rates(rate: float, *, per: Sequence[int] = ()) -> Tensor:
    """A constant rate of shape ``per``: ``()``, ``(D,)`` or ``(steps, D)``. Raises ValueError unless it is positive."""
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"expected an inner rate > 0, got {rate}")
    return torch.full(tuple(per), rate)
