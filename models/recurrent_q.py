"""Action values of a policy that remembers: a recurrent dueling network conditioned on a task latent."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions import OneHotCategorical
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.models.embeddings import ObservationEmbedding
from bayesmeta.types import Spec

Memory = tuple[Tensor, Tensor]


class RecurrentQ(nn.Module):
    """``Q(a | observations so far, z)``: embedding, recurrence over the episode, a dueling head that reads ``z``.

    The advantages of a state have mean 0 over its actions (Wang et al. 2016, equation 9). With ``latent_dim = 0`` it
    reads no latent. ``previous`` gives the recurrence the action before each observation.

    Sizes are those of the authors' code of DREAM, which averages the advantages over batch and time too.
    """

    def __init__(
        self, spec: Spec, latent_dim: int = 0, *, previous: bool = False, memory: int = 64, hidden: int = 256
    ) -> None:
        super().__init__()
        if not spec.actions:
            raise ValueError(f"RecurrentQ: expected a family with discrete actions, got {spec.name!r}")
        self.latent_dim, self.memory = latent_dim, memory
        self.obs = ObservationEmbedding(spec)
        self.previous = nn.Linear(spec.actions, 16, bias=False) if previous else None
        self.merge = nn.Sequential(nn.ReLU(), nn.Linear(64 + 16 * previous, memory))
        self.recurrence = nn.LSTM(memory, memory, batch_first=True)
        if latent_dim:
            self.share = nn.Linear(latent_dim, hidden, bias=False)  # of z, once for all steps of an episode
            self.first, self.second = nn.Linear(memory, hidden), nn.Linear(hidden, 64)
        self.values = nn.Linear(64 if latent_dim else memory, 1 + spec.actions)

    def forward(
        self,
        obs: Float[Tensor, "B T S"],
        previous: Float[Tensor, "B T A"],
        z: Float[Tensor, "B Z"] | None = None,
        wanted: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T A"]:
        """The values at every step of whole episodes, or 0 at those that are not ``wanted``.

        ``previous`` is 0 in all components at their start.
        """
        remembered = self.recurrence(self._inputs(obs, previous))[0]
        task, step = torch.ones_like(obs[..., 0]).nonzero().T if wanted is None else wanted.nonzero().T
        values = self._values(remembered[task, step], z, task)
        return values.new_zeros(*obs.shape[:2], values.shape[-1]).index_put((task, step), values)

    def begin(self, batch: int) -> Memory:
        """What is remembered at the start of an episode."""
        empty = self.values.weight.new_zeros(1, batch, self.memory)
        return empty, empty

    def step(
        self, obs: Float[Tensor, "B S"], previous: Float[Tensor, "B A"], z: Float[Tensor, "B Z"] | None, memory: Memory
    ) -> tuple[Float[Tensor, "B A"], Memory]:
        """The values after one more observation, and what is remembered of it."""
        out, memory = self.recurrence(self._inputs(obs, previous).unsqueeze(1), memory)
        return self._values(out.squeeze(1), z, torch.arange(len(obs), device=obs.device)), memory

    def _inputs(self, obs: Tensor, previous: Tensor) -> Tensor:
        parts = [self.obs(obs)] if self.previous is None else [self.obs(obs), self.previous(previous)]
        return self.merge(torch.cat(parts, -1))

    def _values(self, remembered: Float[Tensor, "R H"], z: Tensor | None, task: Int[Tensor, "R"]) -> Tensor:
        """The values of rows of which each belongs to a task."""
        if self.latent_dim:
            assert z is not None
            remembered = self.second((self.first(remembered) + self.share(z)[task]).relu())
        value, advantage = self.values(remembered).split([1, self.values.out_features - 1], -1)
        return value + advantage - advantage.mean(-1, keepdim=True)


@dataclass(frozen=True)
class EpsilonGreedy:
    """The recurrent policy that takes the best action of ``q``, or with probability ``epsilon`` in [0, 1] any."""

    q: RecurrentQ
    epsilon: float = 0.0

    def begin(self, batch: int) -> Any:
        return self.q.begin(batch)

    def act(
        self, obs: Float[Tensor, "B S"], previous: Float[Tensor, "B A"], z: Float[Tensor, "B Z"], memory: Any
    ) -> tuple[Distribution, Any]:
        q, memory = self.q.step(obs, previous, z, memory)
        best = nn.functional.one_hot(q.argmax(-1), q.shape[-1])
        probs = (1.0 - self.epsilon) * best + self.epsilon / q.shape[-1]
        return OneHotCategorical(probs, validate_args=False), memory
