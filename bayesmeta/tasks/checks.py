"""What every control family asks of the task parameters it is given."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.types import Spec


def checked_params(params: Float[Tensor, "..."], spec: Spec) -> Float[Tensor, "B M"]:
    """``params``, if they are finite ``[B, M]`` with ``B >= 1``; else a ValueError that says what was expected."""
    expected = spec.param_dim
    if params.ndim != 2 or params.shape[1] != expected or len(params) == 0:
        raise ValueError(
            f"{spec.name}: expected params [B, {expected}] with B >= 1 and columns {spec.param_names[:4]}"
            f"{'...' if expected > 4 else ''}, got {tuple(params.shape)}; pass what sample() returns"
        )
    finite = torch.isfinite(params).all(1)
    if not bool(finite.all()):
        raise ValueError(f"{spec.name}: expected finite params, got {params[~finite][0].tolist()}")
    return params
