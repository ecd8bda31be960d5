"""What every exact procedure does with data: check it, and add up its evidence."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.types import Context


def checked(owner: str, data: Context, *, batch: int, x_dim: int, y_dim: int) -> Context:
    """The data with zeros under the mask, so that padding of any value, NaN too, changes nothing.

    Raises ValueError where the shape is not ``x [batch, N, x_dim], y [batch, N, y_dim]`` or a real datum is not finite.
    """
    expected = (batch, x_dim), (batch, y_dim)
    if tuple((v.shape[0], v.shape[-1]) for v in (data.x, data.y)) != expected:
        raise ValueError(
            f"{owner}: expected data x [{batch}, N, {x_dim}] and y [{batch}, N, {y_dim}], got {tuple(data.x.shape)} "
            f"and {tuple(data.y.shape)}; pass the data of the tasks that the belief is about, in the model's own layout"
        )
    if torch.compiler.is_compiling():  # which cannot branch on values; the loss of a NaN is one
        padding = ~data.mask.unsqueeze(-1)
        return Context(data.x.masked_fill(padding, 0.0), data.y.masked_fill(padding, 0.0), data.mask)
    if data.mask.all() and (data.x.sum() + data.y.sum()).isfinite():  # what is usual, at once
        return data
    padding = ~data.mask.unsqueeze(-1)
    x, y = data.x.masked_fill(padding, 0.0), data.y.masked_fill(padding, 0.0)
    bad = ~(x.isfinite().all(-1) & y.isfinite().all(-1))
    if bad.any():
        task, row = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{owner}: expected finite data, got a NaN or an infinity in {int(bad.sum())} rows, the first being row "
            f"{row} of task {task}; mark rows that hold no datum with mask=False"
        )
    return Context(x, y, data.mask)


def prefix_sums(start: Float[Tensor, "B *e"], terms: Float[Tensor, "B N *e"]) -> Float[Tensor, "P *e"]:
    """``start`` plus the first ``n`` terms, for ``n = 0 .. N``, in the layout of ``scan``.

    The batch is ``P = (N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` data.
    """
    return torch.cat([start.unsqueeze(1), terms], 1).cumsum(1).transpose(0, 1).flatten(0, 1)
