"""Processes recognised for certain, also after the program that started them is gone.

A pid alone may be given to another process later; pid, start time and boot id together may
not.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from fleet.errors import DeadlineExceeded

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STAT_START_TIME = 19  # field 22 of /proc/<pid>/stat, counted behind the command's name
_POLL = 0.05


class ProcessMark(BaseModel):
    """Which process this was: `started` in clock ticks since the host's boot."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: int
    boot_id: str


@dataclass(frozen=True)
class ProcessStat:
    """What the kernel says of a process: state letter and start time in clock ticks."""

    state: str
    started: int


def parse_stat(text: str) -> ProcessStat:
    """Read `/proc/<pid>/stat`, whose command name may itself hold spaces and brackets."""
    fields = text.rpartition(")")[2].split()
    return ProcessStat(state=fields[0], started=int(fields[_STAT_START_TIME]))


def mark_process(pid: int) -> ProcessMark | None:
    """The mark of a live process; None when there is none."""
    stat = _read_stat(pid)
    if stat is None or stat.state in "ZX":
        return None
    return ProcessMark(pid=pid, started=stat.started, boot_id=_BOOT_ID.read_text().strip())


def is_alive(mark: ProcessMark) -> bool:
    """Whether the very process of this mark still runs; a zombie does not."""
    return mark_process(mark.pid) == mark


def send_signal(mark: ProcessMark, number: int) -> None:
    """Signal the process of this mark if it still runs."""
    if is_alive(mark):
        try:
            os.kill(mark.pid, number)
        except ProcessLookupError:
            return


def children_of(mark: ProcessMark) -> tuple[ProcessMark, ...]:
    """The live direct children of a live process."""
    if not is_alive(mark):
        return ()
    try:
        children = psutil.Process(mark.pid).children()
    except psutil.NoSuchProcess:
        return ()
    return tuple(child for child in (mark_process(found.pid) for found in children) if child)


def kill_and_wait(marks: Iterable[ProcessMark], *, what: str, timeout: float = 10.0) -> None:
    """Kill these processes and wait until none is left. Raises DeadlineExceeded."""
    wanted = tuple(marks)
    for mark in wanted:
        send_signal(mark, signal.SIGKILL)
    wait_until(
        lambda: not any(is_alive(mark) for mark in wanted), what=f"{what} to end", timeout=timeout
    )


def wait_until(condition: Callable[[], bool], *, what: str, timeout: float) -> None:
    """Poll until `condition` holds. Raises DeadlineExceeded saying what was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"Waited {timeout:.0f} s for {what}.")
        time.sleep(_POLL)


def _read_stat(pid: int) -> ProcessStat | None:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
