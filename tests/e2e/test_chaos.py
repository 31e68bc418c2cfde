"""kill -9 of each part in the middle of runs, and of all at once: what must be true is true."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from psutil import Process

from fleet import locks, processes, todo
from fleet.models import Job
from fleet.states import JobState, MachineState
from lab.machine import list_machines
from tasks.ssh import verify
from tests.e2e.callers import Caller, Persistent, gateway_netns
from tests.e2e.conftest import StartStand
from tests.e2e.stand import PLAYBOOKS, Stand, wait_until
from tests.e2e.truth import Snapshot, observe, overlapping, problems

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

NAMES = ("lab-1", "lab-2")
# Long enough that the first machine is still at work when the other has begun.
STEPS = 20
RECONCILE_EVERY = 2.0
LOST_RUN_GRACE = 12.0
SETTLE_SECONDS = 150.0
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s"


@dataclass(frozen=True)
class Victim:
    """What to kill, how to find it for a flow run, and how many machines must call meanwhile.

    `outlived` says whether the runs go on without it to their good end.
    """

    name: str
    find: Callable[[Stand, str], list[Process]]
    strangers: int = 0
    outlived: bool = False


def _by(*words: str) -> Callable[[Stand, str], list[Process]]:
    return lambda stand, run_id: stand.find(*words)


def _flow(stand: Stand, run_id: str) -> list[Process]:
    return stand.find("prefect.engine", **{processes.PREFECT_RUN_MARK: run_id})


def _ansible(stand: Stand, run_id: str) -> list[Process]:
    """The run's ansible-playbook itself, without its workers."""
    found = stand.find("/ansible-playbook ", **{processes.RUN_MARK: run_id})
    pids = {process.pid for process in found}
    return [process for process in found if process.ppid() not in pids]


VICTIMS = (
    Victim("flow", _flow),
    Victim("worker", _by("prefect", "worker", "start"), outlived=True),
    Victim("api", _by("netboot.serve"), strangers=3, outlived=True),
    Victim("prefect", _by("prefect", "server", "start"), strangers=2),
)


