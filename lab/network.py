"""The laboratory's network: namespaces, a bridge and veth pairs, made by iproute2.

Every interface is made inside a namespace; the host gets none, nor a route, nor NAT.

    namespace muster-1a2b3c4d           namespace muster-1a2b3c4d-2
    br0 10.213.0.1 ── m2 ═══════════════ eth0 10.213.0.2, default via 10.213.0.1
"""

import re
import subprocess
from pathlib import Path

from fleet.errors import SetupFailed
from fleet.namespaces import NETNS_DIR, namespace_path
from lab.addresses import LabNames, Subnet
from lab.processes import ProcessMark, mark_process

BRIDGE = "br0"
INTERFACE = "eth0"


def up(names: LabNames, subnet: Subnet) -> None:
    """Make the laboratory's namespace and bridge, or complete what is there."""
    _add_namespace(names.netns)
    if not _has_link(names.netns, BRIDGE):
        _ip("-n", names.netns, "link", "add", BRIDGE, "type", "bridge")
    address = f"{subnet.gateway}/{subnet.prefix_length}"
    if f" {address} " not in _ip("-n", names.netns, "-o", "addr", "show", "dev", BRIDGE):
        _ip("-n", names.netns, "addr", "add", address, "dev", BRIDGE)
    _ip("-n", names.netns, "link", "set", "lo", "up")
    _ip("-n", names.netns, "link", "set", BRIDGE, "up")


def attach(names: LabNames, subnet: Subnet, number: int) -> str:
    """Give a machine a fresh namespace with its address on the bridge; returns its name.

    What was there under the same number goes first, neighbours included.
    """
    detach(names, number)
    netns, port = names.machine_netns(number), _port(number)
    _add_namespace(netns)
    link = ["link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", netns]
    _ip("-n", names.netns, *link)
    _ip("-n", names.netns, "link", "set", port, "master", BRIDGE, "up")
    address = f"{subnet.address(number)}/{subnet.prefix_length}"
    _ip("-n", netns, "addr", "add", address, "dev", INTERFACE)
    _ip("-n", netns, "link", "set", "lo", "up")
    _ip("-n", netns, "link", "set", INTERFACE, "up")
    _ip("-n", netns, "route", "add", "default", "via", subnet.gateway)
    _ip("-n", names.netns, "neigh", "flush", "to", subnet.address(number), "dev", BRIDGE)
    return netns


def detach(names: LabNames, number: int) -> None:
    """Remove a machine's namespace and its port on the bridge, if there."""
    if namespace_path(names.netns).exists() and _has_link(names.netns, _port(number)):
        _ip("-n", names.netns, "link", "del", _port(number))
    _delete_namespace(names.machine_netns(number))


def down(names: LabNames) -> None:
    """Remove every namespace of this laboratory, if there, and all inside."""
    for netns in namespaces_of(names):
        _delete_namespace(netns)
    _unmount_empty_dir()


def is_up(names: LabNames) -> bool:
    return namespace_path(names.netns).exists()


def namespaces_of(names: LabNames) -> tuple[str, ...]:
    """The laboratory's namespaces that exist, the machines' before the bridge's."""
    if not NETNS_DIR.is_dir():
        return ()
    ours = re.compile(rf"{re.escape(names.netns)}(-\d+)?")
    found = (path.name for path in NETNS_DIR.iterdir() if ours.fullmatch(path.name))
    return tuple(sorted(found, key=len, reverse=True))


def processes_in(netns: str) -> tuple[ProcessMark, ...]:
    """Every process whose network namespace this is."""
    if not namespace_path(netns).exists():
        return ()
    pids = _ip("netns", "pids", netns).split()
    return tuple(mark for mark in (mark_process(int(pid)) for pid in pids) if mark)


def _port(number: int) -> str:
    return f"m{number}"


def _has_link(netns: str, link: str) -> bool:
    lines = _ip("-n", netns, "-o", "link", "show").splitlines()
    return any(line.split(": ")[1].partition("@")[0] == link for line in lines)


def _add_namespace(netns: str) -> None:
    if not namespace_path(netns).exists():
        _ip("netns", "add", netns)


def _delete_namespace(netns: str) -> None:
    if namespace_path(netns).exists():
        _ip("netns", "del", netns)


def _unmount_empty_dir(directory: Path = NETNS_DIR) -> None:
    """Undo the bind mount that iproute2 makes for the first namespace of a host."""
    if directory.is_dir() and not any(directory.iterdir()):
        subprocess.run(["umount", str(directory)], capture_output=True, check=False)


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SetupFailed(
            f"`ip {' '.join(arguments)}` failed: {result.stderr.strip()}",
            remedy="`./muster lab stop --all` takes the laboratory down; then try again.",
        )
    return result.stdout
