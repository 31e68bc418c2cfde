"""Prefect as the control plane sees it: make, read, retry and cancel flow runs over its REST API.

The API's process must stay small, so it speaks HTTP and never imports Prefect.
"""

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fleet.errors import MusterError
from fleet.runs import machine_of
from fleet.settings import Settings

TIMEOUT_SECONDS = 15.0
_PAGE = 200
_SERVER_ERROR = 500

FINAL_STATES = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
FAILED_STATES = frozenset({"FAILED", "CRASHED"})
# Handed to a worker and not ended: a process ought to exist.
LIVE_STATES = frozenset({"PENDING", "RUNNING", "CANCELLING"})


class PrefectUnavailable(MusterError):
    """Prefect does not answer, or not yet: waiting can cure it."""

    slug = "prefect-unavailable"
    title = "Prefect does not answer"


class PrefectRefused(MusterError):
    """Prefect answered no: waiting will not cure it."""

    slug = "prefect-refused"
    title = "Prefect refused the request"


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StateChange(_Answer):
    """One entry of a run's state history."""

    id: str
    type: str
    name: str
    message: str | None = None
    timestamp: datetime


class FlowRun(_Answer):
    """A flow run; `deployment` is its deployment's name, empty when that is unknown."""

    id: str
    name: str
    deployment_id: str | None = None
    deployment: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    tags: tuple[str, ...] = ()
    run_count: int = 0
    state: StateChange | None = None

    @property
    def state_type(self) -> str:
        return self.state.type if self.state else "SCHEDULED"

    @property
    def machine(self) -> str:
        """The machine's name from the run's tags; `-` for a run about no single machine."""
        return machine_of(self.tags)


class LogLine(_Answer):
    timestamp: datetime
    level: int
    message: str


class _Deployment(_Answer):
    id: str
    name: str


class _SetStateAnswer(_Answer):
    status: str
    details: dict[str, Any] = Field(default_factory=dict)


_RUNS = TypeAdapter(tuple[FlowRun, ...])
_HISTORY = TypeAdapter(tuple[StateChange, ...])
_LOGS = TypeAdapter(tuple[LogLine, ...])
_DEPLOYMENTS = TypeAdapter(tuple[_Deployment, ...])


