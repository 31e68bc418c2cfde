"""The flow run that this process works on: its settings, its records, its locks."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from fleet import locks, processes
from fleet.models import Machine
from fleet.runs import MACHINE_TAG
from fleet.settings import Settings, load_settings
from tasks.patience import Log

if TYPE_CHECKING:
    from flows.records import Records

_LEFTOVER_SECONDS = 5.0
_MOST_TAGS = 8
_current: ContextVar["Run"] = ContextVar("current_run")
# Prefect notes a run's end after the flow's body has returned. A lock given back before that would
# make a run that is ending look dead; the kernel gives it back with the process.
_held_for_life = ExitStack()


@dataclass(frozen=True)
class Run:
    """A top-level flow run and what its steps share; flows that it calls belong to it."""

    id: str
    settings: Settings
    records: "Records"


def current_run() -> Run:
    """The run of this process. Raises LookupError outside of a lifecycle flow."""
    return _current.get()


def flow_run_id() -> str:
    """The id of the flow run that the calling code belongs to. Raises LookupError outside."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise LookupError("not within a flow run")
    return str(context.flow_run.id)


def now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def entered(flow_run_id: str) -> Iterator[Run]:
    """Make `flow_run_id` the current run; a flow within a run changes nothing.

    The run's lock is held from now on for as long as this process lives.
    """
    run = _current.get(None)
    if run is not None:
        yield run
        return
    settings = load_settings()
    lock = locks.run_lock_path(settings.locks_dir, flow_run_id)
    _held_for_life.enter_context(
        locks.hold(lock, what=f"flow run {flow_run_id}", timeout=settings.lost_run_grace)
    )
    with ExitStack() as stack:
        # Its import is slow; by now Prefect shows the run as running.
        from flows.records import opened  # noqa: PLC0415

        run = Run(flow_run_id, settings, stack.enter_context(opened(settings)))
        token = _current.set(run)
        stack.callback(_current.reset, token)
        yield run


@contextmanager
def machines_held(run: Run, machines: Sequence[Machine], log: Log) -> Iterator[None]:
    """Hold the locks of the machines, and end what a dead run left working on them.

    Taken in the order of their ids, so that two runs never wait for each other. Raises
    DeadlineExceeded after `settings.lock_timeout` seconds.
    """
    with ExitStack() as stack:
        for machine in sorted(machines, key=lambda m: m.id):
            path = locks.machine_lock_path(run.settings.locks_dir, machine.id)
            stack.enter_context(
                locks.hold(
                    path, what=machine.name, timeout=run.settings.lock_timeout, waiting=log.info
                )
            )
        end_leftovers(machines, log)
        yield


def end_leftovers(machines: Sequence[Machine], log: Log) -> None:
    """End processes that still work on machines whose locks are ours: their run is dead."""
    left = processes.marked_with_machine(*(machine.id for machine in machines))
    if left:
        count = processes.end(left, grace=_LEFTOVER_SECONDS)
        log.warning("%d processes of a dead run ended", count)


def label_run(names: Sequence[str]) -> None:
    """Tag the top-level run with the machines it is about, unless it bears the tags already.

    A run about more than a handful is about the fleet, and bears none.
    """
    if len(names) > _MOST_TAGS:
        return
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.parent_task_run_id:
        return
    wanted = {f"{MACHINE_TAG}{name}" for name in names}
    if wanted <= set(context.flow_run.tags):
        return
    tags = sorted({*context.flow_run.tags, *wanted})
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=tags)
