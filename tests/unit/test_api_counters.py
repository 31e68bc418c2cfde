"""The rate limit's counters."""

import limits
import pytest
from limits.strategies import FixedWindowRateLimiter

from netboot import counters
from netboot.counters import Counters


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the counters see."""
    now = [1000.0]
    monkeypatch.setattr(counters.time, "time", lambda: now[0])
    return now


def test_a_window_counts_until_it_ends(clock: list[float]) -> None:
    """Hits up to the limit pass, more do not, and a new window begins after the first ended."""
    storage = Counters()
    limiter, rate = FixedWindowRateLimiter(storage), limits.parse("2/minute")
    assert [True, True, False] == [limiter.hit(rate, "a") for _ in range(3)]
    assert limiter.hit(rate, "b")
    assert 1060.0 == limiter.get_window_stats(rate, "a").reset_time
    clock[0] += 60
    assert limiter.hit(rate, "a")


def test_what_has_expired_is_swept(clock: list[float]) -> None:
    """A source that left is forgotten, so that many sources cannot fill the memory for good."""
    storage = Counters()
    for number in range(100):
        storage.incr(f"source-{number}", 60)
    clock[0] += 61
    storage.incr("another", 60)
    assert 1 == storage.reset()
    assert 0 == storage.get("another")
