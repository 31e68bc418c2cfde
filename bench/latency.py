"""(a) From a call home to its flow run being Running."""

import asyncio
import time

from bench.callers import call_home, enrol
from bench.figures import Figure
from bench.plane import Plane, wait_for
from fleet import jobs
from fleet.models import Job
from netboot.orchestrator import FINAL_STATES, Orchestrator, StateChange

RUNS = 15
# Those that nobody counts: they warm server, worker and file cache.
WARM_UP = 2
RUN_SECONDS = 60
# Nobody answers at these machines' addresses, so each run fails, and some seconds later the
# recorder runs for it; the next call waits until that has come and gone.
QUIET_SECONDS = 6.0


def measure(plane: Plane) -> list[Figure]:
    """Calls one after another, each after the run before has ended."""
    orchestrator = Orchestrator(plane.settings)
    seconds = [_one(plane, orchestrator, caller_number) for caller_number in range(WARM_UP + RUNS)][
        WARM_UP:
    ]
    orchestrator.close()
    return [Figure("call home → run Running", tuple(seconds), "s", "median ≤ 1.5 s")]


def _one(plane: Plane, orchestrator: Orchestrator, number: int) -> float:
    (caller,) = enrol(plane, f"latency-{number}", 1)
    sent = time.time()
    answer = asyncio.run(call_home(caller, plane.settings.api_port))
    assert answer.status == 202, f"call home was answered {answer.status}"
    run_id = _flow_run(plane, caller.name)
    wait_for("the run's end", lambda: _ended(orchestrator, run_id), RUN_SECONDS)
    _wait_for_quiet(orchestrator)
    running = next(s for s in orchestrator.history(run_id) if s.type == "RUNNING")
    return running.timestamp.timestamp() - sent


def _wait_for_quiet(orchestrator: Orchestrator) -> None:
    busy = time.monotonic()

    def quiet() -> bool:
        nonlocal busy
        if orchestrator.live_runs():
            busy = time.monotonic()
        return time.monotonic() - busy > QUIET_SECONDS

    wait_for("no run under way", quiet, RUN_SECONDS)


def _flow_run(plane: Plane, machine: str) -> str:
    found: list[Job] = []

    def handed_over() -> bool:
        with plane.registry.read() as session:
            found[:] = jobs.listing(session, machine=machine)
        return found[0].flow_run_id is not None

    wait_for("the job's flow run", handed_over, RUN_SECONDS)
    assert found[0].flow_run_id is not None
    return found[0].flow_run_id


def _ended(orchestrator: Orchestrator, run_id: str) -> bool:
    history: tuple[StateChange, ...] = orchestrator.history(run_id)
    return bool(history) and history[-1].type in FINAL_STATES
