"""The generated half of Ansible's inventory: the registry's machines as a YAML file."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from fleet.models import Frozen, Machine
from fleet.settings import Settings
from fleet.states import MachineState
from tasks.ssh import ssh_options

FILE_NAME = "machines.yaml"
_LOCK_SECONDS = 30
_HEADER = (
    "# Generated from the registry; changes are lost. Hand-kept hosts: inventory/static.yaml\n"
)


class InventoryView(Frozen):
    """The file, whether this refresh changed it, and the names of the machines in it."""

    path: Path
    changed: bool
    machines: tuple[str, ...]


def can_be_managed(machine: Machine) -> bool:
    """Whether Ansible could reach the machine: it lives, and has an address and host keys."""
    return bool(
        machine.state is not MachineState.RETIRED and machine.address and machine.ssh_host_keys
    )


def render(machines: Iterable[Machine], settings: Settings) -> str:
    """The inventory of the machines that can be managed. Pure: equal input, equal bytes.

    Only names, addresses and ids that were checked at the door stand in it, nothing that a
    machine says of itself.
    """
    hosts = {m.name: _variables(m, settings) for m in machines if can_be_managed(m)}
    return _HEADER + yaml.safe_dump({"machines": {"hosts": hosts}}, sort_keys=True, width=1000)


def refresh(settings: Settings, machines: Iterable[Machine]) -> InventoryView:
    """Bring the file up to date: replaced whole under a lock, untouched when nothing changed.

    Raises filelock.Timeout when another process holds the lock for half a minute.
    """
    listed = list(machines)
    text = render(listed, settings)
    path = settings.inventory_dir / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{settings.locks_dir / 'inventory.lock'}", timeout=_LOCK_SECONDS):
        changed = not path.exists() or path.read_text(encoding="utf-8") != text
        if changed:
            temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    names = tuple(sorted(m.name for m in listed if can_be_managed(m)))
    return InventoryView(path=path, changed=changed, machines=names)


def _variables(machine: Machine, settings: Settings) -> dict[str, Any]:
    return {
        "ansible_host": machine.address,
        "ansible_user": settings.ssh_user,
        "ansible_ssh_private_key_file": str(settings.ssh_key_file),
        "ansible_host_key_checking": True,
        "ansible_ssh_common_args": shlex.join(ssh_options(settings, machine)),
        "muster_machine_id": machine.id,
    }
