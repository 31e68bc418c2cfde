"""A stage for the flows: a real Prefect server and worker, and a real machine behind real SSH."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from fleet import enrolment, jobs, machines, processes, todo
from fleet.models import Job, Machine
from fleet.prefect_environment import prefect_environment
from fleet.registry import Registry, open_registry
from fleet.reports import CallHome
from fleet.settings import CHECKOUT, Settings
from lab import machine as laboratory
from lab import teardown
from lab.addresses import ssh_proxy_entry
from lab.packages import missing_packages
from lab.provision import InjectedFile
from netboot.orchestrator import FINAL_STATES, FlowRun, Orchestrator, PrefectUnavailable
from tasks.ssh import ensure_operator_key

NAME = "node-1"
CANARY = "canary-7f3d9a51c2e84b60"
DEPLOYMENT = "handle-call-home/handle-call-home"
T = TypeVar("T")

# What a playbook must leave so that the machine can be verified.
FACTS = """\
    - name: Name the machine
      ansible.builtin.hostname:
        name: "{{ inventory_hostname }}"
    - name: Make the folder for facts
      ansible.builtin.file:
        path: /etc/ansible/facts.d
        state: directory
        mode: "0755"
    - name: Write the facts
      ansible.builtin.copy:
        dest: /etc/ansible/facts.d/muster.fact
        mode: "0644"
        content: >-
          {{ {'name': inventory_hostname, 'machine_id': muster_machine_id, 'roles': ['common']}
             | to_json }}
"""


def playbook(*tasks: str, facts: str = FACTS) -> str:
    """A playbook for all machines: `tasks`, each the YAML of one, then the facts."""
    head = "- hosts: machines\n  gather_facts: false\n  tasks:\n"
    lines = [f"    - {line}" if i == 0 else f"      {line}"
             for task in tasks for i, line in enumerate(task.strip().splitlines())]  # fmt: skip
    return head + "\n".join([*lines, facts])


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 60.0) -> T:
    """The first truthy value of `look`; fails, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return seen


@dataclass(frozen=True)
class Stage:
    """The running parts, and what tests do with them."""

    settings: Settings
    environment: dict[str, str]
    registry: Registry
    orchestrator: Orchestrator
    host_keys: tuple[str, ...]
    address: str

    def play(self, text: str) -> None:
        """Make `text` the playbook of the settings."""
        self.settings.playbook.write_text(text, encoding="utf-8")

    def machine(self) -> Machine:
        with self.registry.read() as session:
            return machines.get(session, NAME)

    def job(self, job_id: str) -> Job:
        with self.registry.read() as session:
            return jobs.get(session, job_id)

    def call_home(self) -> tuple[FlowRun, Job]:
        """What a call home and the outbox do: a new job, and its flow run."""
        report = CallHome(hostname=NAME, boot_id=str(uuid.uuid4()), ssh_host_keys=self.host_keys)
        now = datetime.now(UTC)
        with self.registry.write() as session:
            machine = machines.get(session, NAME)
            token = enrolment.mint(session, machine, now=now, life=3600)
            accepted = enrolment.call_home(session, token, report, peer=self.address, now=now)
        assert isinstance(accepted, enrolment.Accepted)
        job = accepted.job
        run = self.make_run(
            DEPLOYMENT,
            {"machine_id": job.machine_id, "job_id": job.id},
            idempotency_key=job.id,
            name=f"{NAME}-{job.id[:8]}",
            tags=[f"machine:{NAME}"],
        )
        with self.registry.write() as session:
            jobs.submitted(session, job.id, run.id, now=now)
        return run, job

    def make_run(self, deployment: str, parameters: dict[str, Any], **named: Any) -> FlowRun:
        """Make a flow run, as often as it takes: Prefect's SQLite may be busy for a while."""

        def attempt() -> FlowRun | None:
            with suppress(PrefectUnavailable):
                return self.orchestrator.create_run(deployment, parameters, **named)
            return None

        return wait_for(f"a run of {deployment}", attempt)

    def run(self, deployment: str, parameters: dict[str, Any]) -> FlowRun:
        return self.make_run(
            deployment, parameters, idempotency_key=str(uuid.uuid4()), name="by-hand", tags=[]
        )

    def state(self, run: FlowRun) -> str:
        return self.orchestrator.runs([run.id])[run.id].state_type

    def end_of(self, run: FlowRun, seconds: float = 90.0) -> str:
        """The final state's type, once the run has one and its job, if any, has ended."""
        try:
            wait_for(f"the end of {run.name}", lambda: self.state(run) in FINAL_STATES, seconds)
        finally:
            print(f"--- log of {run.name} {run.id}\n{self.log(run)}")  # noqa: T201 - for pytest
        return self.state(run)

    def wait_for_line(self, run: FlowRun, part: str, seconds: float = 60.0) -> None:
        """Wait until a line with `part` stands in the run's log."""
        wait_for(f"{part!r} in the log", lambda: part in self.log(run), seconds)

    def log(self, run: FlowRun) -> str:
        return "\n".join(line.message for line in self.orchestrator.logs(run.id))

    def entries(self, run: FlowRun) -> list[todo.Listed]:
        return [e for e in todo.read(self.settings.todo_file) if e.flow_run_id == run.id]

    def wait_for_entry(self, run: FlowRun, attempt: int = 1) -> todo.Listed:
        def look() -> todo.Listed | None:
            return next((e for e in self.entries(run) if e.attempt == attempt), None)

        return wait_for(f"the entry of {run.name} in TODO.md", look, 40)

    def leftovers(self, run: FlowRun) -> list[psutil.Process]:
        """The living processes that work for the run."""
        marked = processes.marked(processes.RUN_MARK, run.id)
        return [process for process in marked if process.status() != psutil.STATUS_ZOMBIE]

    def ansible_of(self, run: FlowRun) -> psutil.Process:
        """The run's ansible-playbook, once it lives."""

        def look() -> psutil.Process | None:
            for process in self.leftovers(run):
                command = process.cmdline()
                if any(part.endswith("ansible-playbook") for part in command[:3]):
                    return process
            return None

        return wait_for("ansible-playbook", look)

    def processes_of(self, run: FlowRun) -> list[psutil.Process]:
        """The living processes of the flow run itself."""
        found = processes.marked(processes.PREFECT_RUN_MARK, run.id)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def process_of(self, run: FlowRun) -> psutil.Process:
        """The process of the flow run itself, once it lives."""
        return wait_for("the flow's process", lambda: self.processes_of(run))[0]

    def inside(self, *command: str) -> str:
        """Run a command in the machine and return what it prints."""
        done = subprocess.run(
            laboratory.console_command(self.settings, NAME, command),
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Prefect's API directly, again while its SQLite is busy."""
        url = f"{self.settings.prefect_url}/api{path}"

        def attempt() -> tuple[httpx.Response] | None:
            answer = httpx.request(method, url, json=body, trust_env=False, timeout=30)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else (answer,)

        (answer,) = wait_for(f"an answer to {method} {path}", attempt)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def artifacts(self, run: FlowRun) -> list[dict[str, Any]]:
        """The artifacts of a run and of the flows it called."""
        children = self.api(
            "POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run.id]}}}
        )
        ids = [run.id, *(child["id"] for child in children)]
        return self.api("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": ids}}})


