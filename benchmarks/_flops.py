"""Floating-point operations of a call's matrix products, counted from the shapes of the products it executes."""

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def executed(call: Callable[[], Any]) -> int:
    """Operations of all matrix products in ``call``, its backward passes included: two per multiply-add.

    What is not a matrix product (activations, sums, optimisers) is not counted.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
