"""The proxy's process: found, started alone when no supervisor has one, stopped."""

import http.client
import os
import signal
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fleet.errors import DeadlineExceeded, SetupFailed
from fleet.namespaces import connect
from fleet.settings import CHECKOUT, Settings
from lab import network
from lab.addresses import PROXY_PORT, lab_names, lab_subnet
from lab.processes import (
    ProcessMark,
    is_alive,
    kill_and_wait,
    mark_process,
    send_signal,
    wait_until,
)
from lab.store import lab_folder, lab_lock, write_whole

_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 5.0
_HTTP_OK = 200


class ProxyRecord(BaseModel):
    """Which process is the proxy; `standalone` if no supervisor would start it again."""

    model_config = ConfigDict(frozen=True)

    process: ProcessMark
    standalone: bool


def record_proxy(settings: Settings, *, standalone: bool) -> None:
    """Write down that this process is the proxy."""
    mark = mark_process(os.getpid())
    assert mark is not None  # noqa: S101 - this process is alive
    lab_folder(settings).mkdir(parents=True, exist_ok=True)
    record = ProxyRecord(process=mark, standalone=standalone)
    write_whole(_record_file(settings), record.model_dump_json())


def find_proxy(settings: Settings) -> ProxyRecord | None:
    """The proxy of this laboratory, if its process lives."""
    try:
        record = ProxyRecord.model_validate_json(_record_file(settings).read_text())
    except (FileNotFoundError, ValidationError):
        return None
    return record if is_alive(record.process) else None


def ensure_proxy(settings: Settings) -> None:
    """See that the network is up and a proxy answers in it, starting one alone if none does.

    Raises SetupFailed with the proxy's last words.
    """
    with lab_lock(settings):
        network.up(lab_names(settings.home), lab_subnet(settings))
        if answers(settings):
            return
        log = settings.logs_dir / "lab-proxy.log"
        _start_alone(settings, log)
        try:
            wait_until(
                lambda: answers(settings), what="the laboratory's proxy", timeout=_START_TIMEOUT
            )
        except DeadlineExceeded as error:
            tail = " / ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise SetupFailed(
                f"The laboratory's proxy did not start: {tail or 'it said nothing'}",
                remedy=f"Its whole log is {log}.",
            ) from error


def stop_proxy(settings: Settings) -> None:
    """End the proxy if there is one, whoever started it."""
    record = find_proxy(settings)
    if record is not None:
        send_signal(record.process, signal.SIGTERM)
        try:
            wait_until(
                lambda: not is_alive(record.process), what="the proxy", timeout=_STOP_TIMEOUT
            )
        except DeadlineExceeded:
            kill_and_wait([record.process], what="the proxy")
    _record_file(settings).unlink(missing_ok=True)


def answers(settings: Settings) -> bool:
    """Whether a proxy answers on the gateway, inside the laboratory's namespace."""
    gateway = lab_subnet(settings).gateway
    connection = http.client.HTTPConnection(gateway, PROXY_PORT)
    try:
        connection.sock = connect(lab_names(settings.home).netns, gateway, PROXY_PORT, timeout=2.0)
        connection.request("GET", "/healthz")
        return connection.getresponse().status == _HTTP_OK
    except (OSError, SetupFailed, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _start_alone(settings: Settings, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        subprocess.run(
            ["setsid", "--fork", sys.executable, "-m", "lab.proxy", "--standalone"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=CHECKOUT,
            env=os.environ | settings.to_environment(),
            check=True,
        )


def _record_file(settings: Settings) -> Path:
    return lab_folder(settings) / "proxy.json"
