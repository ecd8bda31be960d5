"""Where the time of a function goes, by timing the functions it calls."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from benchmarks._timing import Clock, cpu_time

Piece = tuple[str, Any, str]
"""A name for the table, and the attribute of an object or module to be timed."""


class Stopwatch:
    """Exclusive seconds of named pieces: what a piece's inner pieces take is theirs alone."""

    def __init__(self, clock: Clock = cpu_time) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._inner: list[float] = []

    def timed(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``fn``, with its time added to the piece ``name``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = self._clock()
            try:
                return fn(*args, **kwargs)
            finally:
                elapsed = self._clock() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed

        return call


@contextmanager
def timing(pieces: Sequence[Piece]) -> Iterator[Stopwatch]:
    """A stopwatch on the pieces, inside. Raises AttributeError if a piece is not there: it was renamed."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for name, owner, attribute in pieces:
            fn = watch.timed(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, fn))
        yield watch