class Orchestrator:
    """A connection pool to one Prefect server; safe to use from several threads.

    Every method raises PrefectUnavailable (no answer, 5xx, nothing deployed yet) or
    PrefectRefused (another error of ours or Prefect's).
    """

    def __init__(self, settings: Settings) -> None:
        self._pool = settings.work_pool
        self._deployments: dict[str, str] = {}
        self._http = httpx.Client(
            base_url=f"{settings.prefect_url}/api",
            headers=_authorization(settings),
            timeout=TIMEOUT_SECONDS,
            # Prefect is a neighbour: a proxy from the environment has no business here.
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def healthy(self) -> bool:
        """Whether Prefect's API answers."""
        try:
            self._get("/health")
        except MusterError:
            return False
        return True

    def create_run(
        self,
        deployment: str,
        parameters: dict[str, Any],
        *,
        idempotency_key: str,
        name: str,
        tags: Sequence[str],
    ) -> FlowRun:
        """Make a run of `flow/deployment`; the same key again gives the run it made before."""
        flow, _, short = deployment.partition("/")
        found = self._get(f"/deployments/name/{flow}/{short}", missing_is_late=True)
        deployment_id = _Deployment.model_validate(found).id
        answer = self._post(
            f"/deployments/{deployment_id}/create_flow_run",
            {
                "name": name,
                "parameters": parameters,
                "idempotency_key": idempotency_key,
                "tags": list(tags),
                "state": {"type": "SCHEDULED"},
            },
        )
        return FlowRun.model_validate(answer)

    def runs(self, ids: Iterable[str]) -> dict[str, FlowRun]:
        """The runs with these ids, by id; those that Prefect does not have are left out."""
        wanted = sorted(set(ids))
        found: dict[str, FlowRun] = {}
        for start in range(0, len(wanted), _PAGE):
            page = wanted[start : start + _PAGE]
            found |= {run.id: run for run in self._filter({"id": {"any_": page}})}
        return found

    def live_runs(self) -> tuple[FlowRun, ...]:
        """The pool's runs for which a process ought to exist."""
        return self._filter({"state": {"type": {"any_": sorted(LIVE_STATES)}}}, in_pool=True)

    def recent_runs(self) -> tuple[FlowRun, ...]:
        """The pool's newest runs that no other run started, newest first (one page)."""
        return self._filter({"parent_task_run_id": {"is_null_": True}}, in_pool=True)

    def children(self, run_id: str) -> tuple[FlowRun, ...]:
        """The runs of the flows that a run has called."""
        return self._filter({"parent_flow_run_id": {"any_": [run_id]}})

    def history(self, run_id: str) -> tuple[StateChange, ...]:
        """Every state a run has had, oldest first."""
        answer = self._get("/flow_run_states/", params={"flow_run_id": run_id})
        return tuple(sorted(_HISTORY.validate_python(answer), key=lambda state: state.timestamp))

    def logs(
        self, run_id: str, *, offset: int = 0, limit: int | None = None
    ) -> tuple[LogLine, ...]:
        """The log of a run and the runs it started, oldest line first, from line `offset` on."""
        ids = [run_id, *(child.id for child in self.children(run_id))]
        lines: list[LogLine] = []
        while limit is None or len(lines) < limit:
            body = {
                "logs": {"flow_run_id": {"any_": ids}},
                "sort": "TIMESTAMP_ASC",
                "offset": offset + len(lines),
                "limit": _PAGE,
            }
            page = _LOGS.validate_python(self._post("/logs/filter", body))
            lines += page
            if len(page) < _PAGE:
                break
        return tuple(lines[:limit])

    def retry(self, run_id: str) -> None:
        """Let a finished run run again, as the UI's Retry does."""
        self._set_state(run_id, "SCHEDULED", "AwaitingRetry", "Retried through Muster")

    def cancel(self, run_id: str) -> None:
        """Ask the worker to end a run; one that no worker has taken is cancelled at once."""
        self._set_state(run_id, "CANCELLING", "Cancelling", "Cancelled through Muster", force=False)

    def settle(self, run_id: str, state_type: str, message: str) -> None:
        """Put a run whose process is gone into the final state that is true of it."""
        self._set_state(run_id, state_type, state_type.capitalize(), message)

    def _set_state(
        self, run_id: str, state_type: str, name: str, message: str, *, force: bool = True
    ) -> None:
        state = {"type": state_type, "name": name, "message": message}
        body = {"state": state, "force": force}
        answer = _SetStateAnswer.model_validate(self._post(f"/flow_runs/{run_id}/set_state", body))
        if answer.status not in {"ACCEPT", "REJECT"}:
            reason = str(answer.details.get("reason") or answer.status)
            raise PrefectRefused(f"Prefect did not set run {run_id} to {name}: {reason}")

    def _filter(self, flow_runs: dict[str, Any], *, in_pool: bool = False) -> tuple[FlowRun, ...]:
        body: dict[str, Any] = {
            "flow_runs": flow_runs,
            "limit": _PAGE,
            "sort": "EXPECTED_START_TIME_DESC",
        }
        if in_pool:
            body["work_pools"] = {"name": {"any_": [self._pool]}}
        runs = _RUNS.validate_python(self._post("/flow_runs/filter", body))
        return tuple(
            run.model_copy(update={"deployment": self._deployment_name(run.deployment_id)})
            for run in runs
        )

    def _deployment_name(self, deployment_id: str | None) -> str:
        if deployment_id is None:
            return ""
        if deployment_id not in self._deployments:
            answer = self._post("/deployments/filter", {"limit": _PAGE})
            found = _DEPLOYMENTS.validate_python(answer)
            self._deployments = {deployment.id: deployment.name for deployment in found}
        return self._deployments.get(deployment_id, "")

    def _get(
        self, path: str, *, params: dict[str, str] | None = None, missing_is_late: bool = False
    ) -> Any:
        return self._read("GET", path, params=params, missing_is_late=missing_is_late)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._read("POST", path, json=body)

    def _read(self, method: str, path: str, *, missing_is_late: bool = False, **kwargs: Any) -> Any:
        try:
            answer = self._http.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise PrefectUnavailable(
                f"Prefect does not answer at {self._http.base_url}: {type(error).__name__}.",
                remedy="It may be starting; see its log, or whether `./muster up` runs.",
            ) from error
        if answer.status_code >= _SERVER_ERROR:
            raise PrefectUnavailable(
                f"Prefect answered {answer.status_code} to {method} {path}.",
                remedy="See the log of the Prefect server.",
            )
        if answer.status_code == httpx.codes.NOT_FOUND and missing_is_late:
            raise PrefectUnavailable(
                f"Nothing is deployed at {path} yet.", remedy="Run: python -m flows.deploy"
            )
        if answer.is_error:
            raise PrefectRefused(
                f"Prefect answered {answer.status_code} to {method} {path}.",
                remedy="See the log of the Prefect server.",
            )
        return answer.json()


def _authorization(settings: Settings) -> dict[str, str]:
    if settings.prefect_auth_string is None:
        return {}
    secret = settings.prefect_auth_string.get_secret_value().encode()
    return {"Authorization": f"Basic {base64.b64encode(secret).decode()}"}
