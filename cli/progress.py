"""How a laboratory machine's enrolment stands, and what it needs. Pure: values in, words out."""

from dataclasses import dataclass, replace
from enum import Enum, auto

from fleet.models import Job, Machine
from fleet.states import ACTIVE_JOB_STATES, MachineState

_LINE = 100


class Enrolment(Enum):
    """What a machine needs before it is booted so that it becomes, or stays, ready."""

    NONE = auto()
    NEW_MACHINE = auto()
    NEW_TOKEN = auto()


def decide_enrolment(
    state: MachineState | None, *, has_disk: bool, token_usable: bool
) -> Enrolment:
    """What to do for a machine that the registry knows in `state` (None: not at all).

    `has_disk` says whether the laboratory has its disk, `token_usable` whether a call home with
    the token on that disk would be taken. A ready machine with its disk is only booted.
    """
    if state is None:
        return Enrolment.NEW_MACHINE
    if has_disk and (token_usable or state is MachineState.READY):
        return Enrolment.NONE
    return Enrolment.NEW_TOKEN


@dataclass(frozen=True)
class Look:
    """A look at a machine and its newest job.

    `stale` says that machine and job are as they were before the machine was booted, and that a
    new call home is to be expected.
    """

    machine: Machine
    job: Job | None
    log: str = ""
    stale: bool = False

    @property
    def state(self) -> MachineState:
        return self.machine.state

    @property
    def run_id(self) -> str | None:
        return self.job.flow_run_id if self.job else None

    @property
    def is_final(self) -> bool:
        """Whether waiting longer would change nothing by itself."""
        if self.state is MachineState.RETIRED:
            return True
        if self.stale or (self.job is not None and self.job.state in ACTIVE_JOB_STATES):
            return False
        return self.state in {MachineState.READY, MachineState.FAILED}

    @property
    def is_ready(self) -> bool:
        return self.is_final and self.state is MachineState.READY

    def with_log(self, line: str) -> "Look":
        return replace(self, log=line)


def describe(look: Look) -> str:
    """Where the machine stands, in a line: its state, its job, and the log's last line."""
    if look.stale:
        return "waiting for its call home"
    parts = [str(look.state)]
    if look.job is not None and look.job.state in ACTIVE_JOB_STATES:
        parts.append(f"job {look.job.state}")
    if look.log:
        parts.append("".join(c if c.isprintable() else " " for c in look.log).strip()[:_LINE])
    return " · ".join(parts)


def problem(look: Look, waited: float, log: str) -> str:
    """Why the machine is not ready, with the end of its run's log."""
    name = look.machine.name
    if look.is_final:
        reason = look.machine.reason or (look.job and look.job.error) or "see its timeline"
        told = f"{name} is {look.state}: {reason}"
    else:
        called = look.job is not None and not look.stale
        where = f"its job is {look.job.state}" if look.job and called else "it has not called home"
        told = f"{name} was not ready after {waited:.0f} s: it is {look.state}, and {where}."
    return f"{told}\nThe log of its run ends with:\n{log}" if log else told
