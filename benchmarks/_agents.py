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
    """The updates of an agent one by one, each as in training: its own draw, then ``update``."""

    algorithm: Any

    def sample(self) -> tuple[Transitions, Context]:
        """What the next update learns from."""
        return self.algorithm.draw()

    def __call__(self) -> None:
        self.algorithm.update(*self.sample())
