"""Replay of whole trials: how a task was explored, and one episode of what was done with it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.types import Spec, Transitions, map_tensors


@dataclass(frozen=True)
class Trials:
    """Trials of ``B`` tasks ``params [B, M]``: the episode of exploration and one of execution, from their starts."""

    params: Float[Tensor, "B M"]
    explore: Transitions
    execute: Transitions

    def split(self, count: int) -> Iterator["Trials"]:
        """Batches of ``count`` trials, each padded to the longest episode in it."""
        for first in range(0, len(self.params), count):
            rows = slice(first, first + count)
            yield Trials(self.params[rows], _trimmed(self.explore, rows), _trimmed(self.execute, rows))


_FIELDS = ("obs", "action", "reward", "training_reward", "next_obs", "terminated", "boundary", "mask")


@dataclass
class TrialReplay:
    """The latest ``capacity`` trials of a family, sampled uniformly with replacement."""

    spec: Spec
    capacity: int
    device: torch.device | str = "cpu"
    size: int = field(init=False, default=0)
    added: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shape = (self.capacity, self.spec.horizon)
        widths = {"obs": self.spec.obs_dim, "next_obs": self.spec.obs_dim, "action": self.spec.action_dim}
        flags = ("terminated", "boundary", "mask")

        def empty(name: str) -> Tensor:
            dtype = torch.bool if name in flags else torch.float32
            return torch.zeros(*shape, *(w for n, w in widths.items() if n == name), dtype=dtype, device=self.device)

        self._params = torch.zeros(self.capacity, self.spec.param_dim, device=self.device)
        self._explore = Transitions(*(empty(name) for name in _FIELDS))
        self._execute = Transitions(*(empty(name) for name in _FIELDS))

    def add(self, trials: Trials) -> None:
        """File trials, over the oldest ones if it is full."""
        rows = (self.added + torch.arange(len(trials.params), device=self.device)) % self.capacity
        self._params[rows] = trials.params
        for kept, new in ((self._explore, trials.explore), (self._execute, trials.execute)):
            length = new.mask.shape[1]
            for name in _FIELDS:
                table = getattr(kept, name)
                table[rows, :length] = getattr(new, name)
                table[rows, length:] = 0
        self.added += len(rows)
        self.size = min(self.capacity, self.added)

    def sample(self, count: int, generator: torch.Generator) -> Trials:
        """``count`` trials, padded to the longest episode among them. Raises ValueError while there are none."""
        if not self.size:
            raise ValueError("TrialReplay.sample: expected trials to have been added, there are none")
        rows = torch.randint(self.size, (count,), generator=generator, device=self.device)
        return Trials(self._params[rows], _trimmed(self._explore, rows), _trimmed(self._execute, rows))

    def state_dict(self) -> dict[str, Any]:
        """The trials it holds."""
        kept = {"params": self._params[: self.size].clone(), "added": self.added}
        for part, table in (("explore", self._explore), ("execute", self._execute)):
            kept[part] = {name: getattr(table, name)[: self.size].clone() for name in _FIELDS}
        return kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.added, self.size = int(state["added"]), len(state["params"])
        self._params[: self.size] = state["params"].to(self.device)
        for part, table in (("explore", self._explore), ("execute", self._execute)):
            for name in _FIELDS:
                getattr(table, name)[: self.size] = state[part][name].to(self.device)


def _trimmed(table: Transitions, rows: Tensor | slice) -> Transitions:
    longest = max(1, int(table.mask[rows].sum(1).max()))
    return map_tensors(table, lambda value: value[rows, :longest])
