"""What all supervised meta-learners share: tasks split into support and query, and one optimiser on a loss."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from bayesmeta.guards import check_finite
from bayesmeta.types import Context, SupervisedFamily, TaskFamily


@dataclass(frozen=True)
class Episodes:
    """How meta-training goes: ``updates`` optimiser steps per iteration, each on ``meta_batch`` fresh tasks.

    A task has ``shots`` support data, or with ``least_shots`` a number that each update draws between the two, both
    included, and ``queries`` query data of the same draw, so that none is in both. ``lr`` is the rate of ``optimizer``,
    divided by ``1 + updates made / lr_half`` if that is given; ``clip`` bounds each coordinate of the gradient.
    ``compiled`` sends loss and gradient through torch.compile, which takes tens of seconds once and needs a C++
    compiler.
    """

    meta_batch: int = 25
    shots: int = 10
    least_shots: int | None = None
    queries: int = 10
    updates: int = 100
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    lr_half: int | None = None
    clip: float | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        least = self.shots if self.least_shots is None else self.least_shots
        if not 0 <= least <= self.shots or self.meta_batch < 1 or self.queries < 1 or self.updates < 1:
            raise ValueError(
                f"Episodes: expected 0 <= least_shots <= shots, and meta_batch, queries and updates >= 1, got {self}"
            )


class Learner(abc.ABC):
    """A supervised meta-learner: ``inference`` with a ``model``, and the ``loss`` that trains both.

    What follows from that is written here once. ``device`` is where tasks are drawn and everything is computed.
    """

    inference: Any

    def __init__(self, inference: nn.Module, episodes: Episodes, device: torch.device | str = "cpu") -> None:
        self.device, self.episodes = torch.device(device), episodes
        self.inference = inference.to(self.device)
        self.parameters = [p for p in self.inference.parameters() if p.requires_grad]
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[episodes.optimizer]
        self._optimizer = kind(self.parameters, lr=episodes.lr, fused=True)
        self._differentiated = self._loss_and_gradients
        if episodes.compiled:
            self._differentiated = Compiled(self.loss, self.inference)
        self.updates_made = 0

    @abc.abstractmethod
    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """What an update descends on: a mean over tasks."""

    def setup(self, family: TaskFamily, seed: int) -> None:
        """Where tasks will be drawn from. Raises ValueError if it has no tasks of that many data."""
        if not isinstance(family, SupervisedFamily):
            raise ValueError(
                f"{type(self).__name__} needs a supervised family, with `context`, got {type(family).__name__}"
            )
        tried = torch.Generator(self.device).manual_seed(seed)
        family.context(family.sample(1, "train", tried), self.episodes.shots + self.episodes.queries, tried)
        self._family = family
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def step(self) -> dict[str, float]:
        """One meta-iteration: ``updates`` updates. Returns their mean loss."""
        total = torch.zeros((), device=self.device)
        for _ in range(self.episodes.updates):
            total += self.update(*self.draw())
        return {"loss": float(total) / self.episodes.updates, "updates": float(self.updates_made)}

    def draw(self) -> tuple[Context, Context]:
        """Support and query data of fresh training tasks."""
        e = self.episodes
        shots = e.shots
        if e.least_shots is not None:
            shots = int(torch.randint(e.least_shots, e.shots + 1, (), generator=self._generator, device=self.device))
        params = self._family.sample(e.meta_batch, "train", self._generator)
        data = self._family.context(params, shots + e.queries, self._generator)
        return data.rows(0, shots), data.rows(shots, data.size)

    def update(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """One optimiser step. Returns the loss before it."""
        e = self.episodes
        loss, gradients = self._differentiated(support, query)
        check_finite(loss=loss)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            # Contiguous, because the fused CPU optimisers read gradients in memory order.
            parameter.grad = None if gradient is None else gradient.contiguous()
        if e.clip is not None:
            nn.utils.clip_grad_value_(self.parameters, e.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = e.lr if e.lr_half is None else e.lr / (1.0 + self.updates_made / e.lr_half)
        self._optimizer.step()
        self.updates_made += 1
        return loss.detach()

    def _loss_and_gradients(self, support: Context, query: Context) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = self.loss(support, query)
        return loss, torch.autograd.grad(loss, self.parameters, allow_unused=True)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser and the state of the tasks' generator."""
        return {
            "inference": self.inference.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "updates_made": self.updates_made,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``, after ``setup``."""
        self.inference.load_state_dict(state["inference"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"].cpu())
        self.updates_made = int(state["updates_made"])


class Compiled:
    """Loss and gradients as one compiled function of the parameters of ``inference`` that are trained."""

    def __init__(self, loss: Callable[[Context, Context], Tensor], inference: nn.Module) -> None:
        holder = _Holder(loss, inference)
        self.names = [name for name, p in holder.named_parameters() if p.requires_grad]
        self.holder = holder

        def value(parameters: dict[str, Tensor], *data: Tensor) -> Tensor:
            return functional_call(holder, parameters, data)

        self._compiled = torch.compile(torch.func.grad_and_value(value), dynamic=False, fullgraph=True)

    def __call__(self, support: Context, query: Context) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        parameters = dict(self.holder.named_parameters())
        wanted = {name: parameters[name].detach() for name in self.names}
        tensors = (support.x, support.y, support.mask, query.x, query.y, query.mask)
        gradients, loss = self._compiled(wanted, *tensors)
        return loss, tuple(gradients[name] for name in self.names)


class _Holder(nn.Module):
    """A loss as a module, whose parameters are those of the procedure."""

    def __init__(self, loss: Callable[[Context, Context], Tensor], inference: nn.Module) -> None:
        super().__init__()
        self.inference, self.loss = inference, loss

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.loss(Context(*tensors[:3]), Context(*tensors[3:]))
