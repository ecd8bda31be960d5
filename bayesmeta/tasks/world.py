"""What the families of finite deterministic worlds share: problems, environment, exact posterior, references."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.rl.finite import plan
from bayesmeta.rl.rules import Payment
from bayesmeta.tasks.checks import checked_params
from bayesmeta.tasks.world_env import WorldEnv
from bayesmeta.types import Context, Spec


class World(ABC):
    """A family whose task is one of finitely many problems of a world of integers; ``bayesmeta.rl.rules.Rules``.

    A family states the rules: ``start``, ``state_sizes``, :meth:`advance`, :meth:`observe`, :meth:`recover`,
    :meth:`instructions`, :meth:`pay`, :meth:`picture`. ``splits`` are the identifiers ``[P, M]`` of train and test.
    ``reward_tells`` says that a reward says something of the problem that the next observation does not; rewards must
    then depend on the action and the problem alone.

    ``exact`` is the posterior over the identifiers of the train split (:meth:`posterior_over`).
    """

    start: tuple[int, ...]
    state_sizes: tuple[int, ...]
    stages: int = 1

    def __init__(
        self,
        spec: Spec,
        *,
        action_names: tuple[str, ...],
        splits: Mapping[str, Int[Tensor, "_ M"]],
        instruction_dim: int = 1,
        end: int | None = None,
        step_reward: float = 0.0,
        reward_tells: bool = False,
    ) -> None:
        self.spec, self.action_names = spec, action_names
        self.instruction_dim, self.end, self.step_reward = instruction_dim, end, step_reward
        self._reward_tells = reward_tells
        self._splits = {**splits, "all": torch.cat([*splits.values()]).unique(dim=0)}
        self.exact = self.posterior_over("train")

    @abstractmethod
    def advance(
        self, state: Int[Tensor, "... s"], action: Int[Tensor, "..."], params: Int[Tensor, "... M"]
    ) -> Int[Tensor, "... s"]:
        """The state after an action."""

    @abstractmethod
    def observe(self, state: Int[Tensor, "... s"], params: Int[Tensor, "... M"]) -> Int[Tensor, "... o"]:
        """What is seen of a state, without the instruction."""

    @abstractmethod
    def recover(self, seen: Int[Tensor, "... o"]) -> Int[Tensor, "... s"]:
        """The state that was seen."""

    @abstractmethod
    def instructions(self, params: Int[Tensor, "B M"]) -> Int[Tensor, "B G I"]:
        """The instructions of each problem, equally likely; one likelier than others stands there repeatedly."""

    @abstractmethod
    def pay(
        self,
        stage: Int[Tensor, "..."],
        action: Int[Tensor, "..."],
        after: Int[Tensor, "... s"],
        instruction: Int[Tensor, "... I"],
        params: Int[Tensor, "... M"],
    ) -> Payment:
        """What the action that led to ``after`` is worth under an instruction, but for the price of ending early."""

    @abstractmethod
    def reference_returns(self, params: Float[Tensor, "B M"]) -> dict[str, Float[Tensor, "B"]]:
        """Mean returns of an episode over the instructions, by name: ``oracle`` knows the problem."""

    @abstractmethod
    def picture(
        self, state: tuple[int, ...], instruction: tuple[int, ...], params: tuple[int, ...]
    ) -> tuple[np.ndarray, str]:
        """A table ``[rows, columns]`` of characters that shows one world, the hidden too, and a line in words."""

    def identifiers(self, split: str) -> Float[Tensor, "P M"]:
        """All problems of a split, or of both (``all``). Raises ValueError for another split, ``ood`` too."""
        if split not in self._splits:
            raise ValueError(
                f"{self.spec.name}: expected a split of train, test; got {split!r}; every problem is in one of them"
            )
        return self._splits[split].float()

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Problems of a split, uniformly and with replacement. Raises ValueError as :meth:`identifiers` does."""
        pool = self.identifiers(split)
        index = torch.randint(len(pool), (n,), generator=generator, device=generator.device)
        return pool.to(index.device)[index]

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> WorldEnv:
        """The problems as one vector environment. Raises ValueError unless ``params`` are identifiers ``[B, M]``."""
        return WorldEnv(self, self._checked(params), device)

    def consistent(
        self,
        params: Int[Tensor, "... M"],
        obs: Int[Tensor, "... S"],
        action: Int[Tensor, "..."],
        reward: Float[Tensor, "..."],
        next_obs: Int[Tensor, "... S"],
    ) -> Bool[Tensor, "..."]:
        """Whether a transition can happen if ``params`` are the problem.

        What the instruction tells by itself, having been drawn for the problem, is not counted: it is given, as the
        state is.
        """
        shown = obs.shape[-1] - self.instruction_dim
        after = self.advance(self.recover(obs[..., :shown]), action, params)
        fits = (self.observe(after, params) == next_obs[..., :shown]).all(-1)
        if not self._reward_tells:
            return fits
        instruction = obs[..., shown:]
        asked = (instruction > 0).all(-1)
        due = self.pay(torch.zeros_like(action), action, after, instruction, params).reward
        return fits & (~asked | ((due - reward).abs() < 1e-6))

    def posterior_over(self, split: str) -> FiniteFilter:
        """The exact posterior over the identifiers of a split, ``all`` too: uniform over those that fit the data.

        Data are ``Transitions.context(next_obs=True)``. A belief's ``log_weights [B, P]`` are in the order of
        :meth:`identifiers`, so that its entropy in nats is ``torch.special.entr(log_weights.exp()).sum(-1)``.
        """
        points, spec = self.identifiers(split), self.spec
        uniform = torch.zeros(len(points))
        return FiniteFilter(points, uniform, self._log_likelihood, x_dim=spec.x_dim, y_dim=spec.y_dim)

    def best_returns(self, params: Float[Tensor, "B M"], forbidden: tuple[int, ...] = ()) -> Float[Tensor, "B"]:
        """The best return for one who knows the problem and does without the ``forbidden`` actions, by planning."""
        problems, row = self._checked(params).cpu().long().unique(dim=0, return_inverse=True)
        values = [self._best(part, forbidden) for part in problems.split(_AT_ONCE)]
        return torch.cat(values)[row].float().to(params.device)

    def _best(self, problems: Int[Tensor, "B M"], forbidden: tuple[int, ...]) -> Tensor:
        choices = self.instructions(problems)
        count = choices.shape[1]
        best = plan(self, problems.repeat_interleave(count, 0), choices.flatten(0, 1), forbidden=forbidden)
        return best.start_values.unflatten(0, (len(problems), count)).mean(1)

    def _log_likelihood(self, z: Float[Tensor, "*S B D"], data: Context) -> Float[Tensor, "*S B"]:
        width, actions = self.spec.obs_dim, self.spec.actions
        obs, code = data.x.long().split([width, actions], -1)
        next_obs = data.y[..., 1:].long()
        top = obs.new_tensor(self.spec.obs_sizes)
        if not bool(((obs >= 0) & (obs < top) & (next_obs >= 0) & (next_obs < top)).all()):
            raise ValueError(f"{self.spec.name}: expected observations of integers below {self.spec.obs_sizes}")
        fits = self.consistent(z.long().unsqueeze(-2), obs, code.argmax(-1), data.y[..., 0], next_obs)
        return torch.zeros_like(fits, dtype=data.y.dtype).masked_fill(~fits & data.mask, -torch.inf).sum(-1)

    def _checked(self, params: Float[Tensor, "..."]) -> Float[Tensor, "B M"]:
        params, sizes = checked_params(params, self.spec), self.spec.param_sizes
        if not bool(((params == params.floor()) & (params >= 0) & (params < params.new_tensor(sizes))).all()):
            raise ValueError(
                f"{self.spec.name}: expected integer params below {sizes} for {self.spec.param_names}, got "
                f"{params[:4].tolist()}; pass what sample() or identifiers() returns"
            )
        return params


_AT_ONCE = 64  # problems planned for together
