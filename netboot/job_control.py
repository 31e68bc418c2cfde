"""Retry and cancel a job, whether it waits in the outbox or has a flow run at Prefect.

The API and the command line both come here, so a job is retried the same way from everywhere.
"""

from datetime import UTC, datetime

from fleet import jobs
from fleet.models import Job
from fleet.registry import Registry
from fleet.states import JobState, check_job_transition
from netboot.orchestrator import Orchestrator


def retry(registry: Registry, orchestrator: Orchestrator, job_id: str) -> Job:
    """Let an ended job run again: its flow run if Prefect has one, else a new one.

    A job that succeeded, waits or runs is left alone. Raises UnknownJob, IllegalTransition,
    PrefectUnavailable, PrefectRefused.
    """
    with registry.read() as session:
        job = jobs.get(session, job_id)
    check_job_transition(job.id, job.state, JobState.QUEUED)
    run_id = job.flow_run_id
    if run_id is not None and run_id in orchestrator.runs([run_id]):
        orchestrator.retry(run_id)
        with registry.read() as session:
            return jobs.get(session, job_id)
    with registry.write() as session:
        return jobs.requeued(session, job_id, now=datetime.now(UTC))


def cancel(registry: Registry, orchestrator: Orchestrator, job_id: str) -> Job:
    """Cancel a job: at once while it waits in the outbox, else by asking Prefect to end its run.

    Raises UnknownJob, IllegalTransition, PrefectUnavailable, PrefectRefused.
    """
    with registry.write() as session:
        # Locked: the outbox must not hand it over between this look and the end of it.
        job = jobs.get(session, job_id, lock=True)
        check_job_transition(job.id, job.state, JobState.CANCELLED)
        if job.flow_run_id is None:
            return jobs.ended(
                session, job_id, JobState.CANCELLED, now=datetime.now(UTC), reason="cancelled"
            )
    orchestrator.cancel(job.flow_run_id)
    return job
