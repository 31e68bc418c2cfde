"""(c) `run_playbook` beside bare `ansible-playbook`, the same play on the same machine, in turn."""

import os
import statistics
import subprocess
import time
import uuid
from pathlib import Path

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from bench.figures import Figure
from bench.plane import Plane, wait_for
from fleet import machines
from fleet.settings import CHECKOUT
from fleet.states import MachineState
from netboot.orchestrator import FINAL_STATES, FlowRun, Orchestrator, PrefectUnavailable

PLAY = CHECKOUT / "bench" / "play.yaml"
EMPTY_PLAY = CHECKOUT / "bench" / "empty.yaml"
MACHINE = "lab-1"
RUNS = 5
RUN_SECONDS = 300
READY_SECONDS = 300
_VENV = CHECKOUT / ".venv" / "bin"


def measure(plane: Plane) -> list[Figure]:
    """Bare, then as a flow, over and over; the ratio is taken pair by pair.

    What a run costs before and after Ansible does not grow with the play: it is how much longer a
    play without tasks takes as a flow.
    """
    wait_for(f"{MACHINE} to be ready", lambda: _is_ready(plane), READY_SECONDS)
    orchestrator = Orchestrator(plane.settings)
    empty = _pairs(plane, orchestrator, EMPTY_PLAY)
    pairs = _pairs(plane, orchestrator, PLAY)
    orchestrator.close()
    start = tuple(flow - bare for bare, flow in empty)
    typical_start = statistics.median(start)
    ratios = tuple((flow - typical_start) / bare for bare, flow in pairs)
    bare, flow = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    return [
        Figure("bare ansible-playbook", bare, "s", "", 2, "30 tasks, one machine, over SSH"),
        Figure("run_playbook, Running → Completed", flow, "s", "", 2, "the same play"),
        Figure("start and end of a run", start, "s", "", 2, "a play without tasks, flow − bare"),
        Figure("ratio without start and end", ratios, "×", "≤ 1.05", 3, "pair by pair"),
    ]


def _pairs(plane: Plane, orchestrator: Orchestrator, play: Path) -> list[tuple[float, float]]:
    """Seconds bare and as a flow, in turn; the first pair warms up and is left out."""
    return [(_bare(plane, play), _as_flow(orchestrator, play)) for _ in range(RUNS + 1)][1:]


def _is_ready(plane: Plane) -> bool:
    with plane.registry.read() as session:
        found = {machine.name: machine.state for machine in machines.listing(session)}
    return found.get(MACHINE) is MachineState.READY


def _bare(plane: Plane, play: Path) -> float:
    sources = ["-i", str(CHECKOUT / "inventory")]
    command = [str(_VENV / "ansible-playbook"), *sources, "--limit", MACHINE, str(play)]
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "MUSTER_HOME": str(plane.settings.home),
    }
    began = time.perf_counter()
    subprocess.run(
        command, check=True, env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def _as_flow(orchestrator: Orchestrator, play: Path) -> float:
    run = _create_run(orchestrator, play, str(uuid.uuid4()))

    def ended() -> bool:
        try:
            return orchestrator.history(run.id)[-1].type in FINAL_STATES
        except PrefectUnavailable:
            return False

    wait_for("the run of the play", ended, RUN_SECONDS)
    states = {state.type: state.timestamp for state in orchestrator.history(run.id)}
    assert "COMPLETED" in states, f"the run of the play ended {sorted(states)}"
    return (states["COMPLETED"] - states["RUNNING"]).total_seconds()


# On SQLite, Prefect now and then answers that its database is locked; the key makes one run.
@retry(
    retry=retry_if_exception_type(PrefectUnavailable),
    wait=wait_fixed(1),
    stop=stop_after_delay(RUN_SECONDS),
)
def _create_run(orchestrator: Orchestrator, play: Path, key: str) -> FlowRun:
    return orchestrator.create_run(
        "run-playbook/run-playbook",
        {"limit": MACHINE, "playbook": str(play)},
        idempotency_key=key,
        name="bench",
        tags=[],
    )
