"""Deep Q-learning as a part: values, their target network, their optimiser, and when each is due."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.guards import check_finite

Values = TypeVar("Values", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How deep Q-learning goes.

    ``trials`` run in lockstep, ``trials_per_iteration`` make an iteration. Each policy makes one gradient step per
    ``steps_per_update`` environment steps of its own, on ``batch`` trials, once ``execute_after`` or ``explore_after``
    trials are there. Random actions fall from 1 to ``final_epsilon`` over ``epsilon_steps`` of a policy's own steps
    from then on; its target network is renewed every ``target_every``.
    """

    trials: int = 32
    trials_per_iteration: int = 512
    batch: int = 32
    capacity: int = 16_000
    execute_after: int = 500
    explore_after: int = 2_000
    steps_per_update: int = 4
    epsilon_steps: int = 50_000
    final_epsilon: float = 0.01
    target_every: int = 2_500
    lr: float = 1e-4
    clip: float = 10.0
    discount: float = 0.99

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.execute_after <= self.capacity or not self.trials <= self.trials_per_iteration:
            raise ValueError(
                f"Schedule: expected 1 <= batch <= execute_after <= capacity and trials <= trials_per_iteration, got "
                f"{self}"
            )
        if not 0.0 <= self.final_epsilon <= 1.0:
            raise ValueError(f"Schedule: expected a rate final_epsilon in [0, 1], got {self.final_epsilon}")

    def epsilon(self, steps: int) -> float:
        """The rate of random actions after so many steps of learning."""
        return max(self.final_epsilon, 1.0 - (1.0 - self.final_epsilon) * steps / self.epsilon_steps)


class QLearner(Generic[Values]):
    """Values, their target network and their optimiser, which also trains ``others``.

    ``weight_decay`` of the values and of the modules ``decayed``, decoupled from the gradient: the rate of updates
    times it is the share of a weight that each update takes (Loshchilov and Hutter 2019).
    """

    def __init__(
        self,
        q: Values,
        schedule: Schedule,
        device: torch.device,
        others: tuple[nn.Module, ...] = (),
        *,
        weight_decay: float = 0.0,
        decayed: tuple[nn.Module, ...] = (),
    ) -> None:
        self.q: Values = q.to(device)
        self.target: Values = deepcopy(self.q).requires_grad_(False)
        self.schedule = schedule
        modules: tuple[nn.Module, ...] = (self.q, *others)
        self.parameters = [p for module in modules for p in module.parameters()]
        self.weight_decay = weight_decay
        shrunk: tuple[nn.Module, ...] = (self.q, *decayed)
        self.decayed: list[Tensor] = [p for module in shrunk for p in module.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=schedule.lr, fused=True)
        self.steps, self.begun_at, self.done, self.made, self.renewed = 0, 0, 0, 0, 0

    @property
    def epsilon(self) -> float:
        """The rate of random actions: 1 until learning begins."""
        return self.schedule.epsilon(self.steps - self.begun_at)

    def due(self, *, begun: bool) -> int:
        """How many updates are due, and from now on done; none for the steps before learning has begun."""
        if not begun:
            self.begun_at = self.steps
        before, self.done = self.done, self.steps // self.schedule.steps_per_update
        return self.done - before if begun else 0

    def slow_to(self, lr: float) -> None:
        """Updates at another rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def descend(self, loss: Float[Tensor, ""]) -> None:
        """One step, and the target network's renewal if it is time."""
        check_finite(loss=loss)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip)
        if self.weight_decay:
            with torch.no_grad():
                torch._foreach_mul_(self.decayed, 1.0 - self.optimizer.param_groups[0]["lr"] * self.weight_decay)
        self.optimizer.step()
        self.made += 1
        if self.steps // self.schedule.target_every > self.renewed:
            self.renewed = self.steps // self.schedule.target_every
            self.target.load_state_dict(self.q.state_dict())

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("q", "target", "optimizer")}
        return {**parts, "counts": [self.steps, self.begun_at, self.done, self.made, self.renewed]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("q", "target", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        counts = (int(count) for count in state["counts"])
        self.steps, self.begun_at, self.done, self.made, self.renewed = counts
