"""Batch normalisation that may be differentiated twice and knows whose statistics it uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_first: ContextVar[int | None] = ContextVar("rows that give the statistics", default=None)


@contextmanager
def statistics_from(rows: int | None) -> Iterator[None]:
    """Inside, :class:`BatchNorm` takes its statistics from the first ``rows`` rows of a task only (None: from all).

    With the support in front of the queries this is prediction without transduction: what is predicted for a query then
    does not depend on which other queries it came with.
    """
    token = _first.set(rows)
    try:
        yield
    finally:
        _first.reset(token)


class BatchNorm(nn.Module):
    """``weight (x - mean) / sqrt(var + eps) + bias`` over the rows of one task, and over space for images.

    ``x [N, C]`` or ``[N, C, H, W]``, or with tasks in front if the parameters have them too (:meth:`batched`). The
    statistics are always those of the rows given: there are no running averages, whose update would make a task depend
    on those before it. This is how MAML's authors normalise, in training and at test, which is transductive: see
    :func:`statistics_from`. Written out because ``torch.vmap`` of torch's own gives a wrong second derivative.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return normalised(x, self.weight, self.bias, self.eps, axis=0)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The same for ``x [B, N, C]`` with parameters ``[B, C]`` or ``[C]``."""
        weight, bias = (p.unsqueeze(-2) if p.ndim == 2 else p for p in (weight, bias))
        return normalised(x, weight, bias, self.eps, axis=1)


def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float, axis: int) -> Tensor:
    """Normalise over ``axis``, the rows, and everything behind the channels that follow it."""
    space = tuple(range(axis + 2, x.ndim))
    rows = x if _first.get() is None else x.narrow(axis, 0, min(_first.get() or 0, x.shape[axis]))
    mean = rows.mean((axis, *space), keepdim=True)
    variance = (rows - mean).square().mean((axis, *space), keepdim=True)
    weight, bias = (p.reshape(*p.shape, *(1 for _ in space)) for p in (weight, bias))
    return (x - mean) * (variance + eps).rsqrt() * weight + bias
