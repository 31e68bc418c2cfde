"""The API's own process: how it starts, where it listens, how it ends."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest

from fleet.errors import SetupFailed
from fleet.namespaces import connect
from fleet.settings import CHECKOUT, Settings
from netboot import serve


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., Popen[str]]]:
    """Starts API processes with these settings, and ends those that a test left."""
    started: list[Popen[str]] = []

    def begin(**changes: str) -> Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "netboot.serve"], cwd=CHECKOUT,
            env=os.environ | settings.to_environment() | changes,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _end(process: Popen[str], how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(how)
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def _until_alive(process: Popen[str], url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        try:
            assert 200 == httpx.get(f"{url}/healthz", trust_env=False).status_code
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the API did not answer in 30 s"
            time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_process_serves_and_ends_in_peace(
    settings: Settings, start, how: signal.Signals
) -> None:
    """It migrates, serves while Prefect is down, keeps quiet about requests, and ends with 0."""
    process = start()
    _until_alive(process, settings.api_url)
    httpx.get(f"{settings.api_url}/api/v1/jobs?machine=a-secret-in-a-query", trust_env=False)
    status, output = _end(process, how)
    assert 0 == status, output
    assert "a-secret-in-a-query" not in output
    assert "Traceback" not in output
    assert Path(settings.home / "registry.db").exists()


def test_the_process_does_not_load_prefect(settings: Settings) -> None:
    """The API stays small: Prefect is spoken to over HTTP and never imported."""
    code = "import sys, netboot.serve; sys.exit('prefect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False)
    assert 0 == done.returncode


def test_a_port_in_use_is_named_with_its_setting(settings: Settings, start) -> None:
    """Another program on the port is an error that names the port and MUSTER_API_PORT."""
    with socket.create_server(("127.0.0.1", settings.api_port)):
        process = start()
        output, _ = process.communicate(timeout=30)
    assert 1 == process.returncode
    assert f"Port {settings.api_port} on 127.0.0.1 is in use" in output
    assert "MUSTER_API_PORT" in output
    assert "Traceback" not in output


def test_a_wrong_setting_is_named_without_its_value(start) -> None:
    """A setting that does not fit is named; its value, which may be a secret, is not shown."""
    process = start(MUSTER_API_KEYS="not-a-digest-but-a-key")
    output, _ = process.communicate(timeout=30)
    assert 1 == process.returncode
    assert "MUSTER_API_KEYS" in output
    assert "not-a-digest-but-a-key" not in output


def test_an_address_that_is_not_ours_is_named(settings: Settings) -> None:
    """An address of another host is an error that names it and the setting."""
    elsewhere = settings.model_copy(update={"api_host": "192.0.2.1"})
    with pytest.raises(SetupFailed, match=r"192\.0\.2\.1.*MUSTER_API_HOST"):
        serve.open_sockets(elsewhere)


@pytest.mark.parametrize("bind", ["no-such-namespace=10.0.0.1:8100", "nonsense"])
def test_a_bind_that_cannot_be_is_named_and_leaves_no_socket(settings: Settings, bind: str) -> None:
    """A namespace that does not exist is an error that names it; the port is free again."""
    wrong = settings.model_copy(update={"api_namespace_binds": (bind,)})
    with pytest.raises(SetupFailed, match=bind.partition("=")[0]):
        serve.open_sockets(wrong)
    for opened in serve.open_sockets(settings):
        opened.close()


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace of this test's own, with its loopback up."""
    name = f"muster-api-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: enters a network namespace")
def test_it_serves_in_a_namespace_as_on_the_host(settings: Settings, start, namespace: str) -> None:
    """A bind in a namespace answers there, through no route between the two."""
    process = start(MUSTER_API_NAMESPACE_BINDS=f"{namespace}=127.0.0.1:8218")
    _until_alive(process, settings.api_url)
    with connect(namespace, "127.0.0.1", 8218, timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = connection.makefile("rb").read()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 8218), timeout=5)
    status, output = _end(process)
    assert b"200" in answer.splitlines()[0]
    assert 0 == status, output


def test_errors_are_logged_and_not_raised(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """`main` answers an error of the set-up with exit status 1 and one line with the remedy."""
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MUSTER_RATE_LIMIT", "often")
    with caplog.at_level(logging.ERROR):
        assert 1 == serve.main()
    assert ["MUSTER_RATE_LIMIT" in record.getMessage() for record in caplog.records] == [True]
