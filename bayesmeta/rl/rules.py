"""What a planner, an environment and a reference agent need to know of a finite deterministic world."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesmeta.types import Spec


class Payment(NamedTuple):
    """What one step under an instruction comes to: the next ``stage``, the ``reward``, whether the episode is over."""

    stage: Int[Tensor, "..."]
    reward: Float[Tensor, "..."]
    over: Bool[Tensor, "..."]


@runtime_checkable
class Rules(Protocol):
    """A world of integers in which everything but the problem is seen.

    A state is a vector of integers, component ``i`` of which has ``state_sizes[i]`` values; every episode begins in
    ``start``. What an instruction still asks for is its ``stage``, one of ``stages``, 0 at the start. Action ``end``
    ends the episode and pays ``step_reward`` once more for every step that is left; None where there is no such action.

    All functions are pure, work on tensors of any leading axes and broadcast over them. Params are integers here.
    """

    spec: Spec
    action_names: tuple[str, ...]
    start: tuple[int, ...]
    state_sizes: tuple[int, ...]
    instruction_dim: int
    stages: int
    end: int | None
    step_reward: float

    def advance(
        self, state: Int[Tensor, "... s"], action: Int[Tensor, "..."], params: Int[Tensor, "... M"]
    ) -> Int[Tensor, "... s"]:
        """The state after an action."""
        ...

    def observe(self, state: Int[Tensor, "... s"], params: Int[Tensor, "... M"]) -> Int[Tensor, "... o"]:
        """What is seen of a state, without the instruction."""
        ...

    def recover(self, seen: Int[Tensor, "... o"]) -> Int[Tensor, "... s"]:
        """The state that was seen."""
        ...

    def instructions(self, params: Int[Tensor, "B M"]) -> Int[Tensor, "B G I"]:
        """The instructions of a problem, equally likely; one that is likelier than others stands there repeatedly."""
        ...

    def pay(
        self,
        stage: Int[Tensor, "..."],
        action: Int[Tensor, "..."],
        after: Int[Tensor, "... s"],
        instruction: Int[Tensor, "... I"],
        params: Int[Tensor, "... M"],
    ) -> Payment:
        """What the action that led to ``after`` is worth under an instruction, but for the price of ending early."""
        ...

    def consistent(
        self,
        params: Int[Tensor, "... M"],
        obs: Int[Tensor, "... S"],
        action: Int[Tensor, "..."],
        reward: Float[Tensor, "..."],
        next_obs: Int[Tensor, "... S"],
    ) -> Bool[Tensor, "..."]:
        """Whether a transition can happen if ``params`` are the problem."""
        ...

    def picture(
        self, state: tuple[int, ...], instruction: tuple[int, ...], params: tuple[int, ...]
    ) -> tuple[np.ndarray, str]:
        """A table ``[rows, columns]`` of characters that shows one world, the hidden too, and a line in words."""
        ...

    def env(self, params: Float[Tensor, "B M"], device: Any = "cpu") -> Any:
        """The problems as one vector environment."""
        ...
