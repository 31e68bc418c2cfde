"""The jobs: what was asked of Prefect, and what became of it."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import PlainTextResponse

from fleet import jobs, machines
from fleet.models import Job
from fleet.redaction import Redactor
from fleet.states import JobState, MachineState
from netboot import job_control
from netboot.access import ForOperators, Reader, job_for_reader
from netboot.orchestrator import LogLine
from netboot.problems import NoRunYet, documented
from netboot.services import JobId, MachineFilter, Use, utc_now

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])


class JobStatus(Job):
    """A job together with the state of its machine."""

    machine_state: MachineState


@router.get("", dependencies=[ForOperators], responses=documented(401, 408, 413, 422, 429, 500))
def list_jobs(
    services: Use, state: JobState | None = None, machine: MachineFilter = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 500,
) -> list[Job]:  # fmt: skip
    """The newest jobs, newest first."""
    with services.registry.read() as session:
        return jobs.listing(session, state=state, machine=machine, limit=limit)


@router.get("/{job_id}", responses=documented(401, 403, 404, 408, 413, 422, 429, 500))
def show_job(job_id: JobId, services: Use, token: Reader) -> JobStatus:
    """One job and its machine's state; for operators, and for the machine whose job it is."""
    with services.registry.read() as session:
        job = job_for_reader(session, token, job_id, now=utc_now())
        state = machines.get(session, job.machine_id).state
    return JobStatus(**job.model_dump(), machine_state=state)


@router.get(
    "/{job_id}/log",
    dependencies=[ForOperators],
    response_class=PlainTextResponse,
    responses=documented(401, 404, 408, 409, 413, 422, 429, 500, 502, 503)
    | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def show_log(job_id: JobId, services: Use) -> PlainTextResponse:
    """The log of the job's flow run and the runs it started, as Prefect has it."""
    with services.registry.read() as session:
        job = jobs.get(session, job_id)
    if job.flow_run_id is None:
        raise NoRunYet(
            f"Job {job.id} is {job.state} and Prefect has no run of it.",
            remedy="A queued job is handed over as soon as Prefect answers.",
        )
    lines = services.orchestrator.logs(job.flow_run_id)
    redact = Redactor()
    return PlainTextResponse("".join(f"{redact(_line(line))}\n" for line in lines))


@router.post(
    "/{job_id}/retry",
    dependencies=[ForOperators],
    responses=documented(401, 404, 408, 409, 413, 422, 429, 500, 502, 503),
)
def retry_job(job_id: JobId, services: Use) -> Job:
    """Let a failed or cancelled job run again, as Retry in Prefect's UI does."""
    job = job_control.retry(services.registry, services.orchestrator, job_id)
    services.wake_outbox()
    return job


@router.post(
    "/{job_id}/cancel",
    dependencies=[ForOperators],
    responses=documented(401, 404, 408, 409, 413, 422, 429, 500, 502, 503),
)
def cancel_job(job_id: JobId, services: Use) -> Job:
    """Cancel a job. One that runs is ended by its worker, which takes a moment."""
    return job_control.cancel(services.registry, services.orchestrator, job_id)


def _line(line: LogLine) -> str:
    return f"{line.timestamp:%F %T} {line.message}"
