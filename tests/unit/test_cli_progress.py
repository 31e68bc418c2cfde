"""What a laboratory machine needs before its boot, and how its way to ready is told."""

from datetime import UTC, datetime

import pytest

from cli.progress import Enrolment, Look, decide_enrolment, describe, problem
from cli.watch import Boot
from fleet.models import Job, Machine
from fleet.states import JobState, MachineState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def machine(state: MachineState, reason: str | None = None) -> Machine:
    return Machine(
        id="m1", name="lab-1", state=state, reason=reason, address=None, mac=None, boot_id=None,
        ssh_host_keys=None, hardware=None, created_at=NOW, updated_at=NOW, ready_at=None,
    )  # fmt: skip


def job(state: JobState, job_id: str = "j1") -> Job:
    return Job(
        id=job_id, machine_id="m1", machine_name="lab-1", kind="handle-call-home", state=state,
        boot_id=None, flow_run_id="r1", attempts=1, error=None, created_at=NOW, submitted_at=None,
        started_at=None, finished_at=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "has_disk", "token_usable", "expected"),
    [
        (None, False, False, Enrolment.NEW_MACHINE),
        (None, True, False, Enrolment.NEW_MACHINE),
        (MachineState.READY, True, False, Enrolment.NONE),
        (MachineState.READY, False, False, Enrolment.NEW_TOKEN),
        (MachineState.APPROVED, True, True, Enrolment.NONE),
        (MachineState.APPROVED, True, False, Enrolment.NEW_TOKEN),
        (MachineState.FAILED, True, True, Enrolment.NONE),
        (MachineState.FAILED, True, False, Enrolment.NEW_TOKEN),
        (MachineState.CALLED_HOME, False, False, Enrolment.NEW_TOKEN),
    ],
)
def test_a_machine_is_enrolled_only_when_it_must_be(
    state: MachineState | None, has_disk: bool, token_usable: bool, expected: Enrolment
):
    """A ready machine is only booted; another gets a token only if its own is of no use."""
    assert expected is decide_enrolment(state, has_disk=has_disk, token_usable=token_usable)


@pytest.mark.parametrize(
    ("state", "job_state", "stale", "expected"),
    [
        (MachineState.APPROVED, None, True, False),
        (MachineState.CALLED_HOME, JobState.QUEUED, False, False),
        (MachineState.CONFIGURING, JobState.RUNNING, False, False),
        (MachineState.READY, JobState.RUNNING, False, False),
        (MachineState.READY, JobState.SUCCEEDED, False, True),
        (MachineState.READY, None, False, True),
        (MachineState.FAILED, JobState.FAILED, False, True),
        (MachineState.FAILED, JobState.FAILED, True, False),
        (MachineState.READY, JobState.SUCCEEDED, True, False),
        (MachineState.RETIRED, JobState.FAILED, True, True),
    ],
)
def test_waiting_ends_when_nothing_is_under_way(
    state: MachineState, job_state: JobState | None, stale: bool, expected: bool
):
    """An active job or an expected call home keeps the wait up; a retired machine ends it."""
    look = Look(machine(state), job(job_state) if job_state else None, stale=stale)
    assert expected is look.is_final


@pytest.mark.parametrize(
    ("boot", "newest", "expected"),
    [
        (Boot("lab-1", None, calls_home=True), None, True),
        (Boot("lab-1", "j1", calls_home=True), job(JobState.FAILED, "j1"), True),
        (Boot("lab-1", "j1", calls_home=True), job(JobState.QUEUED, "j2"), False),
        (Boot("lab-1", "j1", calls_home=False), job(JobState.SUCCEEDED, "j1"), False),
    ],
)
def test_a_job_from_before_the_boot_is_stale(boot: Boot, newest: Job | None, expected: bool):
    """A machine that is to call home is judged by the job of that call."""
    assert expected is boot.is_stale(newest)


def test_a_line_tells_state_job_and_log():
    """Control characters in a log's line do not reach the terminal."""
    look = Look(machine(MachineState.CONFIGURING), job(JobState.RUNNING), "ok:\x1b[31m lab-1")
    assert "configuring · job running · ok: [31m lab-1" == describe(look)


def test_a_problem_names_machine_and_reason():
    """A failed machine's reason is told with the end of its run's log."""
    look = Look(machine(MachineState.FAILED, "the disk is full"), job(JobState.FAILED))
    assert "lab-1 is failed: the disk is full\nThe log of its run ends with:\nlast line" == problem(
        look, 900, "last line"
    )


def test_a_silent_machine_is_told_apart():
    """A machine that never called home is not blamed on its job."""
    look = Look(machine(MachineState.APPROVED), None, stale=True)
    assert "lab-1 was not ready after 5 s: it is approved, and it has not called home." == problem(
        look, 5, ""
    )
