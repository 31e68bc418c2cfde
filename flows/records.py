"""The registry as the flows use it: what they read of it, and the ends that they note there.

SQLAlchemy takes a while to import, so this file is imported when a run has begun, not before.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from fleet import events, jobs, machines
from fleet.models import Machine
from fleet.registry import Registry, open_registry
from fleet.settings import Settings
from fleet.states import JobState

PLAYBOOK_FINISHED = "playbook-finished"
_RECENT_EVENTS = 50
# A machine's id, a line for its timeline, and the figures that belong to it.
Note = tuple[str, str, Mapping[str, str | int]]


class Records:
    """An open registry. Each method is one transaction and may raise what fleet's rules raise."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def machine(self, machine_id: str) -> Machine:
        """The machine with this id. Raises UnknownMachine."""
        with self._registry.read() as session:
            return machines.get(session, machine_id)

    def fleet(self) -> list[Machine]:
        """All living machines, by name."""
        with self._registry.read() as session:
            return machines.listing(session)

    def job_started(self, job_id: str, flow_run_id: str) -> None:
        """The run works on the job. Raises UnknownJob, IllegalTransition (a retired machine)."""
        with self._registry.write() as session:
            jobs.started(session, job_id, flow_run_id, now=now())

    def job_succeeded(self, job_id: str) -> None:
        """The job is done and its machine is ready."""
        with self._registry.write() as session:
            jobs.succeeded(session, job_id, now=now())

    def job_ended(self, job_id: str, outcome: JobState, reason: str) -> None:
        """The job failed or was cancelled, and its machine with it."""
        with self._registry.write() as session:
            jobs.ended(session, job_id, outcome, now=now(), reason=reason)

    def tasks_of_last_run(self, machine_id: str, playbook: str) -> int | None:
        """How many tasks the playbook of this name had when it last finished on the machine."""
        with self._registry.read() as session:
            for event in reversed(events.timeline(session, machine_id, limit=_RECENT_EVENTS)):
                data = event.data or {}
                if event.kind == PLAYBOOK_FINISHED and data.get("playbook") == playbook:
                    return int(data.get("tasks", 0)) or None
        return None

    def note(self, kind: str, notes: Iterable[Note]) -> None:
        """Add the notes to the timelines of their machines."""
        with self._registry.write() as session:
            for machine_id, message, data in notes:
                events.record(
                    session, at=now(), kind=kind, message=message, machine_id=machine_id,
                    data=dict(data),
                )  # fmt: skip


def now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def opened(settings: Settings) -> Iterator[Records]:
    """The records of the settings' registry. Raises SetupFailed."""
    registry = open_registry(settings.registry_url)
    try:
        yield Records(registry)
    finally:
        registry.close()
