"""Observations, actions and task identifiers as vectors, whether they are integers or real numbers."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.types import Spec


class Integers(nn.Module):
    """Vectors of integers, component ``i`` one of ``sizes[i]``: an embedding of each, side by side.

    Input ``[*b, len(sizes)]`` of any dtype, output ``[*b, len(sizes) * width]``.
    """

    offsets: Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)

    def forward(self, values: Tensor) -> Float[Tensor, "*b e"]:
        return self.table(values.long() + self.offsets).flatten(-2)


class ObservationEmbedding(nn.Module):
    """An observation ``[*b, S]`` as ``[*b, width]``: integers through embeddings and one hidden layer.

    The published sizes for grids are embeddings of 32, a hidden layer of 256 and ``width`` 64 (Liu et al. 2021, code).
    Worlds of integers have few observations, so that those which occur are embedded once each.
    """

    radix: Tensor

    def __init__(self, spec: Spec, width: int = 64, *, hidden: int = 256, table: int = 32) -> None:
        super().__init__()
        first: nn.Module = Integers(spec.obs_sizes, table) if spec.obs_sizes else nn.Identity()
        size = len(spec.obs_sizes) * table or spec.obs_dim
        self.layers = nn.Sequential(first, nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.few = 0 < math.prod(spec.obs_sizes) < 1 << 62 if spec.obs_sizes else False
        weights = torch.tensor([1, *spec.obs_sizes[:-1]]).cumprod(0) if self.few else torch.zeros(0)
        self.register_buffer("radix", weights, persistent=False)

    def forward(self, obs: Float[Tensor, "*b S"]) -> Float[Tensor, "*b w"]:
        if not self.few or obs.ndim < 2 or obs.numel() < 64 * obs.shape[-1]:
            return self.layers(obs)
        rows = obs.flatten(0, -2)
        codes, inverse = (rows.long() * self.radix).sum(-1).unique(return_inverse=True)
        place = codes.new_empty(len(codes)).scatter_(0, inverse, torch.arange(len(rows), device=rows.device))
        return self.layers(rows[place])[inverse].view(*obs.shape[:-1], -1)


class TransitionEmbedding(nn.Module):
    """Rows ``x = (s, a)``, ``y = (r, s')`` of a control family as ``[*b, width]``, of the reward only if ``reward``.

    Normalised (Ba et al. 2016): what reads it is a recurrence, and while there is nothing to be learned from it yet the
    noise of gradients lets an embedding grow, in ten thousand updates so far that the recurrence saturates for good.
    """

    def __init__(self, spec: Spec, width: int = 64, *, hidden: int = 128, action: int = 32, reward: bool) -> None:
        super().__init__()
        self.sizes = (spec.obs_dim, spec.action_dim)
        self.reward = reward
        self.obs = ObservationEmbedding(spec, width)
        self.action = nn.Linear(spec.action_dim, action, bias=False)  # of one-hot codes: an embedding
        self.layers = nn.Sequential(
            nn.Linear(2 * width + action + reward, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.LayerNorm(width)
        )

    def forward(self, x: Float[Tensor, "*b X"], y: Float[Tensor, "*b Y"]) -> Float[Tensor, "*b w"]:
        obs, action = x.split(self.sizes, -1)
        both = self.obs(torch.stack([obs, y[..., 1:]]))  # one pass for both
        rest = (y[..., :1],) if self.reward else ()
        return self.layers(torch.cat([both[0], both[1], self.action(action), *rest], -1))