@contextmanager
def running(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A child process with its output in `log`; ended on leaving."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(command), env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, cwd=CHECKOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def stage_environment(settings: Settings) -> dict[str, str]:
    """The environment of the processes, as `up` makes it."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("MUSTER_", "PREFECT_"))}
    return outer | settings.to_environment() | prefect_environment(settings) | {
        "MUSTER_CONFIG": str(settings.home / "no-muster.toml"),
        processes.HOME_MARK: str(settings.home),
    }  # fmt: skip


@contextmanager
def worker_of(
    settings: Settings, environment: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A stock worker on the pool, once it polls."""
    command = [
        sys.executable, "-m", "prefect", "worker", "start", "--pool", settings.work_pool,
        "--type", "process",
    ]  # fmt: skip
    log = settings.logs_dir / "worker.log"
    with running(command, environment, log) as child:
        wait_for("the worker", lambda: "started!" in log.read_text(errors="replace"), 60)
        yield child


@contextmanager
def set_stage(port: int) -> Iterator[Stage]:
    """Put up the stage; takes about twenty seconds, most of them Prefect's server."""
    if os.geteuid() != 0:
        pytest.skip("the laboratory needs root")
    if missing_packages():
        pytest.skip(f"Debian packages are missing: {' '.join(missing_packages())}")
    home = Path(tempfile.mkdtemp(prefix="muster-stage-"))
    base = Settings(home=home)
    settings = Settings(
        home=home,
        prefect_port=port,
        playbook=home / "playbooks" / "site.yaml",
        ssh_proxies=(ssh_proxy_entry(base),),
        connect_timeout=3,
        transient_retries=2,
        transient_retry_delay=0.5,
        lock_timeout=60,
        max_runs=3,
    )
    for folder in (settings.playbook.parent, settings.logs_dir):
        folder.mkdir(parents=True)
    settings.secrets_file.touch(mode=0o600)
    settings.secrets_file.write_text(json.dumps({"site_secret": CANARY, "nested": [{"a": CANARY}]}))
    environment = stage_environment(settings)
    server = [sys.executable, "-m", "prefect", "server", "start"]
    try:
        with running(server, environment, settings.logs_dir / "server.log"):
            node = _boot(settings)
            orchestrator = Orchestrator(settings)
            wait_for("the Prefect server", orchestrator.healthy, 90)
            subprocess.run(
                [sys.executable, "-m", "flows.deploy"], env=environment, cwd=CHECKOUT, check=True
            )
            registry = open_registry(settings.registry_url)
            with registry.write() as session:
                machines.add(session, NAME, now=datetime.now(UTC))
            with worker_of(settings, environment):
                yield Stage(
                    settings, environment, registry, orchestrator, _host_keys(settings),
                    node.address,
                )  # fmt: skip
            orchestrator.close()
            registry.close()
    finally:
        teardown.cleanup_leftovers(settings)
        shutil.rmtree(home, ignore_errors=True)


def _boot(settings: Settings) -> laboratory.LabMachine:
    key = ensure_operator_key(settings)
    public = key.with_name(f"{key.name}.pub").read_bytes()
    return laboratory.boot(
        settings, NAME, inject=[InjectedFile("/root/.ssh/authorized_keys", public, 0o600)]
    )


def _host_keys(settings: Settings) -> tuple[str, ...]:
    done = subprocess.run(
        laboratory.console_command(
            settings, NAME, ("sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
        ),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tuple(" ".join(line.split()[:2]) for line in done.stdout.splitlines())
