"""What the tests of the finite worlds share: episodes of given actions, and the cities once more, in plain Python."""

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bayesmeta.types import Transitions

LEFT, UP, RIGHT, DOWN, STAY, RIDE, END, PICK_UP, DROP = range(9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_actions(family, rows: int, seed: int = 0, *, without: tuple[int, ...] = ()) -> Tensor:
    """Numbers of actions ``[T, B]``, of all that are not left out alike."""
    allowed = torch.tensor([a for a in range(family.spec.actions) if a not in without])
    return allowed[torch.randint(len(allowed), (rows, family.spec.horizon), generator=generator(seed))].T


def episode(env, actions: Tensor, *, seed: int | None = None, **options) -> Transitions:
    """The episode of the given actions ``[T, B]``."""
    obs, _ = env.reset(seed=seed, options=options)
    alive, rows = torch.ones(env.num_envs, dtype=torch.bool), []
    for action in actions:
        new, reward, terminated, truncated, _ = env.step(action)
        code = one_hot(action, env.rules.spec.actions).float()
        over = terminated | truncated
        rows.append((obs, code, reward, reward, new, terminated & alive, over & alive, alive))
        obs, alive = new, alive & ~over
    return Transitions(*(torch.stack(column, 1) for column in zip(*rows, strict=True)))


@dataclass
class PlainCity:
    """One city, step by step, from the published rules and with none of the library's code."""

    size: int
    horizon: int
    price: float
    stops: list
    ends: list
    idle_stops: list
    idle_ends: list
    corners: list
    start: tuple
    map_cell: tuple | None
    any_corner: bool

    def begin(self, problem: int, corner: int) -> list[int]:
        lines = list(zip(self.stops, list(permutations(self.ends))[problem % 24], strict=True))
        if self.idle_stops:
            lines += list(zip(self.idle_stops, list(permutations(self.idle_ends))[problem // 24], strict=True))
        self.joined = {a: b for a, b in lines} | {b: a for a, b in lines}
        self.problem, self.corner, self.at, self.t = problem, corner, self.start, 0
        return self.seen()

    def seen(self) -> list[int]:
        shown = [] if self.map_cell is None else [1 + self.problem if self.at == self.map_cell else 0]
        return [*self.at, int(self.at in self.joined), *shown, self.corner]

    def step(self, action: int) -> tuple[list[int], float, bool]:
        x, y = self.at
        self.t += 1
        if action == RIDE:
            x, y = self.joined.get(self.at, self.at)
        x += {LEFT: -1, RIGHT: 1}.get(action, 0)
        y += {DOWN: -1, UP: 1}.get(action, 0)
        self.at = (min(max(x, 0), self.size - 1), min(max(y, 0), self.size - 1))
        if self.corner == 0:
            return self.seen(), 0.0, action == END
        goal = self.at == self.corners[self.corner - 1]
        reward = 1.0 if goal else -self.price
        if action == END:
            reward -= self.price * (self.horizon - self.t)
        over = goal or action == END or (self.any_corner and self.at in self.corners)
        return self.seen(), reward, over


def plain(variant: str) -> PlainCity:
    if variant == "small_map":
        stops, ends = [(2, 1), (3, 2), (2, 3), (1, 2)], [(0, 0), (0, 4), (4, 4), (4, 0)]
        corners = [(0, 0), (4, 4), (0, 4), (4, 0)]
        return PlainCity(5, 10, 0.3, stops, ends, [], [], corners, (2, 2), (4, 2), True)
    stops, ends = [(4, 5), (5, 4), (3, 4), (4, 3)], [(0, 1), (0, 7), (8, 1), (8, 7)]
    idle = variant == "distraction"
    idle_stops, idle_ends = [(5, 5), (3, 3), (3, 5), (5, 3)], [(0, 4), (4, 0), (8, 4), (4, 8)]
    extra = (idle_stops, idle_ends) if idle else ([], [])
    corners = [(0, 0), (8, 8), (0, 8), (8, 0)]
    return PlainCity(9, 20, 0.1, stops, ends, *extra, corners, (4, 4), (7, 3) if variant == "map" else None, False)
