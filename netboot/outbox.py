"""The outbox: hands queued jobs to Prefect, at a bounded rate, as often as it takes.

A job is queued in the same transaction as the call home that made it. Whatever happens to
Prefect meanwhile, the job waits here; its id is the idempotency key, so handing it over twice
makes one run.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from fleet import jobs
from fleet.models import Job
from fleet.registry import Registry
from fleet.runs import MACHINE_TAG
from fleet.settings import Settings
from fleet.states import JobState
from netboot.orchestrator import (
    FlowRun,
    Orchestrator,
    PrefectRefused,
    PrefectUnavailable,
)

logger = logging.getLogger(__name__)

HANDLE_CALL_HOME = "handle-call-home/handle-call-home"
# Looked at this often even when nobody rings: another process may have queued a job.
_IDLE_SECONDS = 5.0
_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 20.0
_BATCH = 50
# So many new jobs within so many seconds are a surge: every core is wanted for taking calls, and
# handing over waits, but never longer than the last of these.
_SURGE_JOBS = 20
_SURGE_SECONDS = 0.5
_LONGEST_HOLD_SECONDS = 15.0
_HOLD_STEP_SECONDS = 0.1


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, without jitter."""
    return min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** max(0, failures - 1))


def run_name(job: Job) -> str:
    """A flow run's name: the machine's, and the boot that called."""
    return f"{job.machine_name}-{(job.boot_id or job.id)[:8]}"


def is_surge(arrivals: Sequence[float], now: float) -> bool:
    """Whether the newest arrivals (seconds of one clock, oldest first) came in a surge."""
    newest = arrivals[-_SURGE_JOBS:]
    return len(newest) == _SURGE_JOBS and now - newest[0] < _SURGE_SECONDS


class Outbox:
    """A thread that empties the queue. `wake` tells it of a new job."""

    def __init__(self, settings: Settings, registry: Registry, orchestrator: Orchestrator) -> None:
        self._interval = 1.0 / settings.outbox_rate
        self._registry = registry
        self._orchestrator = orchestrator
        self._bell = threading.Event()
        self._stopping = threading.Event()
        self._failures = 0
        self._arrivals: deque[float] = deque(maxlen=_SURGE_JOBS)
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 20.0) -> None:
        """End the thread; what is queued stays queued."""
        self._stopping.set()
        self._bell.set()
        self._thread.join(timeout)

    def wake(self) -> None:
        """A job was queued."""
        self._arrivals.append(time.monotonic())
        self._bell.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._bell.clear()
            try:
                self._empty()
                wait = _IDLE_SECONDS
                self._failures = 0
            except PrefectUnavailable as error:
                wait = self._back_off(error.detail)
            except Exception:
                logger.exception("the outbox could not hand over its jobs")
                wait = self._back_off("see the log")
            # A new job does not shorten the wait for a Prefect that is down.
            (self._stopping if self._failures else self._bell).wait(wait)

    def _back_off(self, reason: str) -> float:
        self._failures += 1
        wait = backoff(self._failures)
        logger.warning("Prefect is not available (%s); next try in %.1f s", reason, wait)
        return wait * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret

    def _empty(self) -> None:
        while batch := self._queued():
            for job in batch:
                self._let_callers_first()
                if self._stopping.is_set():
                    return
                began = time.monotonic()
                self.hand_over(job)
                self._stopping.wait(max(0.0, began + self._interval - time.monotonic()))

    def _let_callers_first(self) -> None:
        deadline = time.monotonic() + _LONGEST_HOLD_SECONDS
        while is_surge(tuple(self._arrivals), now := time.monotonic()) and now < deadline:
            if self._stopping.wait(_HOLD_STEP_SECONDS):
                return

    def _queued(self) -> list[Job]:
        with self._registry.read() as session:
            return jobs.queued(session, limit=_BATCH)

    def hand_over(self, job: Job) -> None:
        """Make the flow run of one job and note it. Raises PrefectUnavailable."""
        try:
            run = self._orchestrator.create_run(
                HANDLE_CALL_HOME,
                {"machine_id": job.machine_id, "job_id": job.id},
                idempotency_key=job.id,
                name=run_name(job),
                tags=[f"{MACHINE_TAG}{job.machine_name}"],
            )
        except PrefectRefused as error:
            logger.error("job %s: %s", job.id, error)
            self._end(job, str(error))
            return
        self._note(job, run)

    def _note(self, job: Job, run: FlowRun) -> None:
        with self._registry.write() as session:
            noted = jobs.submitted(session, job.id, run.id, now=datetime.now(UTC))
        if noted.state is JobState.CANCELLED:
            # Cancelled between our look at the queue and now: the run must not begin.
            self._orchestrator.cancel(run.id)
            return
        logger.info("job %s of %s is flow run %s", job.id, job.machine_name, run.id)

    def _end(self, job: Job, reason: str) -> None:
        with self._registry.write() as session:
            jobs.ended(session, job.id, JobState.FAILED, now=datetime.now(UTC), reason=reason)
