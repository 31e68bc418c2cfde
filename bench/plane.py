"""A control plane of the benchmark's own, started as people start it: with `./muster up`."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from fleet.registry import Registry, open_registry
from fleet.settings import CHECKOUT, Settings, load_settings

START_SECONDS = 240
STOP_SECONDS = 120


@dataclass(frozen=True)
class Plane:
    """A running control plane, its settings, and its registry opened beside it."""

    settings: Settings
    registry: Registry
    up: int
    """The process id of `./muster up` itself."""


@contextmanager
def control_plane(*arguments: str, **variables: str) -> Iterator[Plane]:
    """`./muster up` with `arguments` and settings `variables` in an empty home, until the end."""
    home = Path(tempfile.mkdtemp(prefix="muster-bench-"))
    settings = load_settings(home=home, api_port=free_port(), prefect_port=free_port())
    environment = os.environ | settings.to_environment() | variables
    with (home / "up.out").open("wb") as output:
        up = subprocess.Popen(
            [CHECKOUT / "muster", "up", *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        wait_for("the control plane", lambda: _is_up(up, settings), START_SECONDS)
        registry = open_registry(settings.registry_url)
        yield Plane(settings, registry, up.pid)
        registry.close()
    except BaseException:
        print((home / "up.out").read_text(errors="replace")[-4000:])
        raise
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(STOP_SECONDS)
        shutil.rmtree(home, ignore_errors=True)


def wait_for(what: str, ready: Callable[[], bool], timeout: float) -> None:
    """Poll `ready` every tenth of a second; raises TimeoutError naming `what`."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not there after {timeout:.0f} s")
        time.sleep(0.1)


def _is_up(up: subprocess.Popen[bytes], settings: Settings) -> bool:
    if up.poll() is not None:
        raise RuntimeError(f"./muster up ended with {up.returncode}")
    try:
        if httpx.get(f"{settings.api_url}/readyz", timeout=5).status_code != httpx.codes.OK:
            return False
        pool = f"{settings.prefect_url}/api/work_pools/{settings.work_pool}/workers/filter"
        workers = httpx.post(pool, json={}, timeout=5)
    except httpx.TransportError:
        return False
    return workers.is_success and any(w["status"] == "ONLINE" for w in workers.json())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
