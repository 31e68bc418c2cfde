"""The states of a machine and of a job, and which may follow which. Pure."""

from collections.abc import Mapping
from enum import StrEnum

from fleet.errors import IllegalTransition


class MachineState(StrEnum):
    DISCOVERED = "discovered"
    APPROVED = "approved"
    INSTALLING = "installing"
    INSTALLED = "installed"
    CALLED_HOME = "called-home"
    CONFIGURING = "configuring"
    READY = "ready"
    FAILED = "failed"
    RETIRED = "retired"


class JobState(StrEnum):
    QUEUED = "queued"
    SUBMITTED = "submitted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_M = MachineState

# A machine that an operator added by hand was never installed by us, so `approved` may call
# home directly; a lost "installed" message must not keep a machine from calling home either.
MACHINE_TRANSITIONS: Mapping[MachineState, frozenset[MachineState]] = {
    _M.DISCOVERED: frozenset({_M.APPROVED, _M.RETIRED}),
    _M.APPROVED: frozenset({_M.INSTALLING, _M.CALLED_HOME, _M.RETIRED}),
    _M.INSTALLING: frozenset({_M.INSTALLED, _M.CALLED_HOME, _M.APPROVED, _M.FAILED, _M.RETIRED}),
    _M.INSTALLED: frozenset({_M.CALLED_HOME, _M.APPROVED, _M.FAILED, _M.RETIRED}),
    _M.CALLED_HOME: frozenset({_M.CONFIGURING, _M.APPROVED, _M.FAILED, _M.RETIRED}),
    _M.CONFIGURING: frozenset({_M.READY, _M.FAILED, _M.RETIRED}),
    _M.READY: frozenset({_M.CALLED_HOME, _M.CONFIGURING, _M.APPROVED, _M.FAILED, _M.RETIRED}),
    _M.FAILED: frozenset({_M.CALLED_HOME, _M.CONFIGURING, _M.APPROVED, _M.RETIRED}),
    _M.RETIRED: frozenset(),
}

_J = JobState

# A finished job runs again when its flow run is retried.
JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _J.QUEUED: frozenset({_J.SUBMITTED, _J.RUNNING, _J.CANCELLED, _J.FAILED}),
    _J.SUBMITTED: frozenset({_J.RUNNING, _J.FAILED, _J.CANCELLED, _J.QUEUED}),
    _J.RUNNING: frozenset({_J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.SUCCEEDED: frozenset({_J.RUNNING}),
    _J.FAILED: frozenset({_J.RUNNING, _J.SUBMITTED, _J.QUEUED, _J.CANCELLED}),
    _J.CANCELLED: frozenset({_J.RUNNING, _J.SUBMITTED, _J.QUEUED}),
}

ACTIVE_JOB_STATES = frozenset({_J.QUEUED, _J.SUBMITTED, _J.RUNNING})


def check_machine_transition(name: str, old: MachineState, new: MachineState) -> None:
    """Raise IllegalTransition, naming both states, unless `new` may follow `old`."""
    if new not in MACHINE_TRANSITIONS[old]:
        raise IllegalTransition(
            f"Machine {name} is {old} and cannot become {new}.",
            remedy=_allowed(MACHINE_TRANSITIONS[old]),
        )


def check_job_transition(job_id: str, old: JobState, new: JobState) -> None:
    """Raise IllegalTransition, naming both states, unless `new` may follow `old`."""
    if new not in JOB_TRANSITIONS[old]:
        raise IllegalTransition(
            f"Job {job_id} is {old} and cannot become {new}.",
            remedy=_allowed(JOB_TRANSITIONS[old]),
        )


def _allowed(states: frozenset[MachineState] | frozenset[JobState]) -> str:
    if not states:
        return "This state is final."
    return f"From here it can become {', '.join(sorted(states))}."
