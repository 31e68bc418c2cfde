"""supervisord as `up` uses it: its configuration, its process, and what it says of its programs.

Its configuration holds no secret: programs inherit their environment. It ends with `up`, also
when `up` is killed, and stops its programs in order then.
"""

import ctypes
import shlex
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from fleet.errors import DeadlineExceeded, SetupFailed
from fleet.settings import CHECKOUT

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_CALL_SECONDS = 10.0
# A unix socket's address has room for 108 bytes, the last of them zero.
_LONGEST_SOCKET_PATH = 107
_ALREADY_STARTED = 60
_NOT_RUNNING = 70

_HEAD = """\
[supervisord]
nodaemon=true
silent=true
logfile={logs}/supervisord.log
logfile_maxbytes=1MB
logfile_backups=2
pidfile={run}/supervisord.pid
childlogdir={logs}
directory={checkout}
{user}
[unix_http_server]
file={run}/supervisor.sock
chmod=0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
_PROGRAM = """
[program:{name}]
command={command}
priority={priority}
autostart={autostart}
autorestart=true
startsecs={start_seconds}
startretries=8
stopwaitsecs={stop_seconds}
killasgroup=true
redirect_stderr=true
stdout_logfile={logs}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


@dataclass(frozen=True)
class Program:
    """A process to keep alive. Programs with a higher `priority` start later and stop earlier.

    It counts as running after `start_seconds`; one that ends earlier is started again, each time
    a second later, and given up after eight tries. It has `stop_seconds` from SIGTERM to SIGKILL.
    """

    name: str
    command: tuple[str, ...]
    priority: int
    autostart: bool = True
    start_seconds: int = 2
    stop_seconds: int = 10


@dataclass(frozen=True)
class ProgramState:
    """What supervisord says of a program: STARTING, RUNNING, BACKOFF, STOPPED, FATAL …"""

    name: str
    state: str
    pid: int
    started: int
    """Seconds of the Unix clock."""
    note: str


def render_config(programs: Sequence[Program], *, run_dir: Path, logs_dir: Path, root: bool) -> str:
    """supervisord's configuration for these programs. Pure."""
    places = {"run": _literal(run_dir), "logs": _literal(logs_dir), "checkout": _literal(CHECKOUT)}
    parts = [_HEAD.format(**places, user="user=root\n" if root else "")]
    for program in programs:
        values = {
            "name": program.name,
            "command": _literal(shlex.join(program.command)),
            "priority": program.priority,
            "autostart": str(program.autostart).lower(),
            "start_seconds": program.start_seconds,
            "stop_seconds": program.stop_seconds,
        }
        parts.append(_PROGRAM.format(**places, **values))
    return "".join(parts)


def _literal(value: object) -> str:
    """`value` with supervisord's own marks for expansion taken as they stand."""
    return str(value).replace("%", "%%")


class Supervisor:
    """A running supervisord; `start` makes one."""

    def __init__(self, process: subprocess.Popen[bytes], run_dir: Path, logs_dir: Path) -> None:
        self.process = process
        self.logs_dir = logs_dir
        self._socket = run_dir / "supervisor.sock"

    def alive(self) -> bool:
        return self.process.poll() is None

    def states(self) -> dict[str, ProgramState]:
        """Every program by name. Raises SetupFailed when supervisord is gone."""
        answer = self._call("getAllProcessInfo")
        return {
            info["name"]: ProgramState(
                name=info["name"],
                state=info["statename"],
                pid=info["pid"],
                started=info["start"],
                note=info["spawnerr"] or info["description"],
            )
            for info in answer
        }

    def start(self, name: str) -> None:
        """Start a program; one that runs is left alone."""
        self._call("startProcess", name, False, allowed=_ALREADY_STARTED)

    def stop(self, name: str, *, timeout: float) -> None:
        """Stop a program and wait for its end. Raises DeadlineExceeded after `timeout` seconds."""
        self._call("stopProcess", name, False, allowed=_NOT_RUNNING)
        deadline = time.monotonic() + timeout
        while self.states()[name].pid:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"Waited {timeout:.0f} s for {name} to stop.")
            time.sleep(_POLL_SECONDS)

    def shut_down(self, *, timeout: float) -> None:
        """End supervisord, and thereby every program, in order; kill it after `timeout` seconds."""
        if self.alive():
            self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self, name: str, lines: int = 12) -> str:
        """The end of a program's log."""
        return tail(self.logs_dir / f"{name}.log", lines)

    def _call(self, method: str, *arguments: Any, allowed: int | None = None) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == allowed:
                return None
            raise SetupFailed(
                f"supervisord refused {method} {arguments}: {fault.faultString}."
            ) from fault
        except (OSError, xmlrpc.client.ProtocolError) as error:
            raise SetupFailed(
                "The supervisor of Muster's processes does not answer.",
                remedy=f"Its log is {self.logs_dir / 'supervisord.log'}; start Muster again.",
            ) from error


def start(
    programs: Sequence[Program],
    *,
    run_dir: Path,
    logs_dir: Path,
    environment: Mapping[str, str],
    root: bool,
) -> Supervisor:
    """Start supervisord with its programs and wait until it answers. Raises SetupFailed.

    Call this from the main thread: the kernel ends supervisord with the thread that started it.
    """
    _check_socket_path(run_dir / "supervisor.sock")
    config = run_dir / "supervisord.conf"
    config.write_text(render_config(programs, run_dir=run_dir, logs_dir=logs_dir, root=root))
    with (logs_dir / "supervisord.out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=CHECKOUT,
            env=dict(environment),
            # Ctrl-C at the terminal is for `up` alone, which stops things in order.
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread of ours holds a lock here
        )
    supervisor = Supervisor(process, run_dir, logs_dir)
    deadline = time.monotonic() + _CALL_SECONDS
    while not _answers(run_dir / "supervisor.sock"):
        if not supervisor.alive() or time.monotonic() > deadline:
            supervisor.shut_down(timeout=_CALL_SECONDS)
            raise SetupFailed(
                f"supervisord did not start: {tail(logs_dir / 'supervisord.out', 5)}",
                remedy=f"Its configuration is {config}.",
            )
        time.sleep(_POLL_SECONDS)
    return supervisor


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file; empty when there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _check_socket_path(path: Path) -> None:
    if len(str(path).encode()) > _LONGEST_SOCKET_PATH:
        raise SetupFailed(
            f"{path.parent.parent} is too long a path for the supervisor's socket.",
            remedy="Set MUSTER_HOME, or use --home, to a shorter one.",
        )
