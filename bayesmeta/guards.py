"""The finite-value guard: a NaN or an infinity stops a run where it first appears."""

from collections.abc import Iterable

import torch
from torch import Tensor


class NonFiniteError(ArithmeticError):
    """A tensor held a NaN or an infinity.

    ``name`` is the first offending tensor and ``tensors`` everything the failing check was given, so that the run's
    error bundle can reproduce it.
    """

    def __init__(self, name: str, tensors: dict[str, Tensor]) -> None:
        self.name = name
        self.tensors = {key: value.detach() for key, value in tensors.items()}
        super().__init__(_describe(name, self.tensors[name]))


def check_finite(**tensors: Tensor) -> None:
    """Raise :class:`NonFiniteError` if any element of any tensor is NaN or infinite: ``check_finite(reward=reward)``.

    A sum is finite only if every term is, so the usual cost is one reduction per tensor and one transfer to the host
    for all of them; a sum that overflowed is looked at element by element. Integers and booleans are finite by type.
    No gradient is recorded.
    """
    floating = {key: value.detach() for key, value in tensors.items() if value.is_floating_point()}
    if not floating:
        return
    sums = [value.sum().float() for value in floating.values()]
    if bool(torch.stack(sums).isfinite().all()):
        return
    for name, value in floating.items():
        if not bool(value.isfinite().all()):
            raise NonFiniteError(name, tensors)


def check_gradients(named: Iterable[tuple[str, Tensor]], prefix: str = "gradient of ") -> None:
    """:func:`check_finite` of the gradients of named parameters: ``check_gradients(network.named_parameters())``."""
    check_finite(**{f"{prefix}{name}": value.grad for name, value in named if value.grad is not None})


def _describe(name: str, value: Tensor) -> str:
    bad = ~value.isfinite()
    index = tuple(int(i) for i in bad.nonzero()[0])
    return (
        f"`{name}` {tuple(value.shape)} holds {int(bad.sum())} of {value.numel()} values that are not finite, "
        f"the first at index {index} ({value[index].item()}): lower the learning rate, or look at what produced it"
    )
