"""Fixtures of the integration tests: the API, served by uvicorn on a loopback port."""

import base64
import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from fleet.registry import Registry
from fleet.settings import Settings
from netboot.app import create_app
from netboot.orchestrator import Orchestrator

OPERATOR_KEY = "an-operators-key"


def host_key(seed: str) -> str:
    """A well-formed Ed25519 public host key, the same for the same seed."""
    kind = b"ssh-ed25519"
    point = hashlib.sha256(seed.encode()).digest()
    blob = len(kind).to_bytes(4, "big") + kind + len(point).to_bytes(4, "big") + point
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@dataclass(frozen=True)
class Api:
    """A running API; `http` speaks to it without credentials."""

    settings: Settings
    registry: Registry
    http: httpx.Client
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.api_port}"

    @property
    def as_operator(self) -> dict[str, str]:
        return bearer(OPERATOR_KEY)

    def add(self, name: str) -> dict[str, str]:
        """Add a machine; the answer holds `machine_id`, `token` and `command`."""
        answer = self.http.post("/api/v1/machines", json={"name": name}, headers=self.as_operator)
        assert 201 == answer.status_code, answer.text
        return answer.json()

    def report(self, name: str, **changes: Any) -> dict[str, Any]:
        """The body of a call home of machine `name`."""
        body: dict[str, Any] = {
            "hostname": name,
            "boot_id": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
            "ssh_host_keys": [host_key(name)],
        }
        return body | changes

    def call_home(self, token: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post("/api/v1/call-home", json=body, headers=bearer(token))


@pytest.fixture
def serve_api(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """Serves an API over a registry; keyword arguments are settings."""
    stops: list[Callable[[], None]] = []

    def serve(registry: Registry, settings: Settings, **overrides: Any) -> Api:
        values = settings.model_dump() | {
            "api_keys": (hashlib.sha256(OPERATOR_KEY.encode()).hexdigest(),),
            "rate_limit": "100000/minute",
        }
        chosen = Settings(**(values | overrides))
        _write_operator_key(chosen)
        orchestrator = Orchestrator(chosen)
        app = create_app(chosen, registry, orchestrator)
        config = uvicorn.Config(
            app, host=chosen.api_host, port=chosen.api_port, log_config=None,
            access_log=False, proxy_headers=False, server_header=False, ws="none",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, name="api", daemon=True)
        thread.start()
        http = httpx.Client(
            base_url=f"http://127.0.0.1:{chosen.api_port}", timeout=20, trust_env=False
        )

        def stop() -> None:
            http.close()
            server.should_exit = True
            thread.join(20)
            orchestrator.close()

        stops.append(stop)
        _wait_until_started(server, thread)
        return Api(chosen, registry, http, server)

    yield serve
    for stop in stops:
        stop()


@pytest.fixture
def api(serve_api: Callable[..., Api], registry: Registry, settings: Settings) -> Api:
    """The API over an empty registry, once on each database."""
    return serve_api(registry, settings)


@pytest.fixture
def sqlite_api(
    serve_api: Callable[..., Api],
    make_registry: Callable[[str], Registry],
    sqlite_url: str,
    settings: Settings,
) -> Api:
    """The API over an empty registry on SQLite."""
    return serve_api(make_registry(sqlite_url), settings)


def _write_operator_key(settings: Settings) -> None:
    public = settings.ssh_key_file.with_name(f"{settings.ssh_key_file.name}.pub")
    public.parent.mkdir(parents=True, exist_ok=True)
    public.write_text(f"{host_key('operator')} operator@control\n", encoding="utf-8")


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the API ended while it started"
        assert time.monotonic() < deadline, "the API did not start in 20 s"
        time.sleep(0.02)
