"""What the API answers from Prefect, asked of a real Prefect server without a worker."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleet import jobs
from fleet.models import Job
from fleet.prefect_environment import prefect_environment
from fleet.registry import Registry, open_registry
from fleet.settings import CHECKOUT, Settings
from fleet.states import JobState
from netboot.orchestrator import Orchestrator
from netboot.outbox import Outbox
from tests.conftest import free_port

START_SECONDS = 90.0


@pytest.fixture(scope="module")
def prefect_port() -> Iterator[int]:
    """The port of a Prefect server that has the deployment which the outbox wants."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="muster-prefect-") as home:
        settings = Settings(home=Path(home), prefect_port=port)
        with Path(home, "server.log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start"], cwd=CHECKOUT,
                env=os.environ | prefect_environment(settings), stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            _deploy(settings, server)
            yield port
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _deploy(settings: Settings, server: "subprocess.Popen[bytes]") -> None:
    orchestrator = Orchestrator(settings)
    deadline = time.monotonic() + START_SECONDS
    while not orchestrator.healthy():
        assert server.poll() is None, "Prefect's server ended while it started"
        assert time.monotonic() < deadline, f"Prefect did not answer in {START_SECONDS} s"
        time.sleep(0.2)
    orchestrator.close()
    name = "handle-call-home"
    flow = _made(settings, "/flows/", {"name": name}, deadline)
    _made(settings, "/deployments/", {"name": name, "flow_id": flow["id"]}, deadline)


def _made(settings: Settings, path: str, body: dict[str, Any], deadline: float) -> Any:
    """What Prefect made; its database may be locked for a moment while it starts."""
    while True:
        url = f"{settings.prefect_url}/api{path}"
        answer = httpx.post(url, json=body, trust_env=False, timeout=30)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return answer.raise_for_status().json()
        assert time.monotonic() < deadline, f"Prefect did not take {path} in {START_SECONDS} s"
        time.sleep(0.2)


@pytest.fixture
def handed_over(
    serve_api: Callable[..., Any], sqlite_url: str, settings: Settings, prefect_port: int
) -> Iterator[tuple[Any, Job]]:
    """An API before that Prefect, and a job that the outbox has handed over."""
    registry = open_registry(sqlite_url)
    api = serve_api(registry, settings, prefect_port=prefect_port)
    token = api.add("node-3")["token"]
    job_id = api.call_home(token, api.report("node-3")).json()["job_id"]
    orchestrator = Orchestrator(api.settings)
    with registry.read() as session:
        queued = jobs.get(session, job_id)
    Outbox(api.settings, registry, orchestrator).hand_over(queued)
    orchestrator.close()
    yield api, _job(registry, job_id)
    registry.close()


def _job(registry: Registry, job_id: str) -> Job:
    with registry.read() as session:
        return jobs.get(session, job_id)


def _prefect(api: Any, method: str, path: str, body: Any = None) -> Any:
    url = f"{api.settings.prefect_url}/api{path}"
    return httpx.request(method, url, json=body, trust_env=False, timeout=30).json()


def _run_state(api: Any, job: Job) -> tuple[str, str]:
    state = _prefect(api, "GET", f"/flow_runs/{job.flow_run_id}")["state"]
    return state["type"], state["name"]


def test_with_prefect_up_muster_is_ready(handed_over) -> None:
    """/readyz is 200 once the database and Prefect answer."""
    api, _ = handed_over
    assert (200, {"status": "ok"}) == (
        api.http.get("/readyz").status_code,
        api.http.get("/readyz").json(),
    )


def test_the_log_is_prefects_without_secrets(handed_over) -> None:
    """A job's log holds its run's lines in order, as plain text, with secrets masked."""
    api, job = handed_over
    url = f"/api/v1/jobs/{job.id}/log"
    empty = api.http.get(url, headers=api.as_operator)
    assert (200, "") == (empty.status_code, empty.text)
    lines = [
        {
            "name": "test", "level": 20, "message": message, "flow_run_id": job.flow_run_id,
            "timestamp": f"2026-11-24T10:00:0{number}Z",
        }
        for number, message in enumerate(["first", "password=hunter2 <b>"])
    ]  # fmt: skip
    httpx.post(f"{api.settings.prefect_url}/api/logs/", json=lines, trust_env=False)
    answer = api.http.get(url, headers=api.as_operator)
    assert "text/plain; charset=utf-8" == answer.headers["content-type"]
    assert "2026-11-24 10:00:00 first\n2026-11-24 10:00:01 password=[redacted] <b>\n" == answer.text


def test_cancel_reaches_the_run(handed_over) -> None:
    """Cancelling a job that Prefect has asks Prefect to end its run."""
    api, job = handed_over
    answer = api.http.post(f"/api/v1/jobs/{job.id}/cancel", headers=api.as_operator)
    assert (200, "submitted") == (answer.status_code, answer.json()["state"])
    assert _run_state(api, job)[0] in {"CANCELLING", "CANCELLED"}


def test_retry_awakes_the_same_run(handed_over) -> None:
    """Retrying a failed job lets its own run run again, as the UI's Retry does."""
    api, job = handed_over
    failed = {"state": {"type": "FAILED", "name": "Failed"}, "force": True}
    _prefect(api, "POST", f"/flow_runs/{job.flow_run_id}/set_state", failed)
    with api.registry.write() as session:
        jobs.ended(session, job.id, JobState.FAILED, now=datetime.now(UTC), reason="the role")
    answer = api.http.post(f"/api/v1/jobs/{job.id}/retry", headers=api.as_operator)
    assert 200 == answer.status_code, answer.text
    assert ("SCHEDULED", "AwaitingRetry") == _run_state(api, job)
    assert job.flow_run_id == _job(api.registry, job.id).flow_run_id


def test_retry_of_a_run_that_is_gone_makes_another(handed_over) -> None:
    """A job whose run was deleted from Prefect goes back into the outbox."""
    api, job = handed_over
    httpx.delete(
        f"{api.settings.prefect_url}/api/flow_runs/{job.flow_run_id}", trust_env=False
    ).raise_for_status()
    with api.registry.write() as session:
        jobs.ended(session, job.id, JobState.FAILED, now=datetime.now(UTC), reason="gone")
    answer = api.http.post(f"/api/v1/jobs/{job.id}/retry", headers=api.as_operator)
    assert (200, "queued") == (answer.status_code, answer.json()["state"])
    assert _job(api.registry, job.id).flow_run_id is None
