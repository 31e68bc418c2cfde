"""Laboratory machines: boot, stop, crash, destroy, list.

A machine is a copy-on-write clone of the base, started by lab/launch.py in namespaces of its
own. Its disk is kept when it stops and when it crashes; only `destroy` takes it away.
"""

import base64
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from fleet.errors import DeadlineExceeded, InvalidRequest, SetupFailed
from fleet.namespaces import connect, namespace_path
from fleet.settings import CHECKOUT, Settings
from lab import cgroups, network
from lab.addresses import lab_names, lab_subnet
from lab.image import Progress, ensure_base
from lab.keepers import clear_remains, find_processes
from lab.launch import FileSpec, LaunchSpec
from lab.packages import require_host
from lab.processes import send_signal, wait_until
from lab.provision import InjectedFile, machine_files
from lab.store import (
    MachineRecord,
    create_record,
    find_record,
    lab_lock,
    list_records,
    load_record,
    machine_folder,
    machine_lock,
)

_LAUNCH_TIMEOUT = 60.0
_SSHD_TIMEOUT = 60.0
_SSH_PORT = 22
_HALT = signal.SIGRTMIN + 3


@dataclass(frozen=True)
class LabMachine:
    """A machine as it is now; `leader_pid` is the host's pid of its PID 1 while it runs."""

    name: str
    state: Literal["running", "stopped"]
    address: str
    leader_pid: int | None
    netns: str


def boot(
    settings: Settings,
    name: str,
    inject: Sequence[InjectedFile] = (),
    enable: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> LabMachine:
    """Start a machine, made first if there is none of this name, and wait for its sshd.

    `inject` is written into its disk before the start and the systemd units of `enable` are
    enabled. A machine that runs is returned as it is, unless there is something to inject.
    Raises SetupFailed, InvalidName, InvalidRequest.
    """
    require_host()
    files = _file_specs(inject)
    base = ensure_base(settings, progress)
    with machine_lock(settings, name):
        with lab_lock(settings):
            record = find_record(settings, name) or create_record(settings, name, base)
        if find_processes(settings, record).leader:
            if inject or enable:
                raise SetupFailed(
                    f"The laboratory machine {name} runs already, so nothing can be put into it.",
                    remedy=f"Stop it first: ./muster lab stop {name}",
                )
            return describe(settings, record)
        _start(settings, record, files, tuple(enable))
        return describe(settings, record)


def stop(settings: Settings, name: str, timeout: float = 30.0) -> None:
    """Shut a machine down; after `timeout` seconds it is killed. Its disk stays.

    A machine that does not run is cleared of what a crash left. Raises UnknownMachine.
    """
    record = load_record(settings, name)
    with machine_lock(settings, name):
        processes = find_processes(settings, record)
        if processes.leader:
            send_signal(processes.leader, _HALT)
            _wait_for_end(settings, record, timeout)
        clear_remains(settings, record)


def destroy(settings: Settings, name: str) -> None:
    """End a machine at once and remove its disk. Raises UnknownMachine."""
    record = load_record(settings, name)
    with machine_lock(settings, name):
        clear_remains(settings, record)
        shutil.rmtree(machine_folder(settings, name))


def crash(settings: Settings, name: str) -> None:
    """Kill a machine's PID 1, as a power cut would. Raises SetupFailed if it does not run."""
    record = load_record(settings, name)
    processes = find_processes(settings, record)
    if processes.leader is None:
        raise _not_running(name)
    send_signal(processes.leader, signal.SIGKILL)
    wait_until(
        lambda: not any(find_processes(settings, record).all()),
        what=f"the processes of {name} to end",
        timeout=10,
    )


def list_machines(settings: Settings) -> tuple[LabMachine, ...]:
    """Every machine of this home, by name."""
    return tuple(describe(settings, record) for record in list_records(settings))


def get_machine(settings: Settings, name: str) -> LabMachine:
    """One machine as it is now. Raises UnknownMachine."""
    return describe(settings, load_record(settings, name))


def console_command(settings: Settings, name: str, command: Sequence[str] = ()) -> list[str]:
    """What opens a root shell, or runs `command`, in a running machine. Raises SetupFailed."""
    machine = get_machine(settings, name)
    if machine.leader_pid is None:
        raise _not_running(name)
    enter = ["nsenter", f"--target={machine.leader_pid}", "--all"]
    terminal = f"TERM={os.environ.get('TERM', 'dumb')}"
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    inner = list(command) or ["bash", "--login"]
    return [*enter, "env", "--chdir=/root", "-i", terminal, path, "HOME=/root", "USER=root", *inner]


def describe(settings: Settings, record: MachineRecord) -> LabMachine:
    leader = find_processes(settings, record).leader
    return LabMachine(
        name=record.name,
        state="running" if leader else "stopped",
        address=record.address,
        leader_pid=leader.pid if leader else None,
        netns=lab_names(settings.home).machine_netns(record.number),
    )


def _start(
    settings: Settings,
    record: MachineRecord,
    files: tuple[FileSpec, ...],
    enable: tuple[str, ...],
) -> None:
    if not record.base.is_dir():
        raise SetupFailed(
            f"The base of the laboratory machine {record.name} is gone: {record.base}.",
            remedy=f"Destroy and boot it anew: ./muster lab destroy {record.name}",
        )
    clear_remains(settings, record)
    names, subnet = lab_names(settings.home), lab_subnet(settings)
    with lab_lock(settings):
        network.up(names, subnet)
        netns = network.attach(names, subnet, record.number)
    spec = LaunchSpec(
        name=record.name,
        machine=netns,
        base=record.base,
        folder=machine_folder(settings, record.name),
        netns_path=namespace_path(netns),
        cgroup_kind=cgroups.detect_kind(),
        cgroup=names.cgroup(record.number),
        first_files=_file_specs(machine_files(record.name, subnet)),
        files=files,
        enable=enable,
    )
    try:
        _launch(spec)
        wait_for_sshd(settings, record, _SSHD_TIMEOUT)
    except BaseException:
        clear_remains(settings, record)
        raise


def _launch(spec: LaunchSpec) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lab.launch"],
        input=spec.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        timeout=_LAUNCH_TIMEOUT,
    )
    if result.returncode != 0:
        raise SetupFailed(
            f"The laboratory machine {spec.name} could not be started: {result.stderr.strip()}",
            remedy="Overlayfs needs MUSTER_HOME on a plain disk file system, ext4 or xfs say.",
        )


