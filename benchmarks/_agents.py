"""Agents as the project's configurations make them, with data to learn from."""

from dataclasses import dataclass
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from bayesmeta.runs import build
from bayesmeta.types import Context, Transitions


def configured(*overrides: str) -> dict[str, Any]:
    """The configuration that ``bayesmeta train`` would compose from these overrides."""
    with initialize_config_module("bayesmeta.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=True)  # type: ignore[return-value]


def agent(*overrides: str) -> Any:
    """The algorithm of a configuration, ready to update: set up, and its first data collected."""
    torch.manual_seed(0)
    algorithm, family = build(configured(*overrides, "algorithm.updates=1"))
    algorithm.setup(family, seed=0)
    algorithm.step()
    return algorithm


@dataclass
class Updates:
    """The updates of an agent one by one, each as in training: tasks drawn, rows and context sampled, then ``update``.

    Context sizes run through those of training in a fixed order, so that every round of a benchmark has the same.
    """

    algorithm: Any

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        largest = self.algorithm.context_batch
        sizes = range(1, largest + 1) if self.algorithm.contexts == "history" else range(largest, largest + 1)
        self._sizes = list(sizes)[:: max(1, len(sizes) // 8)]
        self._made = 0

    def sample(self) -> tuple[Transitions, Context]:
        """What the next update learns from."""
        agent, generator = self.algorithm, self._generator
        tasks = torch.randperm(agent.train_tasks, generator=generator)[: agent.meta_batch]
        size = self._sizes[self._made % len(self._sizes)]
        self._made += 1
        context = agent.replay.sample_recent(tasks, size, generator).context(next_obs=agent.spec.dynamics_vary)
        return agent.replay.sample(tasks, agent.rl_batch, generator), context

    def __call__(self) -> None:
        self.algorithm.update(*self.sample())
