"""Replay for many tasks: one packed float32 table that grows with the data."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bayesmeta.types import Transitions


@dataclass
class TaskReplay:
    """Transitions of ``tasks`` tasks, each with its own length, sampled uniformly with replacement.

    Rows are packed ``[tasks, capacity, S + A + 2 + S + 1]`` and the capacity grows by half when it is full, so memory
    is what the data need. ``recent [tasks, 1 + K]`` marks each task's latest visit, PEARL's recency buffer, of which
    contexts are sampled, without a second copy of the data: the row where the visit starts and the row where each of
    its ``episodes [tasks]`` ends, the last one repeated.
    """

    tasks: int
    obs_dim: int
    action_dim: int
    device: torch.device | str = "cpu"
    rows: Tensor = field(init=False)
    size: Tensor = field(init=False)
    recent: Tensor = field(init=False)
    episodes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        width = 2 * self.obs_dim + self.action_dim + 3
        self.rows = torch.zeros(self.tasks, 0, width, device=self.device)
        self.size = torch.zeros(self.tasks, dtype=torch.long, device=self.device)
        self.recent = torch.zeros(self.tasks, 2, dtype=torch.long, device=self.device)
        self.episodes = torch.zeros(self.tasks, dtype=torch.long, device=self.device)

    def add(self, tasks: Int[Tensor, "B"], data: Transitions, *, context: bool = True) -> None:
        """Append the real steps of one episode of distinct ``tasks``.

        With ``context`` they extend the recent visit (call :meth:`begin_visit` first); without it they are for the
        learner only and must come last in a visit.
        """
        count = data.mask.sum(1)
        self._grow(int((self.size[tasks] + count).max()))
        position = self.size[tasks].unsqueeze(1) + data.mask.cumsum(1) - 1
        scalars = torch.stack([data.reward, data.training_reward], -1)
        packed = torch.cat([data.obs, data.action, scalars, data.next_obs, data.terminated[..., None].float()], -1)
        where = (tasks.unsqueeze(1) * self.rows.shape[1] + position)[data.mask]
        self.rows.view(-1, self.rows.shape[-1]).index_copy_(0, where, packed[data.mask].to(self.rows.dtype))
        self.size[tasks] += count
        if context:
            self.episodes[tasks] += 1
            self._remember(tasks)

    def begin_visit(self, tasks: Int[Tensor, "B"]) -> None:
        """Empty the recent visit of ``tasks``: only what is added from now on is context."""
        self.recent[tasks] = self.size[tasks].unsqueeze(-1)
        self.episodes[tasks] = 0

    def sample(self, tasks: Int[Tensor, "B"], count: int, generator: torch.Generator) -> Transitions:
        """``count`` rows of each task from all its data. Raises ValueError if a task has none."""
        return self._draw(tasks, torch.zeros_like(tasks), self.size[tasks], count, generator)

    def sample_recent(self, tasks: Int[Tensor, "B"], count: int, generator: torch.Generator) -> Transitions:
        """``count`` rows of each task from its latest visit. Raises ValueError if that is empty."""
        return self._draw(tasks, self.recent[tasks, 0], self.recent[tasks, -1], count, generator)

    def sample_history(self, tasks: Int[Tensor, "B"], count: int, generator: torch.Generator) -> Transitions:
        """The latest visit of each task up to the end of a random episode: at most ``count`` distinct rows of it.

        These are the data that beliefs are made of at meta-test. Tasks with fewer rows are masked. Raises ValueError
        if a visit is empty.
        """
        start, stop = self.recent[tasks, :1], self.recent[tasks, -1]
        self._lengths(tasks, start.squeeze(1), stop)
        u = torch.rand(len(tasks), generator=generator, device=self.device)
        ends = 1 + (u * self.episodes[tasks]).long()
        length = self.recent[tasks].gather(1, ends.unsqueeze(1)) - start
        keys = torch.rand(len(tasks), int(length.max()), generator=generator, device=self.device)
        keys[torch.arange(keys.shape[1], device=self.device) >= length] = torch.inf
        keys, index = keys.topk(min(count, keys.shape[1]), largest=False)
        mask = keys.isfinite()
        return self._gather(tasks, (start + index).where(mask, start), mask)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.rows.numel() * self.rows.element_size()

    def _draw(self, tasks: Tensor, start: Tensor, stop: Tensor, count: int, generator: torch.Generator) -> Transitions:
        length = self._lengths(tasks, start, stop)
        u = torch.rand(len(tasks), count, generator=generator, device=self.device)
        index = start.unsqueeze(1) + (u * length).long().clamp_max(length - 1)
        return self._gather(tasks, index, torch.ones_like(index, dtype=torch.bool))

    def _lengths(self, tasks: Tensor, start: Tensor, stop: Tensor) -> Int[Tensor, "B 1"]:
        length = (stop - start).unsqueeze(1)
        if not bool((length > 0).all()):
            empty = tasks[length.squeeze(1) <= 0].tolist()
            raise ValueError(f"TaskReplay: no data for tasks {empty}; collect for every task before sampling it")
        return length

    def _gather(self, tasks: Tensor, index: Int[Tensor, "B count"], mask: Tensor) -> Transitions:
        count = index.shape[1]
        flat = (tasks.unsqueeze(1) * self.rows.shape[1] + index).flatten()
        rows = self.rows.view(-1, self.rows.shape[-1]).index_select(0, flat).view(len(tasks), count, -1)
        s, a = self.obs_dim, self.action_dim
        done = rows[..., -1] > 0.5
        return Transitions(
            obs=rows[..., :s],
            action=rows[..., s : s + a],
            reward=rows[..., s + a],
            training_reward=rows[..., s + a + 1],
            next_obs=rows[..., s + a + 2 : -1],
            terminated=done,
            boundary=done,
            mask=mask,
        )

    def _remember(self, tasks: Tensor) -> None:
        """The rows of ``tasks`` end here: so does the latest episode of their visits."""
        missing = int(self.episodes.max()) + 1 - self.recent.shape[1]
        if missing > 0:
            self.recent = torch.cat([self.recent, self.recent[:, -1:].expand(-1, missing)], 1)
        column = torch.arange(self.recent.shape[1], device=self.device)
        later = column >= self.episodes[tasks].unsqueeze(1)
        self.recent[tasks] = torch.where(later, self.size[tasks].unsqueeze(1), self.recent[tasks])

    def _grow(self, needed: int) -> None:
        capacity = self.rows.shape[1]
        if needed > capacity:
            larger = self.rows.new_zeros(self.tasks, max(needed, math.ceil(1.5 * capacity)), self.rows.shape[-1])
            larger[:, :capacity] = self.rows
            self.rows = larger

    def state_dict(self) -> dict[str, Any]:
        longest = int(self.size.max())
        marks = {key: getattr(self, key).clone() for key in ("size", "recent", "episodes")}
        return {"rows": self.rows[:, :longest].clone(), **marks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key in ("rows", "size", "recent", "episodes"):
            setattr(self, key, state[key].to(self.device, copy=True))
