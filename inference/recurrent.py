"""Beliefs that a recurrent network keeps: what it remembers of the data, as it is or read as a Gaussian."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.beliefs import Point
from bayesmeta.inference.evidence import checked
from bayesmeta.models.embeddings import TransitionEmbedding
from bayesmeta.types import Context, Spec


@dataclass(frozen=True)
class Remembered:
    """``memory [B, H]`` of the data, and the Gaussian ``mean, scale [B, D]`` that the network reads in it."""

    memory: Float[Tensor, "B H"]
    mean: Float[Tensor, "B D"]
    scale: Float[Tensor, "B D"]

    @property
    def posterior(self) -> Distribution:
        return dist.Normal(self.mean, self.scale, validate_args=False).to_event(1)


class RecurrentGaussian(nn.Module):
    """``q(z | tau_{:t}) = N(mean(h_t), diag scale(h_t)^2)``, ``h_t = GRU(h_{t-1}, transition t)``, ``h_0 = 0``.

    Defined after every transition and before the first: the belief without data is learned, not N(0, I). ``least`` and
    ``most`` bound the standard deviation; the same number twice fixes it (as published for DREAM's decoder). It reads
    transitions in their order, so it is not invariant to it. ``reward`` says whether it reads rewards.
    """

    def __init__(
        self,
        spec: Spec,
        latent_dim: int,
        *,
        memory: int = 128,
        least: float = 0.05,
        most: float = 2.0,
        reward: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < least <= most:
            raise ValueError(f"RecurrentGaussian: expected 0 < least <= most, got {least} and {most}")
        self.least, self.most = least, most
        self.memory = TransitionMemory(spec, memory, reward=reward)
        self.read = nn.Sequential(nn.Linear(memory, memory), nn.SiLU(), nn.Linear(memory, 2 * latent_dim))

    def init(self, batch: int) -> Remembered:
        return self._belief(self.memory.empty(batch))

    def update(self, belief: Remembered, data: Context) -> Remembered:
        """The belief after also seeing ``data``, in time order. Raises ValueError on data of a wrong shape."""
        return self._belief(self.memory.after(belief.memory, data))

    def scan(self, belief: Remembered, data: Context) -> Remembered:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        return self._belief(_prefixes(*self.memory.states(belief.memory, data)))

    def prefixes(self, belief: Remembered, data: Context) -> tuple[Distribution, Int[Tensor, "P"], Int[Tensor, "P"]]:
        """The beliefs before any and after each real row, task by task; of which task, and after how many real rows.

        What :meth:`scan` says, once for every prefix that differs: nothing is computed for padding.
        """
        states, count = self.memory.states(belief.memory, data)
        reached = torch.arange(states.shape[1], device=states.device) <= count[:, -1:]
        task, number = reached.nonzero().T
        return self._belief(states[task, number]).posterior, task, number

    def _belief(self, memory: Float[Tensor, "B H"]) -> Remembered:
        mean, raw = self.read(memory).chunk(2, -1)
        low, high = (torch.log(mean.new_tensor(bound)) for bound in (self.least, self.most))
        return Remembered(memory, mean, (low + (high - low) * torch.sigmoid(raw)).exp())


class RecurrentCode(nn.Module):
    """A belief that is no more than what a recurrent network remembers of a trial (Duan et al. 2016, RL^2).

    The latent is the memory itself, a point; it is 0 without data.
    """

    def __init__(self, spec: Spec, *, memory: int = 64, reward: bool = True) -> None:
        super().__init__()
        self.memory = TransitionMemory(spec, memory, reward=reward)

    def init(self, batch: int) -> Point:
        return Point(self.memory.empty(batch))

    def update(self, belief: Point, data: Context) -> Point:
        """The belief after also seeing ``data``, in time order. Raises ValueError on data of a wrong shape."""
        return Point(self.memory.after(belief.z, data))

    def scan(self, belief: Point, data: Context) -> Point:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        return Point(_prefixes(*self.memory.states(belief.z, data)))


class TransitionMemory(nn.Module):
    """A GRU over the real transitions of each task in turn."""

    def __init__(self, spec: Spec, size: int, *, reward: bool) -> None:
        super().__init__()
        if not spec.dynamics_vary:
            raise ValueError(
                f"TransitionMemory: expected a family whose data hold next observations, Spec.dynamics_vary, got "
                f"{spec.name!r}"
            )
        self.x_dim, self.y_dim = spec.x_dim, spec.y_dim
        self.embedding = TransitionEmbedding(spec, reward=reward)
        self.recurrence = nn.GRU(64, size, batch_first=True)

    def empty(self, batch: int) -> Float[Tensor, "B H"]:
        like = self.embedding.action.weight
        return like.new_zeros(batch, self.recurrence.hidden_size)

    def after(self, memory: Float[Tensor, "B H"], data: Context) -> Float[Tensor, "B H"]:
        """The memory after all of the data."""
        states, count = self.states(memory, data)
        return states[torch.arange(len(states), device=states.device), count[:, -1]]

    def states(self, memory: Float[Tensor, "B H"], data: Context) -> tuple[Float[Tensor, "B L H"], Int[Tensor, "B N1"]]:
        """The memory after each number of real rows, and the number of real rows before each row and in all.

        States after more rows than a task has mean nothing.
        """
        data = checked("TransitionMemory", data, batch=len(memory), x_dim=self.x_dim, y_dim=self.y_dim)
        count = nn.functional.pad(data.mask.cumsum(1), (1, 0))
        most = int(count[:, -1].max()) if data.size else 0
        if not most:
            return memory.unsqueeze(1), count
        task, row = data.mask.nonzero().T
        rows = self.embedding(data.x[task, row], data.y[task, row])
        inputs = rows.new_zeros(data.batch, most, rows.shape[-1]).index_put((task, count[task, row]), rows)
        states, _ = self.recurrence(inputs, memory.unsqueeze(0).contiguous())
        return torch.cat([memory.unsqueeze(1), states], 1), count


def _prefixes(states: Float[Tensor, "B L H"], count: Int[Tensor, "B N1"]) -> Float[Tensor, "P H"]:
    """The state at each prefix of the data, in the layout of an inference procedure's ``scan``."""
    return states.gather(1, count.unsqueeze(-1).expand(-1, -1, states.shape[-1])).transpose(0, 1).flatten(0, 1)
