"""Jobs in the registry: the outbox's queue, and what a flow run made of each."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleet import enrolment, events, machines
from fleet.errors import UnknownJob
from fleet.models import Job
from fleet.states import (
    JOB_TRANSITIONS,
    JobState,
    MachineState,
    check_job_transition,
)
from fleet.tables import JobRow, MachineRow


def get(session: Session, job_id: str, *, lock: bool = False) -> Job:
    """The job with this id; with `lock` it stays as it is until the transaction ends.

    Raises UnknownJob.
    """
    return Job.model_validate(_row(session, job_id, lock=lock))


def unknown(job_id: str) -> UnknownJob:
    """The error for a job that does not exist, or not for whoever asks."""
    return UnknownJob(f"There is no job {job_id[:80]!r}.", remedy="See: muster job list")


def listing(
    session: Session, *, state: JobState | None = None, machine: str | None = None, limit: int = 500
) -> list[Job]:
    """The newest jobs, newest first; `machine` is a name or an id."""
    query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id).limit(limit)
    if state is not None:
        query = query.where(JobRow.state == state)
    if machine is not None:
        query = query.join(JobRow.machine).where(
            (MachineRow.id == machine) | (MachineRow.name == machine)
        )
    return [Job.model_validate(row) for row in session.scalars(query)]


def queued(session: Session, *, limit: int) -> list[Job]:
    """The oldest jobs that Prefect has not been given yet."""
    query = (
        select(JobRow)
        .where(JobRow.state == JobState.QUEUED)
        .order_by(JobRow.created_at, JobRow.id)
        .limit(limit)
    )
    return [Job.model_validate(row) for row in session.scalars(query)]


def of_flow_run(session: Session, flow_run_id: str) -> Job | None:
    row = session.scalar(select(JobRow).where(JobRow.flow_run_id == flow_run_id).limit(1))
    return None if row is None else Job.model_validate(row)


def submitted(session: Session, job_id: str, flow_run_id: str, *, now: datetime) -> Job:
    """Note the flow run that was made for a job.

    A run may start before this is noted; then the job keeps its later state.
    """
    row = _row(session, job_id, lock=True)
    row.flow_run_id = flow_run_id
    row.submitted_at = row.submitted_at or now
    if row.state == JobState.QUEUED:
        row.state = JobState.SUBMITTED
        events.record(
            session, at=now, kind="submitted", message="handed to Prefect",
            machine_id=row.machine_id, job_id=row.id, data={"flow_run_id": flow_run_id},
        )  # fmt: skip
    return Job.model_validate(row)


def started(session: Session, job_id: str, flow_run_id: str, *, now: datetime) -> Job:
    """A flow run began to work on the job: the job runs and its machine is being configured.

    Raises UnknownJob, IllegalTransition (a retired machine).
    """
    row = _row(session, job_id, lock=True)
    if row.state != JobState.RUNNING:
        check_job_transition(row.id, JobState(row.state), JobState.RUNNING)
        row.state = JobState.RUNNING
        row.attempts += 1
    row.flow_run_id = flow_run_id
    row.started_at, row.finished_at, row.error = now, None, None
    machines.transition(
        session, row.machine_id, MachineState.CONFIGURING, now=now, job_id=row.id,
        message=f"attempt {row.attempts}: being configured",
    )  # fmt: skip
    return Job.model_validate(row)


def succeeded(session: Session, job_id: str, *, now: datetime) -> Job:
    """The machine is ready: job, machine and token end together."""
    row = _row(session, job_id, lock=True)
    if row.state != JobState.SUCCEEDED:
        check_job_transition(row.id, JobState(row.state), JobState.SUCCEEDED)
        row.state, row.finished_at, row.error = JobState.SUCCEEDED, now, None
    machines.transition(
        session, row.machine_id, MachineState.READY, now=now, message="ready", job_id=row.id
    )
    enrolment.spend_tokens(session, row.machine_id, now=now)
    return Job.model_validate(row)


def ended(
    session: Session,
    job_id: str,
    outcome: JobState,
    *,
    now: datetime,
    reason: str,
    attempt: int | None = None,
) -> Job:
    """The job failed or was cancelled (`outcome`). Its machine fails with it, for `reason`,
    unless it has become ready, was not being worked on, or another job of it is running.

    Nothing changes for a job that has ended, nor when `attempt` names an attempt that is over.
    """
    row = _row(session, job_id, lock=True)
    old = JobState(row.state)
    if outcome not in JOB_TRANSITIONS[old] or attempt not in {None, row.attempts}:
        return Job.model_validate(row)
    row.state, row.finished_at, row.error = outcome, now, reason
    session.flush()
    events.record(
        session, at=now, kind=f"job-{outcome}", message=reason, machine_id=row.machine_id,
        job_id=row.id,
    )  # fmt: skip
    state = MachineState(row.machine.state)
    works = state in {MachineState.CALLED_HOME, MachineState.CONFIGURING}
    if old is not JobState.QUEUED and works and not _other_running(session, row):
        machines.transition(
            session, row.machine_id, MachineState.FAILED, now=now, message=f"job {outcome}",
            reason=reason, job_id=row.id,
        )  # fmt: skip
    return Job.model_validate(row)


def requeued(session: Session, job_id: str, *, now: datetime) -> Job:
    """Put an ended job back into the outbox (its flow run is gone or never was).

    Raises IllegalTransition when the job is running or succeeded.
    """
    row = _row(session, job_id, lock=True)
    check_job_transition(row.id, JobState(row.state), JobState.QUEUED)
    row.state, row.flow_run_id, row.finished_at, row.error = JobState.QUEUED, None, None, None
    events.record(
        session, at=now, kind="requeued", message="queued again", machine_id=row.machine_id,
        job_id=row.id,
    )  # fmt: skip
    return Job.model_validate(row)


def unfinished(session: Session) -> list[Job]:
    """Jobs that Prefect has and that have not ended, as far as the registry knows."""
    query = select(JobRow).where(JobRow.state.in_([JobState.SUBMITTED, JobState.RUNNING]))
    return [Job.model_validate(row) for row in session.scalars(query)]


def counts(session: Session) -> dict[str, int]:
    """How many jobs are in each state."""
    tally = dict.fromkeys(JobState, 0)
    for state in session.scalars(select(JobRow.state)):
        tally[JobState(state)] += 1
    return {str(state): count for state, count in tally.items()}


def _other_running(session: Session, row: JobRow) -> bool:
    query = select(JobRow.id).where(
        JobRow.machine_id == row.machine_id,
        JobRow.state == JobState.RUNNING,
        JobRow.id != row.id,
    )
    return session.scalar(query.limit(1)) is not None


def _row(session: Session, job_id: str, *, lock: bool = False) -> JobRow:
    query = select(JobRow).where(JobRow.id == job_id)
    if lock:
        # What was read before the lock was held may have changed meanwhile.
        query = query.with_for_update(of=JobRow).execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise unknown(job_id)
    return row
