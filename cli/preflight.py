"""What `up` sees to before it starts anything: folders, free ports, no leftovers."""

import errno
import os
import socket
from dataclasses import dataclass

import psutil

from cli.claim import run_dir, temporary_dir
from fleet import processes
from fleet.errors import SetupFailed
from fleet.settings import Settings

_GRACE_SECONDS = 8.0


@dataclass(frozen=True)
class Port:
    """A port that `up` needs, and how to choose another."""

    host: str
    number: int
    purpose: str
    option: str
    variable: str


def make_folders(settings: Settings) -> None:
    """Make the home's folders. Raises SetupFailed when this user may not write there."""
    temporary = temporary_dir(settings)
    private = [run_dir(settings), settings.ssh_key_file.parent, *([temporary] if temporary else [])]
    try:
        # Logs and registry are nobody else's business; an existing home keeps its owner's mode.
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (settings.logs_dir, settings.locks_dir, *private):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in private:
            if folder.is_relative_to(settings.home):
                folder.chmod(0o700)
        if not os.access(settings.home, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(settings.home))
    except OSError as error:
        raise SetupFailed(
            f"Muster's home cannot be written: {error.filename}: {error.strerror}.",
            remedy="Name another with --home DIR (MUSTER_HOME), or start as its owner.",
        ) from error


def needed_ports(settings: Settings) -> tuple[Port, ...]:
    return (
        Port(settings.api_host, settings.api_port, "the API", "--api-port", "MUSTER_API_PORT"),
        Port(
            settings.prefect_host, settings.prefect_port, "Prefect", "--prefect-port",
            "MUSTER_PREFECT_PORT",
        ),
    )  # fmt: skip


def check_ports(ports: tuple[Port, ...]) -> None:
    """Raise SetupFailed for a port that is taken, naming its holder and the way round."""
    seen: dict[int, Port] = {}
    for port in ports:
        if port.number in seen:
            raise SetupFailed(
                f"{seen[port.number].purpose} and {port.purpose} are both set to port "
                f"{port.number}.",
                remedy=f"Choose another: ./muster up {port.option} N, or {port.variable}=N.",
            )
        seen[port.number] = port
        problem = _problem(port)
        if problem is not None:
            raise problem


def _problem(port: Port) -> SetupFailed | None:
    remedy = f"Choose another: ./muster up {port.option} N, or {port.variable}=N."
    try:
        family = socket.getaddrinfo(port.host, port.number, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((port.host, port.number), family=family).close()
    except socket.gaierror as error:
        return SetupFailed(f"{port.host} is no address for {port.purpose}: {error.strerror}.")
    except OSError as error:
        where = f"Port {port.number} on {port.host}, which {port.purpose} needs,"
        if error.errno == errno.EADDRINUSE:
            return SetupFailed(f"{where} is taken by {_holder(port.number)}.", remedy=remedy)
        return SetupFailed(f"{where} cannot be had: {error.strerror}.", remedy=remedy)
    return None


def _holder(port: int) -> str:
    """The program that listens on a port, as far as this user may know it."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        connections = []
    for connection in connections:
        address = connection.laddr
        if connection.status != psutil.CONN_LISTEN or not address or not connection.pid:
            continue
        if address.port == port:
            try:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
            except psutil.Error:
                break
    return "another program"


def end_leftovers(settings: Settings) -> int:
    """End the processes that an `up` on this home left behind; returns how many there were."""
    left = processes.marked(processes.HOME_MARK, str(settings.home))
    return processes.end(left, grace=_GRACE_SECONDS) if left else 0
