"""From a failed flow run to its entries in TODO.md and the end of its job.

Hooks and the recorder share this: what happened is read from Prefect's API, so that it does not
matter which process tells of it, nor how often.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from fleet import todo
from fleet.errors import UnknownJob
from fleet.models import Frozen
from fleet.redaction import Redactor
from fleet.runs import EXCERPT_LINES, NOT_RECORDED, excerpt_of, machine_of, reason_of
from fleet.settings import Settings
from fleet.states import JobState
from tasks.secrets import forms_of, read_secrets

JOB_PARAMETER = "job_id"
FAILED = frozenset({StateType.FAILED, StateType.CRASHED})
_ENDED = FAILED | {StateType.COMPLETED, StateType.CANCELLED}
_NEVER = datetime.fromtimestamp(0, UTC)
_RUN_SUFFIX = re.compile(r"-[0-9a-f]{1,3}$")


class Attempt(Frozen):
    """A failed attempt of a run, numbered from 1."""

    number: int
    at: datetime
    reason: str


class FailedRun(Frozen):
    """What an entry in TODO.md needs of a run. `machine` is `-` for a run about several."""

    id: str
    flow: str
    machine: str
    step: str
    job_id: str | None
    is_child: bool
    is_failed: bool
    attempts: tuple[Attempt, ...]
    excerpt: tuple[str, ...]


def record(settings: Settings, flow_run_id: str) -> int:
    """End a failed run's job and write the entries of its failed attempts that TODO.md lacks.

    Returns how many were written.
    """
    with get_client(sync_client=True) as client:
        failed = observe(client, flow_run_id)
    if failed is None or failed.is_child or failed.flow in NOT_RECORDED:
        return 0
    if failed.is_failed and failed.job_id and failed.attempts:
        # A run that never began has no hook, and its job would wait for the reconciler.
        with suppress(UnknownJob):
            end_job(settings, failed.job_id, JobState.FAILED, failed.attempts[-1].reason)
    redact = Redactor(forms_of(read_secrets(settings.secrets_file)))
    entries = entries_of(failed, redact, settings.flow_run_url(failed.id))
    return sum(todo.record(settings.todo_file, entry) for entry in entries)


def end_job(settings: Settings, job_id: str, outcome: JobState, reason: str) -> None:
    """Tell the registry that the job of a run has ended so. Raises UnknownJob."""
    from flows.records import opened  # noqa: PLC0415 - slow, and not needed to begin a run

    with opened(settings) as records:
        records.job_ended(job_id, outcome, reason)


def entries_of(failed: FailedRun, redact: Redactor, run_url: str) -> list[todo.Entry]:
    """One entry for each failed attempt; the excerpt belongs to the last. Pure."""
    last = len(failed.attempts)
    return [
        todo.Entry(
            at=attempt.at,
            flow=failed.flow,
            machine=failed.machine,
            step=failed.step if attempt.number == last else failed.flow,
            reason=redact(attempt.reason),
            flow_run_id=failed.id,
            attempt=attempt.number,
            run_url=run_url,
            excerpt=redact("\n".join(failed.excerpt)) if attempt.number == last else "",
        )
        for attempt in failed.attempts
    ]


def observe(client: SyncPrefectClient, flow_run_id: str) -> FailedRun | None:
    """Read a run, its history, its unfinished step and its last log lines; None if it is gone."""
    try:
        run = client.read_flow_run(UUID(flow_run_id))
    except ObjectNotFound:
        return None
    history = sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    failed = todo.attempts(history, lambda state: state.type in FAILED)
    job_id = run.parameters.get(JOB_PARAMETER)
    flow = client.read_flow(run.flow_id).name
    return FailedRun(
        id=str(run.id),
        flow=flow,
        machine=machine_of(run.tags),
        step=_step(client, run) or flow,
        job_id=None if job_id is None else str(job_id),
        is_child=run.parent_task_run_id is not None,
        is_failed=run.state_type in FAILED,
        attempts=tuple(
            Attempt(number=n, at=state.timestamp, reason=reason_of(state.message, state.name or ""))
            for n, state in failed
        ),
        excerpt=_excerpt(client, run),
    )


def _step(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """The name of the step that was begun and not finished, the latest of several."""
    steps = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    begun = [step for step in steps if step.state_type not in {StateType.COMPLETED, None}]
    if not begun:
        return None
    latest = max(begun, key=lambda step: (step.expected_start_time or _NEVER).timestamp())
    return _RUN_SUFFIX.sub("", latest.name)


def _excerpt(client: SyncPrefectClient, run: FlowRun) -> tuple[str, ...]:
    ids = [run.id, *(child.id for child in _children(client, run.id))]
    newest = client.read_logs(
        LogFilter(flow_run_id=LogFilterFlowRunId(any_=ids)),
        limit=EXCERPT_LINES,
        sort=LogSort.TIMESTAMP_DESC,
    )
    return excerpt_of(line.message for line in reversed(newest))


def _children(client: SyncPrefectClient, flow_run_id: UUID) -> list[FlowRun]:
    parent = FlowRunFilterParentFlowRunId(any_=[flow_run_id])
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parent))


def settle_children(client: SyncPrefectClient, flow_run_id: UUID, message: str) -> None:
    """Put the flows that a dead run had called into state Crashed, for nobody else will."""
    for child in _children(client, flow_run_id):
        if child.state_type not in _ENDED:
            client.set_flow_run_state(child.id, Crashed(message=message), force=True)
