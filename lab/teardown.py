"""Taking the laboratory down, after a day's work and after a crash alike.

Disks of machines are kept. Only what bears this home's names or was written down by us is
touched: processes by pid and start time, or by our network namespaces, in which nothing else
lives.
"""

import os
import shutil
import subprocess
from pathlib import Path

from fleet.settings import Settings
from lab import cgroups, network
from lab.addresses import lab_names
from lab.keepers import clear_remains, find_processes
from lab.machine import stop
from lab.processes import kill_and_wait
from lab.proxy_process import find_proxy, stop_proxy
from lab.store import lab_folder, lab_lock, list_records, machine_lock


def stop_all(settings: Settings, timeout: float = 30.0) -> None:
    """Shut every machine down in good order, then take the rest of the laboratory down."""
    for record in list_records(settings):
        stop(settings, record.name, timeout)
    cleanup_leftovers(settings)


def cleanup_leftovers(settings: Settings) -> tuple[str, ...]:
    """Kill and remove all that runs or stands of this laboratory; says what it found.

    Finds nothing and does nothing when the laboratory is down or this is not root.
    """
    names = lab_names(settings.home)
    if os.geteuid() != 0 or not (lab_folder(settings).exists() or network.namespaces_of(names)):
        return ()
    found = [*_end_machines(settings), *_end_proxy(settings), *_end_namespaces(settings)]
    for mount in mounts_below(Path("/proc/self/mountinfo").read_text(), lab_folder(settings)):
        subprocess.run(["umount", "--lazy", str(mount)], check=True, capture_output=True)
        found.append(f"mount {mount}")
    return tuple(found)


def release_idle(settings: Settings) -> None:
    """Take network and proxy down when no machine runs and no supervisor keeps the proxy."""
    if any(find_processes(settings, record).all() for record in list_records(settings)):
        return
    proxy = find_proxy(settings)
    if proxy is None or proxy.standalone:
        cleanup_leftovers(settings)


def mounts_below(mountinfo: str, folder: Path) -> tuple[Path, ...]:
    """Mount points below `folder` in the text of /proc/self/mountinfo, innermost first."""
    points = (_unescape(line.split()[4]) for line in mountinfo.splitlines())
    return tuple(point for point in reversed([*points]) if point.is_relative_to(folder))


def _unescape(text: str) -> Path:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return Path(text)


def _end_machines(settings: Settings) -> list[str]:
    found: list[str] = []
    names = lab_names(settings.home)
    for record in list_records(settings):
        netns = names.machine_netns(record.number)
        if find_processes(settings, record).all() or netns in network.namespaces_of(names):
            found.append(f"machine {record.name}")
        with machine_lock(settings, record.name):
            clear_remains(settings, record)
    return found


def _end_proxy(settings: Settings) -> list[str]:
    found = ["proxy"] if find_proxy(settings) else []
    stop_proxy(settings)
    return found


def _end_namespaces(settings: Settings) -> list[str]:
    """Remove namespaces, also of machines whose folder is gone, with the machines inside."""
    names = lab_names(settings.home)
    with lab_lock(settings):
        left = network.namespaces_of(names)
        for netns in left:
            if netns == names.netns:
                continue  # people's own shells may be in there
            kill_and_wait(network.processes_in(netns), what=f"the processes in {netns}")
        network.down(names)
    cgroups.remove_group(cgroups.detect_kind(), names.netns)
    for folder in Path("/run/systemd/nspawn").glob(f"*/{names.netns}-*"):
        shutil.rmtree(folder)
    return [f"namespace {netns}" for netns in left]
