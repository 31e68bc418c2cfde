"""The reconciler: makes the registry, TODO.md and Prefect agree with what is true.

Hooks and automations miss some ends: a run whose process and worker both died, a state set by
hand, a failure while Prefect was away. So at start and at intervals this thread looks at the
processes and at the runs' whole state history (a current state forgets the failure before a
retry) and mends what differs. Deciding is pure; doing is idempotent.
"""

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

from fleet import jobs, locks, processes, todo
from fleet.redaction import Redactor
from fleet.registry import Registry
from fleet.runs import NOT_RECORDED, excerpt_of, reason_of
from fleet.settings import Settings
from fleet.states import JobState
from netboot.orchestrator import (
    FAILED_STATES,
    FINAL_STATES,
    FlowRun,
    LogLine,
    Orchestrator,
    PrefectUnavailable,
    StateChange,
)

logger = logging.getLogger(__name__)

LOST = "its process is gone: killed, or the control node went down"
_ENDING_SECONDS = 10.0


def lost_state(run: FlowRun, *, held: bool, now: datetime, grace: float) -> str | None:
    """The final state of a run that Prefect believes alive and whose process is gone, else None.

    `held` says whether a process holds the run's lock; a run younger in its state than `grace`
    seconds may still be starting.
    """
    if held or run.state is None or (now - run.state.timestamp).total_seconds() < grace:
        return None
    return "CANCELLED" if run.state_type == "CANCELLING" else "CRASHED"


def is_stray(run: FlowRun, *, now: datetime, grace: float) -> bool:
    """Whether a run whose process still lives ended more than `grace` seconds ago."""
    if run.state is None or run.state_type not in FINAL_STATES:
        return False
    return (now - run.state.timestamp).total_seconds() >= grace


def job_end(run: FlowRun | None) -> tuple[JobState, str] | None:
    """How an unfinished job ended, judged by its flow run (None: Prefect has none), or None."""
    if run is None:
        return JobState.FAILED, "its flow run is gone from Prefect; muster job retry makes another"
    if run.state_type in FAILED_STATES:
        return JobState.FAILED, _reason(run.state)
    if run.state_type == "CANCELLED":
        return JobState.CANCELLED, "cancelled"
    if run.state_type == "COMPLETED":
        return JobState.FAILED, "its flow run was set to Completed without making it ready"
    return None


def failures(history: Sequence[StateChange]) -> list[tuple[int, StateChange]]:
    """The failed attempts in a run's history, numbered from 1."""
    return todo.attempts(history, lambda state: state.type in FAILED_STATES)


