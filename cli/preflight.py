"""What `up` sees to before it starts anything: one `up` per home, free ports, no leftovers."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from fleet import locks, processes
from fleet.errors import DeadlineExceeded, SetupFailed
from fleet.settings import Settings

_GRACE_SECONDS = 8.0


class Claim(BaseModel):
    """Who runs `up` on a home, for the second one to tell."""

    model_config = ConfigDict(frozen=True)

    pid: int
    since: datetime
    prefect_url: str
    api_url: str


@dataclass(frozen=True)
class Port:
    """A port that `up` needs, and how to choose another."""

    host: str
    number: int
    purpose: str
    option: str
    variable: str


def run_dir(settings: Settings) -> Path:
    """Where lock, sockets and generated configuration are; only its owner may look inside."""
    return settings.home / "run"


def make_folders(settings: Settings) -> None:
    """Make the home's folders. Raises SetupFailed when this user may not write there."""
    private = (run_dir(settings), settings.ssh_key_file.parent)
    try:
        for folder in (settings.home, settings.logs_dir, settings.locks_dir, *private):
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


@contextmanager
def claim(settings: Settings) -> Iterator[None]:
    """Be the only `up` on this home. Raises SetupFailed naming the one that runs."""
    record = run_dir(settings) / "up.json"
    try:
        with locks.hold(run_dir(settings) / "up.lock", what="this home", timeout=0):
            mine = Claim(
                pid=os.getpid(),
                since=datetime.now(UTC),
                prefect_url=settings.prefect_url,
                api_url=settings.api_url,
            )
            record.write_text(mine.model_dump_json())
            yield
            record.unlink(missing_ok=True)
    except DeadlineExceeded as error:
        raise SetupFailed(
            f"Muster runs already on {settings.home}{_who(record)}.",
            remedy="Stop it there with Ctrl-C, or name another home with --home DIR (MUSTER_HOME).",
        ) from error


def _who(record: Path) -> str:
    try:
        found = Claim.model_validate_json(record.read_text())
    except (OSError, ValidationError, json.JSONDecodeError):
        return ""
    return (
        f": process {found.pid} since {found.since.astimezone():%F %T}, "
        f"Prefect {found.prefect_url}, API {found.api_url}"
    )


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
