"""What must be true whenever things have settled, whatever was killed before."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx
import psutil

from fleet import processes, todo
from fleet.models import Job, Machine
from fleet.runs import NOT_RECORDED
from fleet.states import ACTIVE_JOB_STATES, JobState, MachineState
from netboot.orchestrator import FAILED_STATES, FINAL_STATES, FlowRun, StateChange
from tests.e2e.stand import Stand

_JOB_OF_RUN = {
    "COMPLETED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "CRASHED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}


@dataclass(frozen=True)
class Run:
    """A flow run that no other run started, with every state it has had, oldest first."""

    run: FlowRun
    history: tuple[StateChange, ...]

    @property
    def failures(self) -> list[tuple[int, datetime]]:
        """Its failed attempts: number from 1, and when. An attempt fails but once."""
        failed: list[datetime] = []
        under_way = True
        for state in self.history:
            if under_way and state.type in FAILED_STATES:
                failed.append(state.timestamp)
            under_way = state.type not in FAILED_STATES
        return list(enumerate(failed, start=1))

    @property
    def successes(self) -> list[datetime]:
        return [state.timestamp for state in self.history if state.type == "COMPLETED"]

    @property
    def subject(self) -> tuple[str, str]:
        """What a success of it heals: failures of the same flow for the same machine."""
        return self.run.deployment, self.run.machine


@dataclass(frozen=True)
class Snapshot:
    """All that can be seen at one moment. `alive` are the names of runs that have not ended, those
    that other runs started included; `recorders` are such runs of the flow that records failures;
    `leftovers` are the processes of runs that have ended.
    """

    machines: tuple[Machine, ...]
    jobs: tuple[Job, ...]
    runs: tuple[Run, ...]
    entries: tuple[todo.Listed, ...]
    alive: tuple[str, ...]
    recorders: tuple[str, ...]
    leftovers: tuple[str, ...]


def observe(stand: Stand) -> Snapshot:
    """Look at registry, Prefect, TODO.md and processes."""
    runs = [run for run in stand.prefect.recent_runs() if run.deployment not in NOT_RECORDED]
    return Snapshot(
        machines=tuple(stand.machines()),
        jobs=tuple(stand.jobs()),
        runs=tuple(Run(run, stand.history(run)) for run in runs),
        entries=tuple(todo.read(stand.settings.todo_file)),
        alive=_alive_runs(stand, ("handle-call-home", "run-playbook")),
        recorders=_alive_runs(stand, tuple(NOT_RECORDED)),
        leftovers=_leftovers(stand, {run.id for run in runs if run.state_type in FINAL_STATES}),
    )


def problems(seen: Snapshot) -> list[str]:
    """What is not settled or not true, in words; nothing if all is well. Pure.

    A failure may be told once more when all is settled, so the recorders are not among them.
    """
    return [
        *(f"Prefect believes that {name} is alive" for name in seen.alive),
        *(f"left of an ended run: {process}" for process in seen.leftovers),
        *_machine_problems(seen),
        *_job_problems(seen),
        *_todo_problems(seen),
    ]


def overlapping(marks: Sequence[str]) -> set[str]:
    """The marks that were left again after another playbook had begun to leave its own. Pure."""
    found: set[str] = set()
    over: set[str] = set()
    current: str | None = None
    for mark in marks:
        if mark != current:
            over |= {current} if current else set()
            current = mark
        if mark in over:
            found.add(mark)
    return found


def _machine_problems(seen: Snapshot) -> Iterable[str]:
    newest = {job.machine_id: job for job in sorted(seen.jobs, key=lambda j: j.created_at)}
    for machine in seen.machines:
        job = newest.get(machine.id)
        if job is None:
            yield f"{machine.name} is {machine.state} and has no job"
        elif machine.state is MachineState.READY:
            if job.state is not JobState.SUCCEEDED:
                yield f"{machine.name} is ready and its newest job {job.state}"
        elif machine.state is not MachineState.FAILED:
            yield f"{machine.name} is {machine.state}"
        elif not machine.reason or job.state not in {JobState.FAILED, JobState.CANCELLED}:
            yield f"{machine.name} failed for {machine.reason!r}, its newest job is {job.state}"


def _job_problems(seen: Snapshot) -> Iterable[str]:
    runs = {run.run.id: run.run for run in seen.runs}
    for job in seen.jobs:
        run = runs.get(job.flow_run_id or "")
        if job.state in ACTIVE_JOB_STATES:
            yield f"job {job.id} of {job.machine_name} is {job.state}"
        elif run is None:
            yield f"job {job.id} of {job.machine_name} is {job.state} and has no run"
        elif _JOB_OF_RUN.get(run.state_type) is not job.state:
            yield f"job {job.id} of {job.machine_name} is {job.state}, its run {run.state_type}"
        elif job.state is not JobState.SUCCEEDED and not job.error:
            yield f"job {job.id} of {job.machine_name} is {job.state} without a reason"


def _todo_problems(seen: Snapshot) -> Iterable[str]:
    failed = {(r.run.id, n): (r, at) for r in seen.runs for n, at in r.failures}
    entries = Counter((entry.flow_run_id, entry.attempt) for entry in seen.entries)
    for key, count in entries.items():
        if count > 1:
            yield f"{count} entries in TODO.md for run and attempt {key}"
        if key not in failed:
            yield f"an entry in TODO.md for run and attempt {key}, which did not fail"
    for key in failed.keys() - entries.keys():
        yield f"no entry in TODO.md for the failed run and attempt {key}"
    for entry in seen.entries:
        run, at = failed.get((entry.flow_run_id, entry.attempt), (None, None))
        if run is None or at is None:
            continue
        healed = any(
            moment > at
            for other in seen.runs
            if other.run.id == run.run.id or other.subject == run.subject
            for moment in other.successes
        )
        if entry.open is healed:
            words = "open, though healed" if healed else "ticked, though not healed"
            yield f"the entry for run {entry.flow_run_id} attempt {entry.attempt} is {words}"


def _alive_runs(stand: Stand, flows: tuple[str, ...]) -> tuple[str, ...]:
    states = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"]
    answer = httpx.post(
        f"{stand.settings.prefect_url}/api/flow_runs/filter",
        json={
            "flows": {"name": {"any_": flows}},
            "flow_runs": {"state": {"type": {"any_": states}}},
        },
        trust_env=False,
        timeout=15.0,
    )
    answer.raise_for_status()
    return tuple(f"{run['name']} ({run['state_type']})" for run in answer.json())


def _leftovers(stand: Stand, ended: set[str]) -> tuple[str, ...]:
    found: list[str] = []
    for process in stand.marked():
        try:
            run_id = process.environ().get(processes.RUN_MARK)
            command = " ".join(process.cmdline())[:100]
        except psutil.Error:
            continue
        if run_id in ended:
            found.append(f"process {process.pid} of run {run_id}: {command}")
    return tuple(found)