def wait_for_sshd(settings: Settings, record: MachineRecord, timeout: float) -> None:
    """Wait until sshd greets from the machine. Raises SetupFailed with the console's last words."""
    netns = lab_names(settings.home).netns
    log = machine_folder(settings, record.name) / "console.log"

    def greets_or_died() -> bool:
        return _greets(netns, record.address) or not find_processes(settings, record).all()

    try:
        wait_until(greets_or_died, what=f"sshd on {record.name}", timeout=timeout)
        alive = find_processes(settings, record).leader is not None
    except DeadlineExceeded:
        alive = False
    if not alive:
        tail = " / ".join(log.read_text(errors="replace").splitlines()[-5:])
        raise SetupFailed(
            f"The laboratory machine {record.name} did not come up: {tail or 'it said nothing'}",
            remedy=f"Its whole console is in {log}.",
        )


def _greets(netns: str, address: str) -> bool:
    try:
        with connect(netns, address, _SSH_PORT, timeout=1.0) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _wait_for_end(settings: Settings, record: MachineRecord, timeout: float) -> None:
    try:
        wait_until(
            lambda: not any(find_processes(settings, record).all()),
            what=f"{record.name} to shut down",
            timeout=timeout,
        )
    except DeadlineExceeded:
        return  # clear_remains kills it


def _file_specs(files: Iterable[InjectedFile]) -> tuple[FileSpec, ...]:
    try:
        return tuple(
            FileSpec(path=file.path, content=base64.b64encode(file.content), mode=file.mode)
            for file in files
        )
    except ValidationError as error:
        raise InvalidRequest(
            f"A file cannot be put into a machine: {error.errors()[0]['msg']}.",
            remedy="Give a plain absolute path and a mode of four octal digits.",
        ) from error


def _not_running(name: str) -> SetupFailed:
    return SetupFailed(
        f"The laboratory machine {name} does not run.", remedy=f"./muster lab boot {name}"
    )
