"""Locks that the kernel gives back when their holder dies, also by kill -9.

One writer per machine at a time: whoever changes a machine holds its lock. A flow run holds a
lock of its own while its process lives, so that a dead run can be told from a slow one.
Both are `flock`s on files below `settings.locks_dir`; they hold among the processes of one host,
and provisioning runs on one host, the control node.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.errors import DeadlineExceeded

_POLL_SECONDS = 0.2
_held: dict[Path, int] = {}
_held_guard = threading.RLock()


def machine_lock_path(locks_dir: Path, machine_id: str) -> Path:
    return locks_dir / f"machine-{machine_id}.lock"


def run_lock_path(locks_dir: Path, flow_run_id: str) -> Path:
    return locks_dir / f"run-{flow_run_id}.lock"


@contextmanager
def hold(
    path: Path, *, what: str, timeout: float, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock at `path`; re-entrant within this process.

    `what` names the thing in words. `waiting` is told once, with the holder's note, when the
    lock is not free. Raises DeadlineExceeded after `timeout` seconds.
    """
    with _held_guard:
        mine = path in _held
        if mine:
            _held[path] += 1
    if mine:
        try:
            yield
        finally:
            with _held_guard:
                _held[path] -= 1
        return
    descriptor = _acquire(path, what=what, timeout=timeout, waiting=waiting)
    try:
        with _held_guard:
            _held[path] = 1
        yield
    finally:
        with _held_guard:
            del _held[path]
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def held_runs(locks_dir: Path) -> list[str]:
    """The ids of the flow runs whose process lives on this host."""
    paths = sorted(locks_dir.glob("run-*.lock"))
    return [path.stem.removeprefix("run-") for path in paths if is_held(path)]


def _acquire(
    path: Path, *, what: str, timeout: float, waiting: Callable[[str], None] | None
) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not inherited across exec: a child must not keep the lock when its parent dies.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if not told and waiting is not None:
                waiting(f"waiting for {what}, which another run holds")
                told = True
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise DeadlineExceeded(
                    f"{what} was held by another run for {timeout:.0f} s.",
                    remedy="Wait for that run or cancel it, then retry this one.",
                ) from None
            time.sleep(_POLL_SECONDS)
