"""The two state machines."""

import itertools

import pytest

from fleet.errors import IllegalTransition
from fleet.states import (
    JOB_TRANSITIONS,
    MACHINE_TRANSITIONS,
    JobState,
    MachineState,
    check_job_transition,
    check_machine_transition,
)

JOURNEY = [
    "discovered", "approved", "installing", "installed", "called-home", "configuring", "ready",
]  # fmt: skip


def test_the_journey_is_legal() -> None:
    """A machine may walk the whole way from discovered to ready."""
    for old, new in itertools.pairwise(JOURNEY):
        check_machine_transition("node-1", MachineState(old), MachineState(new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (MachineState.DISCOVERED, MachineState.INSTALLING),
        (MachineState.DISCOVERED, MachineState.READY),
        (MachineState.APPROVED, MachineState.READY),
        (MachineState.CALLED_HOME, MachineState.READY),
        (MachineState.READY, MachineState.INSTALLING),
        (MachineState.RETIRED, MachineState.APPROVED),
    ],
)
def test_an_illegal_transition_names_both_states(old: MachineState, new: MachineState) -> None:
    """The error says from where, to where, and which machine."""
    with pytest.raises(IllegalTransition) as caught:
        check_machine_transition("node-1", old, new)
    assert f"Machine node-1 is {old} and cannot become {new}." == caught.value.detail


def test_nothing_is_installed_without_approval() -> None:
    """Only an approved machine can begin to install."""
    before = {state for state, after in MACHINE_TRANSITIONS.items() if "installing" in after}
    assert {MachineState.APPROVED} == before


def test_every_state_can_be_retired_but_the_last() -> None:
    """An operator can take any machine out."""
    stuck = {state for state, after in MACHINE_TRANSITIONS.items() if "retired" not in after}
    assert {MachineState.RETIRED} == stuck


def test_only_a_running_job_succeeds() -> None:
    """No job is done without having run."""
    before = {state for state, after in JOB_TRANSITIONS.items() if "succeeded" in after}
    assert {JobState.RUNNING} == before


def test_an_illegal_job_transition_names_both_states() -> None:
    """The error says from where and to where."""
    with pytest.raises(IllegalTransition, match="queued and cannot become succeeded"):
        check_job_transition("j", JobState.QUEUED, JobState.SUCCEEDED)
