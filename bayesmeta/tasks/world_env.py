"""Finite deterministic worlds as one vector environment, with episodes of exploration that pay nothing."""

from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesmeta.rl.rules import Rules
from bayesmeta.tasks.base import TaskVectorEnv

# Added to the seed of the instructions: problems drawn with the same seed must not decide what is asked for in them.
_INSTRUCTIONS = 0x1457


class WorldEnv(TaskVectorEnv):
    """``B`` worlds, one problem each.

    Observations are float32 and hold integers: what is seen of the state, then the instruction, 0 in an episode of
    exploration. Actions are one-hot codes ``[B, A]`` (any numbers, of which the largest counts) or integers ``[B]``.

    ``reset(options={"explore": True})`` begins an episode of exploration: no instruction, no reward, and nothing but
    the action that ends the episode, or the horizon, ends it. In the published code an instruction that is not shown
    ends it too, where it happens to be carried out; that tells what it was, and is not copied.

    Any other episode has an instruction, drawn anew from those of the row's problem, or given:
    ``options={"instruction": [B, I]}``. Its draws have a generator of their own, which ``seed`` restarts and which
    exploration does not advance.

    The last step of an episode that only time ends is truncated and not terminated, unlike in the published code.
    """

    def __init__(self, rules: Rules, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> None:
        spec = rules.spec
        super().__init__(len(params), spec.obs_dim, spec.actions, spec.horizon, device)
        top = np.array(spec.obs_sizes, np.float32) - 1.0
        self.single_observation_space = gymnasium.spaces.Box(np.zeros_like(top), top, dtype=np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(spec.actions)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self.rules = rules
        self.params = params.to(self.device).long()
        self._choices = rules.instructions(self.params)
        self._start = torch.tensor(rules.start, device=self.device).expand(self.num_envs, -1)
        self._generator = torch.Generator().manual_seed(_INSTRUCTIONS)
        self._t = -1  # not reset yet

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float[Tensor, "B S"], dict[str, Any]]:
        """All rows at their start. Raises ValueError for options other than those above."""
        if seed is not None:
            self._generator.manual_seed(_INSTRUCTIONS + seed)
        options = dict(options or {})
        self._explore, given = bool(options.pop("explore", False)), options.pop("instruction", None)
        if options or (self._explore and given is not None):
            raise ValueError(
                f"{self.rules.spec.name}: expected the options `explore` or `instruction`, one of them, got "
                f"{sorted(options) or ['explore', 'instruction']}"
            )
        self.instruction = self._drawn() if given is None else self._given(given)
        self.state, self._stage = self._start, self.params.new_zeros(self.num_envs)
        self._alive = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._t = 0
        self._obs = self._observed()
        return self._obs, {}

    def step(
        self, action: Any
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B"], Bool[Tensor, "B"], Bool[Tensor, "B"], dict[str, Any]]:
        """One step of every row. A row whose episode is over keeps its observation and is paid nothing."""
        action = self.checked_action(action)
        self._begun()
        if self._t == self.horizon:
            return self._obs, torch.zeros_like(self._obs[:, 0]), ~self._alive, self._alive, {}
        self._t += 1
        rules, alive = self.rules, self._alive
        after = rules.advance(self.state, action, self.params)
        ends = action == (-1 if rules.end is None else rules.end)
        if self._explore:
            reward, over = torch.zeros_like(self._obs[:, 0]), ends
        else:
            self._stage, reward, over = rules.pay(self._stage, action, after, self.instruction, self.params)
            reward = (reward + ends * (rules.step_reward * (self.horizon - self._t))) * alive
            over = over | ends
        self.state = torch.where(alive.unsqueeze(1), after, self.state)
        self._alive = alive & ~over
        self._obs = self._observed()
        late = self._alive if self._t == self.horizon else torch.zeros_like(alive)
        return self._obs, reward, ~self._alive, late, {}

    def checked_action(self, action: Any) -> Int[Tensor, "B"]:
        """The numbers of the actions. Raises ValueError for another shape, and for what is no action."""
        action = torch.as_tensor(action, device=self.device)
        rows, count = self.num_envs, self.rules.spec.actions
        if action.shape == (rows, count):
            if action.is_floating_point() and not bool(action.sum().isfinite()):
                raise ValueError(f"{self.rules.spec.name}: expected finite actions, got {_worst(action)}")
            return action.argmax(1)
        if action.shape != (rows,):
            raise ValueError(
                f"{self.rules.spec.name}: expected actions {(rows, count)}, got {tuple(action.shape)}; give every task "
                f"the one-hot code of an action, or the numbers of all of them, {(rows,)}, finished ones too"
            )
        if action.is_floating_point() or not bool(((action >= 0) & (action < count)).all()):
            raise ValueError(
                f"{self.rules.spec.name}: expected integers 0, ..., {count - 1} as actions, got {action.tolist()[:8]} "
                f"({action.dtype})"
            )
        return action.long()

    def picture(self, row: int) -> tuple[np.ndarray, str]:
        """One row as a table of characters and a line in words, for people: it shows the problem too."""
        self._begun()
        columns = (self.state, self.instruction, self.params)
        cells, words = self.rules.picture(*(tuple(column[row].tolist()) for column in columns))
        return cells, f"{words}; step {self._t} of {self.horizon}"

    def _begun(self) -> None:
        if self._t < 0:
            raise RuntimeError(f"{self.rules.spec.name}: expected an episode to have started; call reset() first")

    def _observed(self) -> Float[Tensor, "B S"]:
        return torch.cat([self.rules.observe(self.state, self.params), self.instruction], 1).float()

    def _drawn(self) -> Int[Tensor, "B I"]:
        """None while exploring, else one of each problem's instructions."""
        if self._explore:
            return torch.zeros_like(self._choices[:, 0])
        index = torch.randint(self._choices.shape[1], (self.num_envs,), generator=self._generator)
        return self._choices[torch.arange(self.num_envs, device=self.device), index.to(self.device)]

    def _given(self, instruction: Any) -> Int[Tensor, "B I"]:
        given = torch.as_tensor(instruction, device=self.device)
        expected, sizes = self._choices[:, 0], self.rules.spec.obs_sizes[-self.rules.instruction_dim :]
        if given.shape == expected.shape and not given.is_floating_point():
            given = given.long()
            if bool(((given >= 1) & (given < given.new_tensor(sizes))).all()):
                return given
        raise ValueError(
            f"{self.rules.spec.name}: expected an instruction of integers {tuple(expected.shape)}, component by "
            f"component from 1 to {[size - 1 for size in sizes]}, got {tuple(given.shape)} ({given.dtype}): "
            f"{given.tolist()[:4]}"
        )


def _worst(action: Tensor) -> str:
    row = int((~action.isfinite()).any(1).nonzero()[0])
    return f"{action[row].tolist()} in row {row}"
