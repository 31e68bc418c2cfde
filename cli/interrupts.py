"""Ctrl-C and SIGTERM: the first stops in good order, the second hurries."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The user or the system asked `up` to stop."""


class Hurry(BaseException):
    """Asked again while stopping: whatever still runs is killed."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """How often a stop was asked for; raises in the main thread at the first and the second."""

    def __init__(self) -> None:
        self._count = 0
        self._stopping = False

    def stopping(self) -> None:
        """From now on a signal means hurry, also if it is the first."""
        self._stopping = True

    def ignore(self) -> None:
        """From now on nothing interrupts: what is left is quick and must be done."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if not self._stopping:
            self._stopping = True
            raise Interrupted
        self.ignore()
        raise Hurry


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Handle the signals in this way; as before afterwards."""
    state = Interrupts()
    before = {number: signal.signal(number, state.handle) for number in _SIGNALS}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
