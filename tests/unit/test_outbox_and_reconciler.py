"""What the reconciler and the outbox decide."""

from datetime import UTC, datetime, timedelta

import pytest

from fleet.states import JobState
from netboot import outbox
from netboot.orchestrator import FlowRun, StateChange
from netboot.reconciler import failures, is_stray, job_end, lost_state

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def change(kind: str, age: float = 100.0, message: str | None = None) -> StateChange:
    at = NOW - timedelta(seconds=age)
    return StateChange(
        id=f"{kind}-{age}", type=kind, name=kind.title(), message=message, timestamp=at
    )


def run(kind: str, age: float = 100.0, message: str | None = None) -> FlowRun:
    return FlowRun(id="r", name="lab-1-7f0c2c0e", state=change(kind, age, message))


@pytest.mark.parametrize(
    ("kind", "age", "held", "expected"),
    [
        ("RUNNING", 100, False, "CRASHED"),
        ("PENDING", 100, False, "CRASHED"),
        ("CANCELLING", 100, False, "CANCELLED"),
        ("RUNNING", 100, True, None),
        ("RUNNING", 29, False, None),
        ("PENDING", 0, False, None),
    ],
)
def test_a_run_without_a_process_is_lost(
    kind: str, age: float, held: bool, expected: str | None
) -> None:
    """Only a run whose lock is free for longer than the grace is settled."""
    assert expected == lost_state(run(kind, age), held=held, now=NOW, grace=30)


@pytest.mark.parametrize(
    ("kind", "age", "expected"),
    [
        ("COMPLETED", 100, True), ("FAILED", 100, True), ("CANCELLED", 100, True),
        ("COMPLETED", 10, False), ("RUNNING", 100, False), ("CANCELLING", 100, False),
    ],
)  # fmt: skip
def test_a_process_whose_run_ended_is_stray(kind: str, age: float, expected: bool) -> None:
    """A run that was ended by decree must not go on working."""
    assert expected == is_stray(run(kind, age), now=NOW, grace=30)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("FAILED", JobState.FAILED), ("CRASHED", JobState.FAILED), ("COMPLETED", JobState.FAILED),
        ("CANCELLED", JobState.CANCELLED), ("RUNNING", None), ("SCHEDULED", None),
        ("PENDING", None), ("PAUSED", None), ("CANCELLING", None),
    ],
)  # fmt: skip
def test_a_job_ends_with_its_run(kind: str, expected: JobState | None) -> None:
    """A job that the registry believes unfinished follows its run's final state."""
    end = job_end(run(kind))
    assert expected == (None if end is None else end[0])


def test_a_job_whose_run_is_gone_says_how_to_go_on() -> None:
    """A deleted run does not leave its job running for ever."""
    end = job_end(None)
    assert end is not None
    assert JobState.FAILED == end[0]
    assert "muster job retry" in end[1]


def test_attempts_are_counted_over_the_whole_history() -> None:
    """A retry does not make the failure before it forgotten."""
    kinds = "SCHEDULED PENDING RUNNING FAILED SCHEDULED RUNNING CRASHED RUNNING COMPLETED"
    history = [change(kind, 100 - n) for n, kind in enumerate(kinds.split())]
    assert [(1, "FAILED"), (2, "CRASHED")] == [(n, s.type) for n, s in failures(history)]


def test_a_run_knows_its_machine() -> None:
    """One machine tag names the machine; none or several name nobody."""
    tagged = [(), ("machine:lab-1",), ("a", "machine:lab-1"), ("machine:a", "machine:b")]
    found = [FlowRun(id="r", name="n", tags=tags).machine for tags in tagged]
    assert ["-", "lab-1", "lab-1", "-"] == found


def test_the_outbox_backs_off_within_bounds() -> None:
    """Waits double from half a second and never exceed twenty."""
    assert [0.5, 1, 2, 4, 8, 16, 20, 20] == [outbox.backoff(n) for n in range(1, 9)]


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ([], False),
        ([10.0] * 19, False),
        ([10.0] * 20, True),
        ([9.0] * 30, False),
        ([9.4] + [10.0] * 19, False),
        ([1.0] * 30 + [9.6] * 20, True),
    ],
)
def test_a_surge_is_many_jobs_in_a_moment(arrivals: list[float], expected: bool) -> None:
    """Twenty jobs within half a second, judged by the newest alone."""
    assert expected == outbox.is_surge(arrivals, 10.0)
