"""How a machine's systemd gets control groups of its own, by what the host has.

- version 2 under systemd: nspawn asks the host's systemd for a scope, the plain way;
- version 2 without systemd (a container, say): a group of ours, handed over whole;
- version 1 or hybrid: a group of ours in every hierarchy. Debian 13's systemd wants to be
  told twice that version 1 is meant. Version 2 alone would boot as well, but the memory
  controller is bound to version 1 there and limits would be dropped without a word.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab.processes import wait_until

CGROUP_ROOT = Path("/sys/fs/cgroup")
_SYSTEMD_RUNS = Path("/run/systemd/system")
_V1_ARGUMENTS = (
    "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
    "systemd.unified_cgroup_hierarchy=0",
    "systemd.legacy_systemd_cgroup_controller=1",
)


class CgroupKind(StrEnum):
    SCOPE = "version 2 under systemd"
    UNIFIED = "version 2"
    LEGACY = "version 1"


@dataclass(frozen=True)
class CgroupPlan:
    """What a kind of host asks of nspawn and of the machine's init."""

    nspawn_flags: tuple[str, ...]
    nspawn_environment: tuple[tuple[str, str], ...]
    init_arguments: tuple[str, ...]


def detect_kind(root: Path = CGROUP_ROOT, systemd_runs: Path = _SYSTEMD_RUNS) -> CgroupKind:
    """Look which control groups this host has."""
    if not (root / "cgroup.controllers").exists():
        return CgroupKind.LEGACY
    return CgroupKind.SCOPE if systemd_runs.is_dir() else CgroupKind.UNIFIED


def plan_for(kind: CgroupKind) -> CgroupPlan:
    """Decide the flags for a kind of host."""
    if kind is CgroupKind.SCOPE:
        return CgroupPlan((), (("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1"),), ())
    if kind is CgroupKind.UNIFIED:
        environment = (("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1"),)
        return CgroupPlan(("--keep-unit",), environment, ())
    environment = (("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "0"),)
    return CgroupPlan(("--keep-unit",), environment, _V1_ARGUMENTS)


def enter_group(kind: CgroupKind, group: str, root: Path = CGROUP_ROOT) -> None:
    """Move this process into `group` (a relative path) of every hierarchy, making it first."""
    for hierarchy in _hierarchies(kind, root):
        parent = hierarchy
        for part in Path(group).parts:
            child = parent / part
            child.mkdir(exist_ok=True)
            _inherit_cpuset(parent, child)
            parent = child
        (parent / "cgroup.procs").write_text(str(os.getpid()))


def remove_group(kind: CgroupKind, group: str, root: Path = CGROUP_ROOT) -> None:
    """Remove `group` with all below it, from every hierarchy; nothing may run in it.

    The kernel releases a group a moment after its last process; that is waited for.
    """
    for hierarchy in _hierarchies(kind, root):
        top = hierarchy / group
        wait_until(lambda top=top: _removed(top), what=f"the control group {top}", timeout=10)


def _hierarchies(kind: CgroupKind, root: Path) -> Sequence[Path]:
    if kind is CgroupKind.SCOPE:
        return ()
    if kind is CgroupKind.UNIFIED:
        return (root,)
    return tuple(sorted(path.parent for path in root.glob("*/cgroup.procs")))


def _inherit_cpuset(parent: Path, child: Path) -> None:
    """A version 1 cpuset takes no process before its CPUs and memory nodes are named."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (child / name).exists() and not (child / name).read_text().strip():
            value = (parent / name).read_text().strip()
            if value:
                (child / name).write_text(value)


def _removed(top: Path) -> bool:
    if not top.is_dir():
        return True
    for folder, _, _ in os.walk(top, topdown=False):
        _rmdir(Path(folder))
    return not top.is_dir()


def _rmdir(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return  # absent, or not empty yet
