"""A kitchen whose drawers must be opened to know what is in them (Liu et al. 2021)."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesmeta.rl.rules import Payment
from bayesmeta.tasks.grid import ACTIONS, DROP, END, PICK_UP, STATUS, Table, moved
from bayesmeta.tasks.world import World
from bayesmeta.types import Spec

SIZE = 3
POT = (1, 1)
DRAWERS = ((2, 0), (2, 1), (2, 2))
INGREDIENTS = 4
EMPTY = INGREDIENTS  # what an empty hand and an empty place in the pot read
_PLACES = 3  # in the pot
_KITCHENS = INGREDIENTS ** len(DRAWERS)
_PUBLISHED_TEST = 10
_NAMES = ("lower", "middle", "upper")  # drawers


class Cooking(World):
    """``cooking-v1``: which ingredient is in which drawer?

    3 x 3 cells, 20 steps; the agent starts at the pot. Each of three drawers holds one of 4 ingredients and never runs
    out: 64 problems. Their ``identifier`` is a number, as published, whose digits to base 4, the least significant
    first, are the drawers' contents; or it is these ``contents``, three integers, so that kitchens have something in
    common that those who are told it may use.

    State: position, hand, the pot's three places. Observation: ``(x, y, status, hand, pot, pot, pot, first, second)``,
    with 4 for an empty hand or place, ``status`` 2 at the pot and 3 at a drawer. Picking up takes a drawer's
    ingredient, whatever was in the hand; at the pot it empties the hand; elsewhere it does nothing. Dropping fills the
    pot's next place if there is one; elsewhere what was in the hand is lost.

    The instruction is two ingredients 1, ..., 4, each from one of the drawers, drawn alike and independently. They go
    into the pot in that order, in four stages: to hold the first, to have it in the pot, to hold the second, to have it
    in the pot, which ends the episode. A stage that is done pays 0.25 and any other step -0.1. While something is to be
    held, to pick up anything else, or nothing, pays -0.35, and so does losing what was held, which puts a stage back.
    Ending early also pays -0.1 for all steps that are left.

    Told the drawers, the best return is 0.6 where they are equal, 0.333 where all three differ, 0.467 on the published
    test kitchen. ``fold=None`` is the published split: kitchen 10 (contents 2, 2, 0) is the test, the other 63 train.
    One kitchen is hardly a test; ``fold=i`` takes the ``i``-th of ``folds`` parts of a fixed shuffle instead.

    Source: Liu, Raghunathan, Liang and Finn, "Decoupling exploration and exploitation for meta-reinforcement learning
    without sacrifices", 2021, and their public code, which this follows where its own description of ``status``
    differs. What it differs in: see :class:`bayesmeta.tasks.bus.Bus`. Raises ValueError for a fold or an identifier
    that there is not.
    """

    start = (*POT, *[EMPTY] * (1 + _PLACES))
    state_sizes = (SIZE, SIZE, *[INGREDIENTS + 1] * (1 + _PLACES))
    stages = 4

    def __init__(
        self, *, fold: int | None = None, folds: int = 8, identifier: str = "number", horizon: int = 20
    ) -> None:
        if identifier not in ("number", "contents"):
            raise ValueError(f"Cooking: expected identifier = 'number' or 'contents', got {identifier!r}")
        if not 2 <= folds <= _KITCHENS or not (fold is None or 0 <= fold < folds):
            raise ValueError(
                f"Cooking: expected 2 <= folds <= {_KITCHENS} and fold = 0, ..., folds - 1, or None for the published "
                f"split; got fold = {fold} and folds = {folds}"
            )
        kitchens = torch.arange(_KITCHENS)
        shuffled = torch.randperm(_KITCHENS, generator=torch.Generator().manual_seed(0))
        chosen = kitchens == _PUBLISHED_TEST if fold is None else torch.isin(kitchens, shuffled[fold::folds])
        weights = INGREDIENTS ** torch.arange(len(DRAWERS))
        contents = kitchens.unsqueeze(1) // weights % INGREDIENTS
        told = {"number": kitchens.unsqueeze(1), "contents": contents}[identifier]
        self._contents, self._weights = Table(contents), Table(weights[: told.shape[1]])
        status = torch.full((SIZE, SIZE), STATUS.nothing)
        status[POT] = STATUS.bowl
        status[tuple(zip(*DRAWERS, strict=True))] = STATUS.drawer
        self._status, self._places = Table(status), Table(torch.arange(_PLACES))
        spec = Spec.discrete(
            "cooking-v1",
            obs_sizes=(SIZE, SIZE, len(STATUS), *self.state_sizes[2:], *[1 + INGREDIENTS] * 2),
            actions=len(ACTIONS),
            horizon=horizon,
            params={"problem": _KITCHENS} if identifier == "number" else dict.fromkeys(_NAMES, INGREDIENTS),
        )
        splits = {name: told[rows] for name, rows in (("train", ~chosen), ("test", chosen))}
        super().__init__(spec, action_names=ACTIONS, splits=splits, instruction_dim=2, end=END, step_reward=-0.1)

    def _number(self, params: Int[Tensor, "... M"]) -> Int[Tensor, "..."]:
        """Of the kitchen, whatever its identifier."""
        return (params * self._weights(params)).sum(-1)

    def advance(
        self, state: Int[Tensor, "... 6"], action: Int[Tensor, "..."], params: Int[Tensor, "... M"]
    ) -> Int[Tensor, "... 6"]:
        position, hand, pot = state[..., :2], state[..., 2], state[..., 3:]
        status = self._status(state)[position[..., 0], position[..., 1]]
        drawer = self._contents(state)[self._number(params), position[..., 1]]
        found = torch.where(status == STATUS.drawer, drawer, torch.where(status == STATUS.bowl, EMPTY, hand))
        dropped = action == DROP
        held = torch.where(action == PICK_UP, found, torch.where(dropped, EMPTY, hand))
        following = self._places(state) == (pot != EMPTY).sum(-1, keepdim=True)  # the next place, if there is one
        filled = following & (dropped & (status == STATUS.bowl)).unsqueeze(-1)
        pot = torch.where(filled, hand.unsqueeze(-1), pot)
        parts = [moved(position, action, SIZE), held.unsqueeze(-1), pot]
        rows = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*rows, -1) for part in parts], -1)

    def observe(self, state: Int[Tensor, "... 6"], params: Int[Tensor, "... M"]) -> Int[Tensor, "... 7"]:
        status = self._status(state)[state[..., 0], state[..., 1]].unsqueeze(-1)
        return torch.cat([state[..., :2], status, state[..., 2:]], -1)

    def recover(self, seen: Int[Tensor, "... 7"]) -> Int[Tensor, "... 6"]:
        return torch.cat([seen[..., :2], seen[..., 3:]], -1)

    def instructions(self, params: Int[Tensor, "B M"]) -> Int[Tensor, "B 9 2"]:
        asked = 1 + self._contents(params)[self._number(params)]
        pairs = asked.unsqueeze(2).expand(-1, -1, len(DRAWERS)), asked.unsqueeze(1).expand(-1, len(DRAWERS), -1)
        return torch.stack(pairs, -1).flatten(1, 2)

    def pay(
        self,
        stage: Int[Tensor, "..."],
        action: Int[Tensor, "..."],
        after: Int[Tensor, "... 6"],
        instruction: Int[Tensor, "... 2"],
        params: Int[Tensor, "... M"],
    ) -> Payment:
        first, second = (instruction - 1).unbind(-1)
        hand, pot = after[..., 2], after[..., 3:]
        begun, holding = stage >= 2, stage % 2 == 1
        held = hand == torch.where(begun, second, first)
        cooked = (pot[..., 0] == first) & (~begun | (pot[..., 1] == second))
        done = torch.where(holding, cooked, held)
        failed = ~done & torch.where(holding, ~held, action == PICK_UP)
        reward = torch.where(done, 0.25, torch.where(failed, self.step_reward - 0.25, self.step_reward))
        stage = (stage + done.long() - (failed & holding).long()).clamp_max(self.stages - 1)
        return Payment(stage, reward, done & begun & holding)

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """Means over the instructions: ``oracle`` knows the drawers, ``still`` does nothing."""
        still = torch.full_like(params[:, 0], self.step_reward * self.spec.horizon)
        return {"oracle": self.best_returns(params), "still": still}

    def picture(
        self, state: tuple[int, ...], instruction: tuple[int, ...], params: tuple[int, ...]
    ) -> tuple[np.ndarray, str]:
        """Drawers show what they hold, 1, ..., 4; ``o`` is the pot, ``@`` the agent."""
        cells = np.full((SIZE, SIZE), ".")
        cells[POT] = "o"
        number = self._number(torch.tensor(params))
        contents = self._contents(number)[number].tolist()
        for place, ingredient in zip(DRAWERS, contents, strict=True):
            cells[place] = str(1 + ingredient)
        cells[state[:2]] = "@"
        hand, *pot = ("-" if value == EMPTY else str(1 + value) for value in state[2:])
        words = f"cook {instruction[0]}, {instruction[1]}" if instruction[0] else "explore"
        return cells.T[::-1], f"{words}; hand {hand}, pot {' '.join(pot)}"
