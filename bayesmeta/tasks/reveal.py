"""One action tells the problem and one is paid: what coupled exploration costs, in the smallest world there is."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesmeta.rl.rules import Payment
from bayesmeta.tasks.world import World
from bayesmeta.types import Spec

TELLS = 0  # the action that tells the problem


class Reveal(World):
    """``reveal-v1``: as many problems as actions, episodes of one step.

    Action 0 tells the problem and the others tell nothing. With an instruction, of which there is one, the action whose
    number is the problem pays 1, the others 0, and any ends the episode. Observation: ``(told, instruction)``, where
    ``told`` is 1 + the problem after action 0 and 0 otherwise. All problems are in both splits.

    An agent that learns to explore from what the exploitation that follows is paid must find two actions at once. Its
    exploration is right after some ``A^2`` trials, up to logarithms, and that of one who learns the two apart after
    ``A`` (``benchmarks/coupled_exploration.py``); the example of Liu, Raghunathan, Liang and Finn, "Decoupling
    exploration and exploitation for meta-reinforcement learning without sacrifices", 2021. Raises ValueError for fewer
    than two actions.
    """

    start = (0,)

    def __init__(self, *, actions: int = 8) -> None:
        if actions < 2:
            raise ValueError(f"Reveal: expected actions >= 2, got {actions}")
        self.state_sizes = (1 + actions,)
        spec = Spec.discrete(
            "reveal-v1", obs_sizes=(1 + actions, 2), actions=actions, horizon=1, params={"problem": actions}
        )
        problems = torch.arange(actions).unsqueeze(1)
        names = tuple("tell" if a == TELLS else f"action {a}" for a in range(actions))
        super().__init__(spec, action_names=names, splits={"train": problems, "test": problems}, reward_tells=True)

    def advance(
        self, state: Int[Tensor, "... 1"], action: Int[Tensor, "..."], params: Int[Tensor, "... 1"]
    ) -> Int[Tensor, "... 1"]:
        return torch.where((action == TELLS).unsqueeze(-1), 1 + params, state)

    def observe(self, state: Int[Tensor, "... 1"], params: Int[Tensor, "... 1"]) -> Int[Tensor, "... 1"]:
        return state

    def recover(self, seen: Int[Tensor, "... 1"]) -> Int[Tensor, "... 1"]:
        return seen

    def instructions(self, params: Int[Tensor, "B 1"]) -> Int[Tensor, "B 1 1"]:
        return torch.ones_like(params).unsqueeze(1)

    def pay(
        self,
        stage: Int[Tensor, "..."],
        action: Int[Tensor, "..."],
        after: Int[Tensor, "... 1"],
        instruction: Int[Tensor, "... 1"],
        params: Int[Tensor, "... 1"],
    ) -> Payment:
        right = action == params[..., 0]
        return Payment(stage, right.float(), torch.ones_like(right))

    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """``oracle`` knows the problem; ``walking`` does not and takes any action, one as good as another."""
        best = self.best_returns(params)
        return {"oracle": best, "walking": best / self.spec.actions}

    def picture(
        self, state: tuple[int, ...], instruction: tuple[int, ...], params: tuple[int, ...]
    ) -> tuple[np.ndarray, str]:
        """A cell for each action, with ``*`` at the one that is paid and ``?`` at the one that tells."""
        cells = np.full((1, self.spec.actions), ".")
        cells[0, TELLS] = "?"
        cells[0, params[0]] = "*"
        told = f"told {state[0] - 1}" if state[0] else "told nothing"
        return cells, f"{'act' if instruction[0] else 'explore'}; {told}"
