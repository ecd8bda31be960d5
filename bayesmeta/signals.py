"""Stopping a run from outside: finish the iteration, save, and say by which signal it ended."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """The run was stopped by ``signum`` after saving. Not an ``Exception``: it ends a whole sweep, not one job."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")

    @property
    def exit_code(self) -> int:
        """What a shell reports for this signal: 130, 143 or 138."""
        return 128 + self.signum


class StopRequest:
    """Whether a signal has asked to stop, and whether the work under way may be abandoned for it."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._abandon = False

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Work inside that can be repeated later is left at once: the signal raises :class:`Interrupted` in it."""
        self._abandon = True
        try:
            self.check()
            yield
        finally:
            self._abandon = False

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler. A second SIGINT is left to the system, which ends the process at once."""
        self.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._abandon:
            self._abandon = False
            raise Interrupted(signum)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Handle SIGINT, SIGTERM and SIGUSR1 for the time of a run; outside the main thread signals stay as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
