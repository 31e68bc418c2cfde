"""Processes that we started, found again by a mark in their environment.

A mark survives exec and fork and cannot be confused with another program's, so what a crash
left behind can be ended by id, and nothing else.
"""

from collections.abc import Mapping

import psutil

MACHINE_MARK = "MUSTER_MARK_MACHINES"
RUN_MARK = "MUSTER_MARK_FLOW_RUN"
# Set by Prefect's process worker in the environment of every flow run's process.
PREFECT_RUN_MARK = "PREFECT__FLOW_RUN_ID"
HOME_MARK = "MUSTER_MARK_HOME"


def marked(name: str, value: str) -> list[psutil.Process]:
    """The living processes whose environment holds `name=value`, this one left out."""
    return [p for p, environment in _environments() if environment.get(name) == value]


def marked_with_machine(machine_id: str) -> list[psutil.Process]:
    """The processes that work on a machine: its id is one of those in their mark."""
    return [
        process
        for process, environment in _environments()
        if machine_id in environment.get(MACHINE_MARK, "").split(",")
    ]


def end(processes: list[psutil.Process], *, grace: float) -> int:
    """Terminate processes, and kill those that live on after `grace` seconds.

    Returns how many were ended, once all of them are gone.
    """
    for process in processes:
        _signal(process, kill=False)
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        _signal(process, kill=True)
    psutil.wait_procs(alive, timeout=grace)
    return len(processes)


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
