"""Looks at one machine: its row, its newest job, and what its run's log says."""

from collections import deque
from dataclasses import dataclass

from cli.control_plane import raise_if_lost
from cli.progress import Look
from cli.supervisor import Supervisor
from fleet import jobs, machines
from fleet.errors import MusterError, UnknownMachine
from fleet.models import Job, Machine
from fleet.registry import Registry
from netboot.orchestrator import Orchestrator

_LINES_KEPT = 15


def find_machine(registry: Registry, name: str) -> Machine | None:
    """The machine of this name, if the registry has one."""
    with registry.read() as session:
        try:
            return machines.get(session, name)
        except UnknownMachine:
            return None


@dataclass(frozen=True)
class Boot:
    """A machine that was booted, and its newest job before that.

    `calls_home` says that it will call: a ready machine does not.
    """

    name: str
    job_before: str | None
    calls_home: bool

    def is_stale(self, job: Job | None) -> bool:
        """Whether its newest job is one from before the boot though another is to come."""
        return self.calls_home and (job is None or job.id == self.job_before)


class Watch:
    """Follows one machine; each look reads what is new in its run's log."""

    def __init__(
        self,
        registry: Registry,
        prefect: Orchestrator,
        running: Supervisor,
        boot: Boot,
    ) -> None:
        self._registry = registry
        self._prefect = prefect
        self._running = running
        self._boot = boot
        self._run_id: str | None = None
        self._read = 0
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)

    def look(self) -> Look:
        """The machine as it is now. Raises SetupFailed when the control plane is lost."""
        raise_if_lost(self._running)
        with self._registry.read() as session:
            machine = machines.get(session, self._boot.name)
            newest = jobs.listing(session, machine=machine.id, limit=1)
        job = newest[0] if newest else None
        look = Look(machine, job, stale=self._boot.is_stale(job))
        if not look.stale:
            self._read_log(look.run_id)
        return look.with_log(self._lines[-1] if self._lines else "")

    def last_lines(self) -> str:
        """The end of the log of the run that was looked at last."""
        return "\n".join(self._lines)

    def _read_log(self, run_id: str | None) -> None:
        if run_id != self._run_id:
            self._run_id, self._read = run_id, 0
            self._lines.clear()
        if run_id is None:
            return
        try:
            lines = self._prefect.logs(run_id, offset=self._read)
        except MusterError:
            return  # Prefect is being restarted; the next look reads on
        self._read += len(lines)
        # The first line tells it; what follows is a traceback.
        self._lines.extend(line.message.splitlines()[0] for line in lines if line.message.strip())
