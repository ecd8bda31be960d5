"""Action values of a policy whose memory is its latent: a dueling network on the observation and a code."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from pyro.distributions import OneHotCategorical
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.models.embeddings import ObservationEmbedding
from bayesmeta.types import Spec


class CodeQ(nn.Module):
    """``Q(a | s, z)`` with a code ``z`` of all that was seen before: embedding, one hidden layer, a dueling head.

    The advantages of a state have mean 0 over its actions (Wang et al. 2016, equation 9).
    """

    def __init__(self, spec: Spec, latent_dim: int, *, hidden: int = 256) -> None:
        super().__init__()
        if not spec.actions:
            raise ValueError(f"CodeQ: expected a family with discrete actions, got {spec.name!r}")
        self.obs = ObservationEmbedding(spec)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64 + latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, 64))
        self.values = nn.Linear(64, 1 + spec.actions)

    def forward(self, obs: Float[Tensor, "*b S"], z: Float[Tensor, "*b Z"]) -> Float[Tensor, "*b A"]:
        found = self.values(self.head(torch.cat([self.obs(obs), z], -1)))
        value, advantage = found.split([1, found.shape[-1] - 1], -1)
        return value + advantage - advantage.mean(-1, keepdim=True)


@dataclass(frozen=True)
class CodePolicy:
    """The best action of ``q`` for an observation and a code, or with probability ``epsilon`` in [0, 1] any."""

    q: CodeQ
    epsilon: float = 0.0

    def __call__(self, obs: Float[Tensor, "B S"], z: Float[Tensor, "B Z"]) -> Distribution:
        q = self.q(obs, z)
        best = nn.functional.one_hot(q.argmax(-1), q.shape[-1])
        return OneHotCategorical((1.0 - self.epsilon) * best + self.epsilon / q.shape[-1], validate_args=False)
