"""Counters of a rate limit in this process's memory, for the event loop's thread alone.

The storage that `limits` brings sweeps in a thread which it starts every few milliseconds, and
starting a thread stops the event loop until it is the thread's turn.
"""

import time
from dataclasses import dataclass

from limits.storage import Storage

_SWEEP_SECONDS = 10.0


@dataclass(slots=True)
class _Window:
    count: int
    expires_at: float


class Counters(Storage):
    """A storage of fixed windows; what has expired is swept while counting, now and then."""

    STORAGE_SCHEME = None

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[str, _Window] = {}
        self._swept_at = time.time()

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count `amount` more in a window of `expiry` seconds; returns the sum."""
        now = time.time()
        if now - self._swept_at > _SWEEP_SECONDS:
            self._sweep(now)
        window = self._windows.get(key)
        if window is None or window.expires_at <= now:
            window = self._windows[key] = _Window(0, now + expiry)
        window.count += amount
        return window.count

    def get(self, key: str) -> int:
        """The sum of the current window."""
        window = self._windows.get(key)
        return 0 if window is None or window.expires_at <= time.time() else window.count

    def get_expiry(self, key: str) -> float:
        """When the current window ends, in seconds since the epoch; now if there is none."""
        window = self._windows.get(key)
        return time.time() if window is None else window.expires_at

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        """Forget everything; returns how many windows there were."""
        number = len(self._windows)
        self._windows.clear()
        return number

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        self._windows = {key: w for key, w in self._windows.items() if w.expires_at > now}
