"""The processes that carry a machine, and taking away all that remains of them.

sh             the supervisor: starts nspawn again when the machine reboots
└─ systemd-nspawn
   └─ systemd  the leader: PID 1 of the machine
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from fleet.settings import Settings
from lab import cgroups, network
from lab.addresses import lab_names
from lab.processes import ProcessMark, children_of, kill_and_wait, mark_process
from lab.store import MachineRecord, lab_lock, machine_folder, read_mark

_NSPAWN_RUN_DIR = Path("/run/systemd/nspawn")


@dataclass(frozen=True)
class Keepers:
    """The live processes of one machine, outermost first."""

    supervisor: ProcessMark | None
    nspawn: ProcessMark | None
    leader: ProcessMark | None

    def all(self) -> tuple[ProcessMark, ...]:
        return tuple(mark for mark in (self.supervisor, self.nspawn, self.leader) if mark)


def find_processes(settings: Settings, record: MachineRecord) -> Keepers:
    """The live processes of a machine, also where a crash took some of them.

    Nothing but the machine lives in its network namespace, so its PID 1 is found there when
    the processes above it are gone.
    """
    supervisor = read_mark(machine_folder(settings, record.name) / "process.json")
    nspawn = next(iter(children_of(supervisor)), None) if supervisor else None
    if nspawn:
        return Keepers(supervisor, nspawn, _first_leader(children_of(nspawn)))
    names = lab_names(settings.home)
    leader = _first_leader(network.processes_in(names.machine_netns(record.number)))
    parent = _parent_nspawn(leader, names.machine_netns(record.number)) if leader else None
    return Keepers(supervisor, parent, leader)


def clear_remains(settings: Settings, record: MachineRecord) -> None:
    """Kill what still runs of a machine, and remove its namespace and control groups."""
    names = lab_names(settings.home)
    netns = names.machine_netns(record.number)
    marks = (*find_processes(settings, record).all(), *network.processes_in(netns))
    kill_and_wait(marks, what=f"the processes of {record.name}")
    with lab_lock(settings):
        network.detach(names, record.number)
    cgroups.remove_group(cgroups.detect_kind(), names.cgroup(record.number))
    for folder in ("propagate", "unix-export"):
        remains = _NSPAWN_RUN_DIR / folder / netns
        if remains.is_dir():
            shutil.rmtree(remains)
    (machine_folder(settings, record.name) / "process.json").unlink(missing_ok=True)


def _first_leader(candidates: Iterable[ProcessMark]) -> ProcessMark | None:
    return next((mark for mark in candidates if _is_leader(mark.pid)), None)


def _is_leader(pid: int) -> bool:
    """Whether a process is PID 1 of the pid namespace right below ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
    return line.split()[2:] == ["1"]


def _parent_nspawn(leader: ProcessMark, machine: str) -> ProcessMark | None:
    try:
        parent = psutil.Process(leader.pid).parent()
        ours = parent is not None and f"--machine={machine}" in parent.cmdline()
    except psutil.NoSuchProcess:
        return None
    return mark_process(parent.pid) if parent and ours else None
