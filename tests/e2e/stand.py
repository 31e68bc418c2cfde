"""A Muster that runs as its users run it: `./muster up --lab N`, with home and ports of its own."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

from cli.laboratory import laboratory_settings
from fleet import jobs, machines, processes
from fleet.models import Job, Machine
from fleet.registry import Registry, open_registry
from fleet.settings import CHECKOUT, Settings
from lab import machine as lab_machine
from lab.store import machine_folder
from lab.teardown import cleanup_leftovers
from netboot.orchestrator import FlowRun, Orchestrator, StateChange

PLAYBOOKS = Path(__file__).parent / "playbooks"
TICKS = "var/log/muster-ticks"
UP_SECONDS = 280.0
_STOP_SECONDS = 90.0
_COMMAND_SECONDS = 60.0
_POLL_SECONDS = 0.3


def wait_until(
    condition: Callable[[], Any], what: str, timeout: float, explain: Callable[[], str] = str
) -> None:
    """Poll until `condition` holds; else fail, saying what was waited for and how things stand."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for {what}\n{explain()}")
        time.sleep(_POLL_SECONDS)


class Stand:
    """`up` and what it started. `settings` are those with which its machines are reached."""

    def __init__(self, settings: Settings, count: int) -> None:
        self.settings = laboratory_settings(settings)
        self.names = tuple(f"lab-{number}" for number in range(1, count + 1))
        self.boots = 0
        self._environment = _plain_environment() | settings.to_environment()
        self._up: subprocess.Popen[bytes] | None = None
        self._histories: dict[str, tuple[str, tuple[StateChange, ...]]] = {}
        self._output: IO[bytes] | None = None
        settings.home.mkdir(parents=True, exist_ok=True)
        self.work_for(1)
        self.registry: Registry = open_registry(self.settings.registry_url)
        self.prefect = Orchestrator(self.settings)

    def start(self) -> None:
        """Start `up` and return at once."""
        if self._output is not None:
            self._output.close()
        self._output = (self.settings.home / "up.out").open("ab")
        self._up = subprocess.Popen(
            [str(CHECKOUT / "muster"), "up", "--lab", str(len(self.names))],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        self.boots += 1

    def wait_until_up(self) -> None:
        """Wait until `up` has said that everything runs, once for each start."""
        said = b"Everything runs."
        wait_until(
            lambda: self.output().count(said) == self.boots or not self.is_up(),
            "`up` to come up", UP_SECONDS, self.explain,
        )  # fmt: skip
        assert self.is_up(), self.explain()

    def is_up(self) -> bool:
        return self._up is not None and self._up.poll() is None

    def output(self) -> bytes:
        """What `up` printed, over all its starts."""
        return (self.settings.home / "up.out").read_bytes()

    def stop(self) -> int:
        """Stop `up` as Ctrl-C does; its exit code."""
        assert self._up is not None
        self._up.send_signal(signal.SIGINT)
        return self._up.wait(_STOP_SECONDS)

    def close(self) -> None:
        """End whatever is left of it, also after a failed test."""
        self.registry.close()
        self.prefect.close()
        if self._up is not None:
            if self.is_up():
                try:
                    self.stop()
                except subprocess.TimeoutExpired:
                    self._up.kill()
            self._up.wait()
        if self._output is not None:
            self._output.close()
        processes.end(self.marked(), grace=2.0)
        cleanup_leftovers(self.settings)

    def muster(self, *arguments: str) -> str:
        """Run `./muster` as a person does beside `up`; its output. Fails unless it succeeds."""
        done = subprocess.run(
            [str(CHECKOUT / "muster"), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        assert 0 == done.returncode, f"muster {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def muster_json(self, *arguments: str) -> Any:
        return json.loads(self.muster(*arguments, "--json"))

    def on_machine(self, name: str, *command: str) -> str:
        """Run a command in a laboratory machine; what it printed, whatever its exit code."""
        enter = lab_machine.console_command(self.settings, name, command)
        done = subprocess.run(
            enter, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=_COMMAND_SECONDS,
        )  # fmt: skip
        return done.stdout.strip()

    def work_for(self, steps: int) -> None:
        """How many steps the role `ticking` takes in runs that begin from now on."""
        (self.settings.home / "ticks").write_text(str(steps))

    def ticks(self, name: str) -> list[str]:
        """The marks that playbooks left on a machine, step by step, oldest first."""
        # On the machine's disk, so that it can be read while the machine is down.
        path = machine_folder(self.settings, name) / "upper" / TICKS
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[0] for line in lines]

    def machine(self, name: str) -> Machine:
        with self.registry.read() as session:
            return machines.get(session, name)

    def machines(self) -> list[Machine]:
        with self.registry.read() as session:
            return machines.listing(session)

    def job(self, job_id: str) -> Job:
        with self.registry.read() as session:
            return jobs.get(session, job_id)

    def jobs(self) -> list[Job]:
        with self.registry.read() as session:
            return jobs.listing(session)

    def history(self, run: FlowRun) -> tuple[StateChange, ...]:
        """Every state that a run has had, oldest first."""
        state = run.state.id if run.state else ""
        if self._histories.get(run.id, ("", ()))[0] != state:
            self._histories[run.id] = (state, self.prefect.history(run.id))
        return self._histories[run.id][1]

    def marked(self) -> list[psutil.Process]:
        """Every living process that bears the home's mark: all that `up` started, and theirs."""
        return processes.marked(processes.HOME_MARK, str(self.settings.home))

    def find(self, *words: str, **environment: str) -> list[psutil.Process]:
        """Those of them whose command line holds all `words` and environment all variables."""
        return [p for p in self.marked() if _fits(p, words, environment)]

    def kill(self, victims: Iterable[psutil.Process]) -> int:
        """kill -9; how many there were."""
        killed = list(victims)
        for victim in killed:
            victim.kill()
        return len(killed)

    def kill_everything(self) -> int:
        """kill -9 `up`, its supervisor and all that they started, at once; how many there were."""
        assert self._up is not None
        victims = [psutil.Process(self._up.pid), *self.marked()]
        # Nobody gets the time to restart another or to stop in good order.
        for victim in victims:
            victim.suspend()
        count = self.kill(victims)
        self._up.wait()
        wait_until(lambda: self.kill(self.marked()) == 0, "all processes to be gone", 20.0)
        return count

    def api_answers(self) -> bool:
        """Whether the API is there and reaches its database and Prefect."""
        try:
            return httpx.get(f"{self.settings.api_url}/readyz", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def explain(self) -> str:
        """How things stand, for a test that failed."""
        said = self.output().decode(errors="replace").splitlines()[-25:]
        lines = ["--- up", *said, "--- registry"]
        lines += [f"{m.name} {m.state} {m.reason or ''}" for m in self.machines()]
        lines += [
            f"job {j.id} {j.machine_name} {j.state} attempts={j.attempts} run={j.flow_run_id} "
            f"{j.error or ''}"
            for j in self.jobs()
        ]
        for name in ("api", "worker"):
            log = self.settings.logs_dir / f"{name}.log"
            tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
            lines += [f"--- {name}.log", *tail]
        todo = self.settings.todo_file
        lines += ["--- TODO.md", todo.read_text() if todo.exists() else "(none)"]
        return "\n".join(lines)


def _fits(process: psutil.Process, words: tuple[str, ...], environment: dict[str, str]) -> bool:
    try:
        command, variables = " ".join(process.cmdline()), process.environ()
    except psutil.Error:
        return False
    wanted = environment.items()
    return all(w in command for w in words) and all(variables.get(k) == v for k, v in wanted)


def _plain_environment() -> dict[str, str]:
    ours = ("MUSTER_", "PREFECT_")
    kept = {"MUSTER_CACHE_DIR"}
    plain = {k: v for k, v in os.environ.items() if k in kept or not k.startswith(ours)}
    return plain | {"MUSTER_CONFIG": os.devnull}