class Fleet:
    """Two machines that are ready, and a count of every call home that was answered."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.answered: dict[str, str] = {}
        self._strangers = 0

    def call_home(self, name: str) -> str:
        """Let a machine that is ready call home as after another boot; its job's id."""
        stand = self.stand
        token = stand.muster_json("machine", "token", name)["token"]
        keys = stand.machine(name).ssh_host_keys
        assert keys is not None
        netns = next(m.netns for m in list_machines(stand.settings) if m.name == name)
        job_id = Caller(stand.settings, name, token, keys, netns).call()
        assert job_id is not None
        self.answered[job_id] = name
        return job_id

    def strangers(self, count: int) -> list[Caller]:
        """Machines that can call home, and that nobody can reach by ssh thereafter."""
        made: list[Caller] = []
        for _ in range(count):
            self._strangers += 1
            name = f"stranger-{self._strangers}"
            token = self.stand.muster_json("machine", "add", name)["token"]
            netns = gateway_netns(self.stand.settings)
            made.append(Caller(self.stand.settings, name, token, (HOST_KEY,), netns))
        return made

    def wait_for(self, callers: dict[str, Persistent]) -> None:
        """Wait until each has been answered, and keep count."""
        for name, caller in callers.items():
            self.answered[caller.wait()] = name

    def begin_work(self) -> dict[str, str]:
        """Let every machine call home; their jobs' ids, once playbooks are at work on all."""
        self.stand.work_for(STEPS)
        begun = {name: self.call_home(name) for name in NAMES}
        for name, job_id in begun.items():
            wait_until(
                lambda name=name, job_id=job_id: self.is_at_work(name, job_id),
                f"a playbook at work on {name}", 60.0, self.stand.explain,
            )  # fmt: skip
        self.stand.work_for(1)
        return begun

    def is_at_work(self, name: str, job_id: str) -> bool:
        """Whether the playbook of a job's run has taken its first step on the machine."""
        run_id = self.stand.job(job_id).flow_run_id
        return run_id is not None and any(t.startswith(run_id) for t in self.stand.ticks(name))

    def settle(self) -> None:
        """Wait until things have settled and everything is true, recorders at rest included."""
        found: list[str] = ["not looked at"]

        def is_true() -> bool:
            if not self.stand.api_answers():
                found[:] = ["the API is not ready"]
                return False
            seen = observe(self.stand)
            found[:] = [*self.problems(seen), *(f"{name} records" for name in seen.recorders)]
            return not found

        wait_until(
            is_true, "everything to be true", SETTLE_SECONDS,
            lambda: "\n".join([*found, self.stand.explain()]),
        )  # fmt: skip

    def stays_true(self, seconds: float) -> None:
        """Fail unless everything remains true for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert [] == self.problems(observe(self.stand)), self.stand.explain()
            time.sleep(0.5)

    def problems(self, seen: Snapshot) -> list[str]:
        """What is not true, of the machines' own records and the callers' too."""
        found = problems(seen)
        for name in NAMES:
            twice = overlapping(self.stand.ticks(name))
            found += [f"on {name} a playbook ran while {mark} did" for mark in sorted(twice)]
        return found + self._lost_calls(seen.jobs)

    def _lost_calls(self, jobs: tuple[Job, ...]) -> list[str]:
        known = {job.id for job in jobs}
        lost = [f"the call of {n}, job {i}" for i, n in self.answered.items() if i not in known]
        own = len(NAMES) * self.stand.boots
        if len(known) != len(self.answered) + own:
            lost.append(f"{len(known)} jobs of {len(self.answered)} calls and {own} boots")
        return lost

    def retry(self) -> None:
        """Retry the newest job of each machine that is not ready, until all are."""
        for name in NAMES:
            if self.stand.machine(name).state is not MachineState.READY:
                self.stand.muster("job", "retry", self.newest_job(name).id)
        for name in NAMES:
            wait_until(
                lambda name=name: self.stand.machine(name).state is MachineState.READY,
                f"{name} to be ready after a retry", 90.0, self.stand.explain,
            )  # fmt: skip
        self.settle()

    def have_healed(self, name: str) -> None:
        """See to it that TODO.md holds an entry of this machine that a retry has healed."""
        entries = todo.read(self.stand.settings.todo_file)
        if any(entry.machine == name and not entry.open for entry in entries):
            return
        run_id = self.stand.job(self.begin_work()[name]).flow_run_id
        self.stand.kill(_flow(self.stand, run_id or ""))
        self.settle()
        self.retry()

    def newest_job(self, name: str) -> Job:
        return next(job for job in self.stand.jobs() if job.machine_name == name)


@pytest.fixture(scope="module")
def fleet(start_stand: StartStand) -> Fleet:
    """`./muster up --lab 2`, up, with both machines ready."""
    stand = start_stand(
        len(NAMES),
        playbook=PLAYBOOKS / "ticking.yaml",
        reconcile_every=RECONCILE_EVERY,
        lost_run_grace=LOST_RUN_GRACE,
        transient_retries=0,
    )
    stand.start()
    stand.wait_until_up()
    return Fleet(stand)


@pytest.fixture
def ready_fleet(fleet: Fleet) -> Fleet:
    """The fleet with everything settled and every machine of the laboratory ready."""
    assert fleet.stand.is_up(), fleet.stand.explain()
    fleet.settle()
    fleet.retry()
    return fleet


def test_two_playbooks_at_once_would_be_noticed() -> None:
    """Marks of one playbook between those of another count as an overlap; in a row they do not."""
    assert set() == overlapping(["a", "a", "b", "b", "c"])
    assert {"a"} == overlapping(["a", "b", "a", "c"])


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_kill_one_in_the_middle_of_runs(ready_fleet: Fleet, victim: Victim) -> None:
    """Whichever part dies, machines, jobs, runs and TODO.md end true, and Retry finishes them."""
    fleet, stand = ready_fleet, ready_fleet.stand
    strangers = fleet.strangers(victim.strangers)
    begun = fleet.begin_work()
    run_id = stand.job(begun["lab-1"]).flow_run_id
    assert run_id is not None
    killed = stand.kill(victim.find(stand, run_id))
    callers = {caller.name: Persistent(caller, timeout=60.0) for caller in strangers}
    assert 1 == killed
    fleet.wait_for(callers)
    fleet.settle()
    ended = [stand.job(job_id).state for job_id in begun.values()]
    assert not victim.outlived or [JobState.SUCCEEDED, JobState.SUCCEEDED] == ended
    fleet.retry()


def test_kill_ansible_and_then_the_api(ready_fleet: Fleet) -> None:
    """A killed ansible-playbook fails its own machine alone, and a new API ticks no new failure."""
    fleet, stand = ready_fleet, ready_fleet.stand
    fleet.have_healed("lab-1")
    run_id = stand.job(fleet.begin_work()["lab-1"]).flow_run_id
    assert run_id is not None
    assert 1 == stand.kill(_ansible(stand, run_id))
    fleet.settle()
    assert MachineState.FAILED is stand.machine("lab-1").state
    assert MachineState.READY is stand.machine("lab-2").state
    assert 1 == stand.kill(_by("netboot.serve")(stand, run_id))
    fleet.settle()
    fleet.stays_true(3 * RECONCILE_EVERY)
    fleet.retry()


def test_cancel_in_the_middle_of_a_run(ready_fleet: Fleet) -> None:
    """A cancelled run ends its Ansible and frees its machine, which fails without a TODO entry."""
    fleet, stand = ready_fleet, ready_fleet.stand
    job = stand.job(fleet.begin_work()["lab-1"])
    assert job.flow_run_id is not None
    stand.muster("job", "cancel", job.id)
    fleet.settle()
    machine = stand.machine("lab-1")
    assert JobState.CANCELLED is stand.job(job.id).state
    assert (MachineState.FAILED, True) == (machine.state, bool(machine.reason))
    assert "CANCELLED" == stand.prefect.runs([job.flow_run_id])[job.flow_run_id].state_type
    assert [] == stand.find(**{processes.RUN_MARK: job.flow_run_id})
    assert not locks.is_held(locks.machine_lock_path(stand.settings.locks_dir, machine.id))
    assert job.flow_run_id not in stand.settings.todo_file.read_text()
    fleet.retry()


def test_kill_the_whole_set_at_once(ready_fleet: Fleet) -> None:
    """After kill -9 of everything, a new `up` on the same home makes all true and ready again."""
    fleet, stand = ready_fleet, ready_fleet.stand
    strangers = fleet.strangers(2)
    begun = fleet.begin_work()
    assert stand.kill_everything() >= 6
    assert [] == stand.marked()
    callers = {caller.name: Persistent(caller, timeout=200.0) for caller in strangers}
    stand.start()
    stand.wait_until_up()
    fleet.wait_for(callers)
    fleet.settle()
    assert all(stand.machine(name).state is MachineState.READY for name in NAMES)
    assert {JobState.FAILED} == {stand.job(job_id).state for job_id in begun.values()}
    fleet.stays_true(3 * RECONCILE_EVERY)


def test_what_is_ready_is_configured(ready_fleet: Fleet) -> None:
    """After all that, the machines that are ready answer over SSH and bear their facts."""
    for name in NAMES:
        seen = verify(ready_fleet.stand.settings, ready_fleet.stand.machine(name))
        assert (name, True) == (seen.hostname, "ticking" in seen.roles)


def test_ctrl_c_leaves_nothing_behind(fleet: Fleet) -> None:
    """Ctrl-C ends `up` with exit code 0 and leaves no process of it."""
    assert 0 == fleet.stand.stop()
    assert [] == fleet.stand.marked()