class Reconciler:
    """A thread that reconciles at start and every `settings.reconcile_every` seconds."""

    def __init__(self, settings: Settings, registry: Registry, orchestrator: Orchestrator) -> None:
        self._settings = settings
        self._registry = registry
        self._orchestrator = orchestrator
        self._stopping = threading.Event()
        self._seen: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 20.0) -> None:
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.reconcile()
            except PrefectUnavailable as error:
                logger.info("not reconciled: %s", error.detail)
            except Exception:
                logger.exception("the reconciler failed and will try again")
            self._stopping.wait(self._settings.reconcile_every)

    def reconcile(self) -> None:
        """One pass. Raises PrefectUnavailable, with what was done so far kept."""
        self._settle_lost_runs()
        self._end_stray_processes()
        self._end_jobs()
        self._record_failures()

    def _settle_lost_runs(self) -> None:
        now = datetime.now(UTC)
        for run in self._orchestrator.live_runs():
            held = locks.is_held(locks.run_lock_path(self._settings.locks_dir, run.id))
            state = lost_state(run, held=held, now=now, grace=self._settings.lost_run_grace)
            # A run that ended meanwhile had noted its end before its lock was free.
            if state is None or not self._is_still(run):
                continue
            left = processes.marked(processes.RUN_MARK, run.id)
            ended = processes.end(left, grace=_ENDING_SECONDS)
            logger.warning("run %s is lost (%d processes ended): %s", run.name, ended, state)
            # Its flows lived in the same process, and no other pass would look at them.
            for child in self._orchestrator.children(run.id):
                if child.state_type not in FINAL_STATES:
                    self._orchestrator.settle(child.id, state, LOST)
            self._orchestrator.settle(run.id, state, LOST)

    def _is_still(self, run: FlowRun) -> bool:
        """Whether the run is in the very state in which it was seen."""
        now = self._orchestrator.runs([run.id]).get(run.id)
        return now is not None and now.state == run.state

    def _end_stray_processes(self) -> None:
        """End the processes of runs that have ended by decree: Prefect leaves them running."""
        held = locks.held_runs(self._settings.locks_dir)
        now = datetime.now(UTC)
        for run in self._orchestrator.runs(held).values():
            if is_stray(run, now=now, grace=self._settings.lost_run_grace):
                left = processes.marked(processes.RUN_MARK, run.id)
                left += processes.marked(processes.PREFECT_RUN_MARK, run.id)
                ended = processes.end(left, grace=_ENDING_SECONDS)
                logger.warning("run %s is %s: %d processes ended", run.name, run.state_type, ended)

    def _end_jobs(self) -> None:
        with self._registry.read() as session:
            unfinished = jobs.unfinished(session)
        runs = self._orchestrator.runs(job.flow_run_id for job in unfinished if job.flow_run_id)
        for job in unfinished:
            if job.flow_run_id is None:
                continue
            end = job_end(runs.get(job.flow_run_id))
            if end is not None:
                outcome, reason = end
                with self._registry.write() as session:
                    jobs.ended(
                        session, job.id, outcome, now=datetime.now(UTC), reason=reason,
                        attempt=job.attempts,
                    )  # fmt: skip
                logger.info("job %s of %s: %s", job.id, job.machine_name, outcome)

    def _record_failures(self) -> None:
        runs = self._orchestrator.recent_runs()
        for run in reversed(runs):
            if run.state is None or self._seen.get(run.id) == run.state.id:
                continue
            if run.deployment not in NOT_RECORDED:
                self._record(run)
            self._seen[run.id] = run.state.id
        self._tick_healed(runs)

    def _tick_healed(self, runs: Sequence[FlowRun]) -> None:
        """Tick what a success has healed; an entry may have been written after the success."""
        path = self._settings.todo_file
        unhealed = [entry for entry in todo.read(path) if entry.open]
        for run in reversed(runs):
            if run.state is None or run.state_type != "COMPLETED":
                continue
            subject = {"flow_run_id": run.id, "flow": run.deployment, "machine": run.machine}
            if any(todo.heals(**subject, failed=entry) for entry in unhealed):
                todo.tick(path, **subject, now=run.state.timestamp)

    def _record(self, run: FlowRun) -> None:
        failed = failures(self._orchestrator.history(run.id))
        if not failed:
            return
        known = {
            (entry.flow_run_id, entry.attempt) for entry in todo.read(self._settings.todo_file)
        }
        missing = [(n, state) for n, state in failed if (run.id, n) not in known]
        if missing:
            excerpt = _excerpt(self._orchestrator.logs(run.id))
            for attempt, state in missing:
                todo.record(self._settings.todo_file, self._entry(run, attempt, state, excerpt))

    def _entry(self, run: FlowRun, attempt: int, state: StateChange, excerpt: str) -> todo.Entry:
        return todo.Entry(
            at=state.timestamp,
            flow=run.deployment,
            machine=run.machine,
            step=run.deployment,
            reason=Redactor()(_reason(state)),
            flow_run_id=run.id,
            attempt=attempt,
            run_url=self._settings.flow_run_url(run.id),
            excerpt=excerpt,
        )


def _reason(state: StateChange | None) -> str:
    return "no reason was given" if state is None else reason_of(state.message, state.name)


def _excerpt(lines: Sequence[LogLine]) -> str:
    return Redactor()("\n".join(excerpt_of(line.message for line in lines)))
