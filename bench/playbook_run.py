"""(c) `run_playbook` beside bare `ansible-playbook`, the same play on the same machine, in turn."""

import os
import subprocess
import time
import uuid
from pathlib import Path

from bench.figures import Figure
from bench.plane import Plane, wait_for
from fleet import machines
from fleet.settings import CHECKOUT
from fleet.states import MachineState
from netboot.orchestrator import FINAL_STATES, Orchestrator

PLAY = CHECKOUT / "bench" / "play.yaml"
MACHINE = "lab-1"
RUNS = 5
RUN_SECONDS = 300
READY_SECONDS = 300
_VENV = CHECKOUT / ".venv" / "bin"


def measure(plane: Plane) -> list[Figure]:
    """Bare, then as a flow, over and over; the ratio is taken pair by pair."""
    wait_for(f"{MACHINE} to be ready", lambda: _is_ready(plane), READY_SECONDS)
    orchestrator = Orchestrator(plane.settings)
    pairs = [(_bare(plane), _as_flow(orchestrator)) for _ in range(RUNS + 1)][1:]
    orchestrator.close()
    start = tuple(_process_start() for _ in range(RUNS))
    typical_start = sorted(start)[RUNS // 2]
    bare, flow = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    ratios = tuple((b - typical_start) / a for a, b in pairs)
    return [
        Figure("bare ansible-playbook", bare, "s", "", 2, "30 tasks, one machine, over SSH"),
        Figure("run_playbook, Running → Completed", flow, "s", "", 2, "the same play"),
        Figure("process start within a run", start, "s", "", 2, "imports of Ansible and runner"),
        Figure("ratio without that start", ratios, "×", "≤ 1.05", 3, "pair by pair"),
    ]


def _is_ready(plane: Plane) -> bool:
    with plane.registry.read() as session:
        found = {machine.name: machine.state for machine in machines.listing(session)}
    return found.get(MACHINE) is MachineState.READY


def _bare(plane: Plane) -> float:
    sources = ["-i", str(CHECKOUT / "inventory")]
    command = [str(_VENV / "ansible-playbook"), *sources, "--limit", MACHINE, str(PLAY)]
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "MUSTER_HOME": str(plane.settings.home),
    }
    began = time.perf_counter()
    subprocess.run(
        command, check=True, env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def _as_flow(orchestrator: Orchestrator) -> float:
    run = orchestrator.create_run(
        "run-playbook/run-playbook",
        {"limit": MACHINE, "playbook": str(PLAY)},
        idempotency_key=str(uuid.uuid4()),
        name="bench",
        tags=[],
    )

    def ended() -> bool:
        return orchestrator.history(run.id)[-1].type in FINAL_STATES

    wait_for("the run of the play", ended, RUN_SECONDS)
    states = {state.type: state.timestamp for state in orchestrator.history(run.id)}
    assert "COMPLETED" in states, f"the run of the play ended {sorted(states)}"
    return (states["COMPLETED"] - states["RUNNING"]).total_seconds()


def _process_start() -> float:
    """What every run pays before Ansible begins: an interpreter that loads the runner."""
    began = time.perf_counter()
    program = [str(Path(_VENV / "python")), "-c", "import ansible_runner"]
    subprocess.run(program, check=True)
    return time.perf_counter() - began
