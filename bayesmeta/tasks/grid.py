"""What the grid worlds share: the nine actions, steps that stop at the border, and tables on every device."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

# Position (x, y): x grows to the right and y upwards.
ACTIONS = ("left", "up", "right", "down", "stay", "ride", "end", "pick up", "drop")
LEFT, UP, RIGHT, DOWN, STAY, RIDE, END, PICK_UP, DROP = range(9)
_STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1), *[(0, 0)] * 5)


class Status(NamedTuple):
    """What the agent may be standing on, as it sees it."""

    nothing: int = 0
    bus: int = 1
    bowl: int = 2
    drawer: int = 3


STATUS = Status()


class Table:
    """A constant tensor that follows the device of what it is looked up with."""

    def __init__(self, values: Tensor) -> None:
        self._on = {values.device: values}

    def __call__(self, like: Tensor) -> Tensor:
        """The values on the device of ``like``."""
        if like.device not in self._on:
            self._on[like.device] = next(iter(self._on.values())).to(like.device)
        return self._on[like.device]


_MOVES = Table(torch.tensor(_STEPS))


def moved(position: Int[Tensor, "... 2"], action: Int[Tensor, "..."], size: int) -> Int[Tensor, "... 2"]:
    """The position in a square of ``size`` cells after an action; one that is no step changes nothing."""
    return (position + _MOVES(position)[action]).clamp(0, size - 1)


def cell(position: Int[Tensor, "... 2"], size: int) -> Int[Tensor, "..."]:
    """The number of a cell of a square: ``x size + y``."""
    return position[..., 0] * size + position[..., 1]
