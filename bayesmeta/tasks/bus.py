"""Cities with buses whose lines are unknown, two of them with a map of the lines (Liu et al. 2021)."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesmeta.rl.rules import Payment
from bayesmeta.tasks.grid import ACTIONS, END, RIDE, STATUS, Table, cell, moved
from bayesmeta.tasks.world import World
from bayesmeta.types import Spec

Cell = tuple[int, int]


@dataclass(frozen=True)
class City:
    """A square of cells. Line ``i`` of a problem joins ``stops[i]`` with the ``i``-th of the ends, permuted.

    ``idle_stops`` and ``idle_ends`` are those of lines that lead nowhere useful, with a permutation of their own. Each
    step costs ``price``; the goal, one of the ``corners``, pays 1. ``any_corner`` says that the wrong ones end the
    episode too.
    """

    name: str
    size: int
    horizon: int
    start: Cell
    stops: tuple[Cell, ...]
    ends: tuple[Cell, ...]
    corners: tuple[Cell, ...]
    price: float
    idle_stops: tuple[Cell, ...] = ()
    idle_ends: tuple[Cell, ...] = ()
    map_cell: Cell | None = None
    any_corner: bool = False

    @property
    def lines(self) -> list[tuple[tuple[Cell, ...], tuple[Cell, ...]]]:
        """For every problem, all stops and the cells that they are joined with."""
        useful, idle = list(permutations(self.ends)), list(permutations(self.idle_ends))
        return [(self.stops + self.idle_stops, ends + other) for other in idle for ends in useful]


_LARGE = City(
    name="vanilla_bus-v1",
    size=9,
    horizon=20,
    start=(4, 4),
    stops=((4, 5), (5, 4), (3, 4), (4, 3)),
    ends=((0, 1), (0, 7), (8, 1), (8, 7)),
    corners=((0, 0), (8, 8), (0, 8), (8, 0)),
    price=0.1,
)
_SMALL = City(
    name="map_5-v1",
    size=5,
    horizon=10,
    start=(2, 2),
    stops=((2, 1), (3, 2), (2, 3), (1, 2)),
    ends=((0, 0), (0, 4), (4, 4), (4, 0)),
    corners=((0, 0), (4, 4), (0, 4), (4, 0)),
    price=0.3,
    map_cell=(4, 2),
    any_corner=True,
)
CITIES = {
    "vanilla": _LARGE,
    "map": dataclasses.replace(_LARGE, name="map_9-v1", map_cell=(7, 3)),
    "distraction": dataclasses.replace(
        _LARGE,
        name="distracting_bus-v1",
        idle_stops=((5, 5), (3, 3), (3, 5), (5, 3)),
        idle_ends=((0, 4), (4, 0), (8, 4), (4, 8)),
    ),
    "small_map": _SMALL,
}
_EVERY = 11  # of the identifiers of "distraction", those that are trained on


class Bus(World):
    """``vanilla_bus-v1``, ``map_9-v1``, ``distracting_bus-v1``, ``map_5-v1``: which bus goes where?

    State: the position. Observation: ``(x, y, status, instruction)``, where ``status`` is 1 at a bus stop, either end
    of a line; with a map, ``(x, y, status, map, instruction)``, where ``map`` is 1 + the problem on the map's cell and
    0 elsewhere. The instruction 1, ..., 4 is a corner. Riding takes the agent to the other end of the line, in either
    direction. A step pays minus ``price``; reaching the corner asked for pays 1 and ends the episode; ending it early
    also pays the price of all steps that are left.

    ``vanilla``, ``map``, ``distraction``: 9 x 9 cells, 20 steps at 0.1. From the start a stop is one step away, its
    other end beside a corner: 0.8 with the lines known, 0.3 on foot. ``vanilla`` and ``map`` have 24 problems, all of
    them in both splits. ``distraction`` adds four lines that help nobody: 576 problems, number modulo 24 the useful
    permutation and number // 24 the other. Every 11th is in train (53) and the rest in test (523); all permutations of
    either kind occur in train, so that what is new in test are combinations.

    ``small_map``: 5 x 5 cells, 10 steps at 0.3, lines that end in the corners, any of which ends the episode, and a map
    two steps from the start: 0.7 with the lines known, 0.1 on foot.

    Source: Liu, Raghunathan, Liang and Finn, "Decoupling exploration and exploitation for meta-reinforcement learning
    without sacrifices", 2021, and their public code; the small world is of the homework of Stanford's CS 224R. What
    differs: exploration is not ended by an instruction that is not shown (:class:`bayesmeta.tasks.world_env.WorldEnv`),
    and time ends an episode without terminating it.
    """

    def __init__(self, variant: str = "vanilla", *, horizon: int | None = None) -> None:
        if variant not in CITIES:
            raise ValueError(f"Bus: expected a variant of {', '.join(CITIES)}; got {variant!r}")
        self.city = city = CITIES[variant]
        lines, size = city.lines, city.size
        self.start, self.state_sizes = city.start, (size, size)
        riding = torch.stack([_riding(size, *line) for line in lines])
        self._after, self._seen = Table(_after(size, riding)), Table(_seen(city, riding))
        corners = torch.zeros(size * size, dtype=torch.long)
        corners[cell(torch.tensor(city.corners), size)] = torch.arange(1, 1 + len(city.corners))
        self._corners = Table(corners)
        every = torch.arange(len(lines)).unsqueeze(1)
        train = every[::_EVERY] if city.idle_stops else every
        rest = every[every.squeeze(1) % _EVERY != 0] if city.idle_stops else every
        spec = Spec.discrete(
            city.name,
            obs_sizes=(
                size,
                size,
                len(STATUS),
                *([] if city.map_cell is None else [1 + len(lines)]),
                1 + len(city.corners),
            ),
            actions=len(ACTIONS),
            horizon=horizon or city.horizon,
            params={"problem": len(lines)},
        )
        splits = {"train": train, "test": rest}
        super().__init__(spec, action_names=ACTIONS, splits=splits, end=END, step_reward=-city.price)

    def advance(
        self, state: Int[Tensor, "... 2"], action: Int[Tensor, "..."], params: Int[Tensor, "... 1"]
    ) -> Int[Tensor, "... 2"]:
        return self._after(state)[params[..., 0], cell(state, self.city.size), action]

    def observe(self, state: Int[Tensor, "... 2"], params: Int[Tensor, "... 1"]) -> Int[Tensor, "... o"]:
        return self._seen(state)[params[..., 0], cell(state, self.city.size)]

    def recover(self, seen: Int[Tensor, "... o"]) -> Int[Tensor, "... 2"]:
        return seen[..., :2]

    def instructions(self, params: Int[Tensor, "B 1"]) -> Int[Tensor, "B 4 1"]:
        corners = torch.arange(1, 1 + len(self.city.corners), device=params.device)
        return corners.unsqueeze(-1).expand(len(params), -1, -1)

    def pay(
        self,
        stage: Int[Tensor, "..."],
        action: Int[Tensor, "..."],
        after: Int[Tensor, "... 2"],
        instruction: Int[Tensor, "... 1"],
        params: Int[Tensor, "... 1"],
    ) -> Payment:
        corner = self._corners(after)[cell(after, self.city.size)]
        there = corner == instruction[..., 0]
        return Payment(stage, torch.where(there, 1.0, self.step_reward), corner > 0 if self.city.any_corner else there)

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """Means over the corners: ``oracle`` knows the lines, ``walking`` never rides, ``still`` never moves."""
        walking = self.best_returns(params, forbidden=(RIDE,))
        still = torch.full_like(walking, self.step_reward * self.spec.horizon)
        return {"oracle": self.best_returns(params), "walking": walking, "still": still}

    def picture(
        self, state: tuple[int, ...], instruction: tuple[int, ...], params: tuple[int, ...]
    ) -> tuple[np.ndarray, str]:
        """Each line has a letter at both ends; ``m`` is the map, ``*`` the corner asked for, ``@`` the agent."""
        city, cells = self.city, np.full((self.city.size, self.city.size), ".")
        stops, ends = city.lines[params[0]]
        for letter, *line in zip("abcdefgh", stops, ends, strict=False):
            for x, y in line:
                cells[x, y] = letter
        if city.map_cell is not None:
            cells[city.map_cell] = "m"
        if instruction[0]:
            cells[city.corners[instruction[0] - 1]] = "*"
        cells[state] = "@"
        words = f"go to the corner {city.corners[instruction[0] - 1]}" if instruction[0] else "explore"
        return cells.T[::-1], words


SmallMap = partial(Bus, "small_map")
"""The smallest of these worlds, ``map_5-v1``."""


def _riding(size: int, stops: tuple[Cell, ...], ends: tuple[Cell, ...]) -> Int[Tensor, "cells"]:
    """The cell that a ride leads to from each cell: itself where there is no stop."""
    there = torch.arange(size * size)
    a, b = (cell(torch.tensor(cells), size) for cells in (stops, ends))
    there[a], there[b] = b, a
    return there


def _after(size: int, riding: Int[Tensor, "P cells"]) -> Int[Tensor, "P cells A 2"]:
    """The positions that actions lead to, by problem and cell."""
    here = _positions(torch.arange(size * size), size)
    after = moved(here.unsqueeze(1), torch.arange(len(ACTIONS)), size).expand(len(riding), -1, -1, -1).clone()
    after[:, :, RIDE] = _positions(riding, size)
    return after


def _seen(city: City, riding: Int[Tensor, "P cells"]) -> Int[Tensor, "P cells o"]:
    """What is seen in each cell, by problem, without the instruction."""
    cells = torch.arange(city.size * city.size)
    columns = [*_positions(cells, city.size).unbind(-1), (riding != cells) * STATUS.bus]
    if city.map_cell is not None:
        on_map = cells == cell(torch.tensor(city.map_cell), city.size)
        columns.append(on_map * torch.arange(1, 1 + len(riding)).unsqueeze(1))
    return torch.stack(torch.broadcast_tensors(*columns), -1)


def _positions(cells: Int[Tensor, "..."], size: int) -> Int[Tensor, "... 2"]:
    return torch.stack([cells // size, cells % size], -1)
