"""`./muster job`: the work that Prefect does for machines."""

import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleet.models import Job
    from fleet.registry import Registry
    from fleet.states import JobState
    from netboot.orchestrator import LogLine, Orchestrator

app = typer.Typer(help="Jobs: list, show, log, retry, cancel.", no_args_is_help=True)

JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id, or enough of its beginning.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

_SHORT = 8
_FOLLOW_SECONDS = 1.0
# Prefect ships a run's last lines after the run's end.
_LAST_LINES_SECONDS = 4.0


@app.command("list")
def list_jobs(
    as_json: AsJson = False,
    state: Annotated[
        str | None, typer.Option(help="Only jobs in this state, such as failed.")
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Only jobs of this machine.")] = None,
) -> None:
    """List the newest jobs, newest first."""
    from cli.registry import registry
    from cli.render import print_json, print_table, since
    from fleet import jobs

    wanted = _job_state(state)
    with registry() as opened, opened.read() as session:
        found = jobs.listing(session, state=wanted, machine=machine)
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("There are no such jobs.")
        return
    now = datetime.now(UTC)
    rows = [
        (job.id, job.machine_name, job.state, job.attempts, since(job.created_at, now), job.error)
        for job in found
    ]
    print_table(("job", "machine", "state", "attempts", "made", "error"), rows)


@app.command("show")
def show_job(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job and where its run stands in Prefect's UI."""
    from cli.registry import registry, settings
    from cli.render import print_json, print_table

    loaded = settings()
    with registry(loaded) as opened:
        job = _find(opened, job_id)
    url = loaded.flow_run_url(job.flow_run_id) if job.flow_run_id else None
    facts = job.model_dump(mode="json" if as_json else "python") | {"run_url": url}
    if as_json:
        print_json(facts)
    else:
        print_table(("job", job.id), [(name, value) for name, value in facts.items()])


@app.command("log")
def print_log(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")
    ] = False,
) -> None:
    """Print the log of the job's run."""
    from cli.registry import registry, settings
    from netboot.orchestrator import Orchestrator

    loaded = settings()
    with registry(loaded) as opened, closing(Orchestrator(loaded)) as prefect:
        job = _find(opened, job_id)
        if not follow:
            _print_lines(prefect.logs(_run_of(job)))
            return
        job = _follow(opened, prefect, job)
    typer.echo(f"The job {job.state}.", err=True)


@app.command("retry")
def retry_job(job_id: JobId) -> None:
    """Run a failed or cancelled job again; what its run had finished is not repeated."""
    from cli.registry import registry, settings
    from netboot import job_control
    from netboot.orchestrator import Orchestrator

    loaded = settings()
    with registry(loaded) as opened, closing(Orchestrator(loaded)) as prefect:
        job = job_control.retry(opened, prefect, _find(opened, job_id).id)
    typer.echo(f"Job {job.id} of {job.machine_name} will run again.")
    typer.echo(f"Follow it: muster job log -f {job.id[:_SHORT]}")


@app.command("cancel")
def cancel_job(job_id: JobId) -> None:
    """Cancel a job: one that runs is ended with its Ansible processes."""
    from cli.registry import registry, settings
    from fleet.states import JobState
    from netboot import job_control
    from netboot.orchestrator import Orchestrator

    loaded = settings()
    with registry(loaded) as opened, closing(Orchestrator(loaded)) as prefect:
        job = job_control.cancel(opened, prefect, _find(opened, job_id).id)
    ended = job.state is JobState.CANCELLED
    typer.echo(
        f"Job {job.id} of {job.machine_name} is {'cancelled' if ended else 'being cancelled'}."
    )


def _find(registry: "Registry", job_id: str) -> "Job":
    """The job with this id or, among the newest, the only one whose id begins so."""
    from fleet import jobs
    from fleet.errors import InvalidRequest

    with registry.read() as session:
        begun = [job for job in jobs.listing(session) if job.id.startswith(job_id)]
        if len(begun) > 1:
            raise InvalidRequest(
                f"{len(begun)} jobs begin with {job_id[:80]!r}.", remedy="Give more of the id."
            )
        return begun[0] if begun else jobs.get(session, job_id)


def _run_of(job: "Job") -> str:
    from fleet.errors import InvalidRequest

    if job.flow_run_id is None:
        raise InvalidRequest(
            f"Job {job.id} has no run and so no log yet; it is {job.state}.",
            remedy=f"Follow it: muster job log -f {job.id[:_SHORT]}",
        )
    return job.flow_run_id


def _follow(registry: "Registry", prefect: "Orchestrator", job: "Job") -> "Job":
    """Print the log as it grows, until job and run have ended and the last lines have come."""
    printed = 0
    ended_at: float | None = None
    while ended_at is None or time.monotonic() < ended_at + _LAST_LINES_SECONDS:
        job = _find(registry, job.id)
        if job.flow_run_id is not None:
            lines = prefect.logs(job.flow_run_id, offset=printed)
            _print_lines(lines)
            printed += len(lines)
        if not _has_ended(prefect, job):
            ended_at = None
        elif ended_at is None:
            ended_at = time.monotonic()
        time.sleep(_FOLLOW_SECONDS)
    return job


def _has_ended(prefect: "Orchestrator", job: "Job") -> bool:
    """Whether nothing is under way: a retried run is, before its job shows it."""
    from fleet.states import ACTIVE_JOB_STATES
    from netboot.orchestrator import FINAL_STATES

    if job.state in ACTIVE_JOB_STATES:
        return False
    if job.flow_run_id is None:
        return True
    run = prefect.runs([job.flow_run_id]).get(job.flow_run_id)
    return run is None or run.state_type in FINAL_STATES


def _job_state(text: str | None) -> "JobState | None":
    from fleet.errors import InvalidRequest
    from fleet.states import JobState

    if text is None:
        return None
    try:
        return JobState(text)
    except ValueError:
        raise InvalidRequest(
            f"{text[:80]!r} is no state of a job.", remedy=f"Take one of: {', '.join(JobState)}."
        ) from None


def _print_lines(lines: "tuple[LogLine, ...]") -> None:
    for line in lines:
        # A log repeats what machines said: nothing of it may steer the terminal.
        text = "".join(c if c.isprintable() or c == "\n" else "�" for c in line.message)
        typer.echo(f"{line.timestamp.astimezone():%T} {text}")
