"""Processes that we started, found again by a mark in their environment.

A mark survives exec and fork and cannot be confused with another program's, so what a crash
left behind can be ended by id, and nothing else.
"""

import time
from collections.abc import Mapping

import psutil

MACHINE_MARK = "MUSTER_MARK_MACHINES"
RUN_MARK = "MUSTER_MARK_FLOW_RUN"
# Set by Prefect's process worker in the environment of every flow run's process.
PREFECT_RUN_MARK = "PREFECT__FLOW_RUN_ID"
HOME_MARK = "MUSTER_MARK_HOME"
_POLL_SECONDS = 0.02


def marked(name: str, value: str) -> list[psutil.Process]:
    """The living processes whose environment holds `name=value`, this one left out."""
    return [p for p, environment in _environments() if environment.get(name) == value]


def marked_with_machine(*machine_ids: str) -> list[psutil.Process]:
    """The processes that work on one of the machines: its id is among those in their mark."""
    wanted = set(machine_ids)
    return [
        process
        for process, environment in _environments()
        if not wanted.isdisjoint(environment.get(MACHINE_MARK, "").split(","))
    ]


def with_argument(start: str) -> list[psutil.Process]:
    """The living processes whose command line begins with `start`."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.Error, OSError):
            continue
        if command and command[0].startswith(start):
            found.append(process)
    return found


def end(processes: list[psutil.Process], *, grace: float) -> int:
    """Terminate processes, and kill those that live on after `grace` seconds.

    Returns how many were ended, once all of them have.
    """
    for process in processes:
        _signal(process, kill=False)
    for process in _wait(processes, grace):
        _signal(process, kill=True)
    _wait(processes, grace)
    return len(processes)


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until the processes have ended; those that live on after `seconds`.

    One that its parent has not reaped has ended: it holds no lock and does no work.
    """
    deadline = time.monotonic() + seconds
    while (alive := [p for p in processes if _lives(p)]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return


def _environments() -> list[tuple[psutil.Process, Mapping[str, str]]]:
    found: list[tuple[psutil.Process, Mapping[str, str]]] = []
    own = psutil.Process().pid
    for process in psutil.process_iter():
        if process.pid == own:
            continue
        try:
            found.append((process, process.environ()))
        except (psutil.Error, OSError):
            continue
    return found
