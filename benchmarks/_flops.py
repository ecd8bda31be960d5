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
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _accumulated}) as counter:
        call()
    return counter.get_total_flops()


def _accumulated(_: torch.Size, a: torch.Size, b: torch.Size, **__: Any) -> int:
    """torch does not count a product that is added in place."""
    return 2 * prod(a) * b[-1]
