"""What every flow has in common: its lock, and what follows its end.

`lifecycle_flow` makes a Prefect flow of a function. Its hooks are called by Prefect with exactly
the keywords `flow`, `flow_run` and `state`; those for a crash and a cancellation run in the worker,
after the flow's process has ended.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flows import Flow
from prefect.logging.handlers import APILogWorker
from prefect.logging.loggers import flow_run_logger

from fleet import processes, todo
from fleet.errors import MusterError
from fleet.runs import machine_of, reason_of
from fleet.settings import Settings, load_settings
from fleet.states import JobState
from flows import failures
from flows.runs import entered, flow_run_id, now

P = ParamSpec("P")
R = TypeVar("R")

_ENDING_SECONDS = 5.0
_FLUSH_SECONDS = 5.0


def lifecycle_flow(
    *, name: str, flow_run_name: str | None = None
) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a flow that holds its run's lock while it lives and whose every end is recorded.

    A failure becomes an entry in TODO.md and ends the run's job (parameter `job_id`), a
    cancellation ends the job alone, a success ticks the entries that it heals. Its result is
    kept, so that a retried parent does not call it again.
    """

    def decorate(body: Callable[P, R]) -> Flow[P, R]:
        @wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with entered(flow_run_id()):
                return body(*args, **kwargs)

        return prefect.flow(
            name=name,
            flow_run_name=flow_run_name,
            persist_result=True,
            result_serializer="json",
            on_completion=[tick_entries],
            on_failure=[record_failure],
            on_crashed=[record_crash],
            on_cancellation=[record_cancellation],
        )(run)

    return decorate


def tick_entries(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """The run succeeded: tick what it heals in TODO.md."""
    del state
    if _is_child(flow_run):
        return
    settings = load_settings()
    with get_client(sync_client=True) as client:
        tags = client.read_flow_run(flow_run.id).tags
    ticked = todo.tick(
        settings.todo_file, flow_run_id=str(flow_run.id), flow=flow.name,
        machine=machine_of(tags), now=now(),
    )  # fmt: skip
    if ticked:
        flow_run_logger(flow_run, flow).info("entries in TODO.md ticked")


def record_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """The run failed: end its job and write the entry."""
    if _is_child(flow_run):
        return
    APILogWorker.drain_all(timeout=_FLUSH_SECONDS)
    _record(load_settings(), flow, flow_run, state)


def record_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """The run's process died: end what it left, its job, and write the entry."""
    if _is_child(flow_run):
        return
    settings = load_settings()
    _end_processes(flow_run)
    with get_client(sync_client=True) as client:
        current = client.read_flow_run(flow_run.id).state_type
        failures.settle_children(client, flow_run.id, "the run that called it crashed")
    if current in {StateType.CANCELLING, StateType.CANCELLED}:
        return
    _record(settings, flow, flow_run, state)


def record_cancellation(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """The run was cancelled: end what it left and its job; nobody has to mend anything."""
    if _is_child(flow_run):
        return
    _end_processes(flow_run)
    _end_job(load_settings(), flow_run, JobState.CANCELLED, state.message or "cancelled")
    with get_client(sync_client=True) as client:
        failures.settle_children(client, flow_run.id, "the run that called it was cancelled")
    flow_run_logger(flow_run, flow).info("cancelled; the machine is free")


def _record(settings: Settings, flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    log = flow_run_logger(flow_run, flow)
    # The registry first: it needs no Prefect, and the layers behind this one mend the rest.
    reason = reason_of(state.message, state.name or state.type.value)
    _end_job(settings, flow_run, JobState.FAILED, reason)
    if failures.record(settings, str(flow_run.id)):
        log.info("recorded in %s", settings.todo_file)


def _end_job(settings: Settings, flow_run: FlowRun, outcome: JobState, reason: str) -> None:
    job_id = (flow_run.parameters or {}).get(failures.JOB_PARAMETER)
    if job_id is None:
        return
    try:
        failures.end_job(settings, str(job_id), outcome, reason)
    except MusterError as error:
        # The entry in TODO.md is owed all the same.
        flow_run_logger(flow_run).warning("the job of this run: %s", error)


def _end_processes(flow_run: FlowRun) -> None:
    left = processes.marked(processes.RUN_MARK, str(flow_run.id))
    processes.end(left, grace=_ENDING_SECONDS)


def _is_child(flow_run: FlowRun) -> bool:
    return flow_run.parent_task_run_id is not None
