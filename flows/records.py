"""The registry as the flows use it: what they read of it, and the ends that they note there.

SQLAlchemy takes a while to import, so this file is imported when a run has begun, not before.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from fleet import events, jobs, machines
from fleet.models import Machine
from fleet.registry import Registry, open_registry
from fleet.settings import Settings
from fleet.states import JobState


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

    def note(
        self,
        chosen: Sequence[Machine],
        *,
        kind: str,
        message: str,
        data: Mapping[str, str | int],
    ) -> None:
        """Add an event to the timeline of each machine."""
        with self._registry.write() as session:
            for machine in chosen:
                events.record(
                    session, at=now(), kind=kind, message=message, machine_id=machine.id,
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
