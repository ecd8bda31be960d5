"""Floating-point operations of a call's matrix products, counted from the shapes of the products it executes."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def executed(call: Callable[[], Any]) -> int:
    """Operations of all matrix products in ``call``, its backward passes included: two per multiply-add.

    What is not a matrix product (activations, sums, optimisers) is not counted.
    """
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _linear}) as counter:
        call()
    return counter.get_total_flops()


def _linear(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """torch does not know the cost of oneDNN's ``x W^T``; other arguments do not change it."""
    return 2 * prod(x) * weight[0]
