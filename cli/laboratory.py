"""The laboratory's part of `up`: boot lab-1 … lab-N, and watch them until they are ready."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime

from cli import control_plane
from cli.machine import print_timeline
from cli.packages import ensure_packages
from cli.progress import Enrolment, decide_enrolment, describe, problem
from cli.render import Reporter, Step
from cli.supervisor import Supervisor, tail
from cli.watch import Boot, Watch, find_machine
from fleet import enrolment, events, jobs, machines
from fleet.errors import SetupFailed
from fleet.registry import Registry, open_registry
from fleet.settings import CHECKOUT, Settings
from fleet.states import MachineState
from lab import machine as lab_machine
from lab import network
from lab.addresses import lab_names, lab_subnet, ssh_proxy_entry
from lab.packages import HOST_PACKAGES
from lab.processes import wait_until
from lab.provision import InjectedFile
from lab.proxy_process import answers
from lab.store import find_record, machine_folder
from lab.teardown import cleanup_leftovers
from netboot.enrol import enrol, renew_token
from netboot.first_boot import TOKEN_PATH, UNIT_NAME, first_boot_files, operator_keys
from netboot.orchestrator import Orchestrator
from tasks.ssh import verify

_POLL_SECONDS = 0.5
_BOOTS_AT_ONCE = 4
_STOP_SECONDS = 15.0
_BASE_SECONDS = 1800.0


class Laboratory:
    """The machines lab-1 … lab-N of one home, and the settings with which they are reached."""

    def __init__(self, settings: Settings, count: int, reporter: Reporter) -> None:
        self.settings = laboratory_settings(settings)
        self.names = tuple(f"lab-{number}" for number in range(1, count + 1))
        self.api_url = f"http://{lab_subnet(settings).gateway}:{settings.api_port}"
        self._reporter = reporter
        self._building: subprocess.Popen[bytes] | None = None
        self._boots: tuple[Boot, ...] = ()

    def require_host(self) -> None:
        """Raise SetupFailed unless this is root; install the Debian packages it takes."""
        if os.geteuid() != 0:
            raise SetupFailed(
                "A laboratory makes namespaces and mounts, which only root may do.",
                remedy="Run the same command as root, or `./muster up` without --lab.",
            )
        ensure_packages(HOST_PACKAGES, self._reporter)

    def prepare(self) -> None:
        """Make the network, in which the API and the proxy are about to listen."""
        with self._reporter.step(f"laboratory's network {self.settings.lab_subnet}"):
            network.up(lab_names(self.settings.home), lab_subnet(self.settings))

    def start_building(self) -> None:
        """Build the base that all machines share, in the background."""
        with (self.settings.logs_dir / "lab-base.log").open("wb") as log:
            self._building = subprocess.Popen(
                [sys.executable, "-m", "cli.lab_base"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=CHECKOUT,
                env=control_plane.environment(self.settings, os.environ),
                start_new_session=True,
            )

    def boot(self) -> None:
        """Wait for the base, then boot every machine. Raises SetupFailed."""
        self._wait_for_base()
        with self._reporter.step("laboratory's proxy"):
            wait_until(
                lambda: answers(self.settings),
                what="the laboratory's proxy",
                timeout=self.settings.start_timeout,
            )
        with (
            self._reporter.step(f"booted {', '.join(self.names)}"),
            self._registry() as registry,
            ThreadPoolExecutor(_BOOTS_AT_ONCE) as pool,
        ):
            self._boots = tuple(pool.map(lambda name: self._boot_one(registry, name), self.names))

    def wait_until_ready(self, running: Supervisor) -> list[str]:
        """Watch until every machine is ready or has failed, and print their timelines.

        Returns what is wrong: a text for each machine that did not become ready in time.
        """
        deadline = time.monotonic() + self.settings.ready_timeout
        problems: list[str] = []
        with self._registry() as registry, closing(Orchestrator(self.settings)) as prefect:
            for boot in self._boots:
                watch = Watch(registry, prefect, running, boot)
                with self._reporter.step(f"{boot.name} becomes ready") as step:
                    problems += self._until_ready(watch, step, deadline)
            for name in self.names:
                self._print_timeline(registry, name)
        return problems

    def run_lines(self) -> list[str]:
        """Where the run of each machine is in Prefect's UI."""
        with self._registry() as registry, registry.read() as session:
            found = [
                job for name in self.names for job in jobs.listing(session, machine=name, limit=1)
            ]
        url = self.settings.flow_run_url
        return [f"{j.machine_name:<9} {url(j.flow_run_id)}" for j in found if j.flow_run_id]

    def stop_machines(self) -> None:
        """Shut the machines down in good order."""
        with (
            self._reporter.step(f"stopped {', '.join(self.names)}"),
            ThreadPoolExecutor(_BOOTS_AT_ONCE) as pool,
        ):
            present = [name for name in self.names if find_record(self.settings, name)]
            stop = lab_machine.stop
            for _ in pool.map(lambda name: stop(self.settings, name, _STOP_SECONDS), present):
                pass

    def clean_up(self) -> None:
        """Remove network, mounts and whatever still runs of this laboratory."""
        cleanup_leftovers(self.settings)
        left = network.namespaces_of(lab_names(self.settings.home))
        if left:
            raise SetupFailed(
                f"These namespaces are left: {', '.join(left)}.",
                remedy=f"Remove them: {'; '.join(f'ip netns del {netns}' for netns in left)}",
            )

    def _wait_for_base(self) -> None:
        assert self._building is not None  # noqa: S101 - start_building comes first
        log = self.settings.logs_dir / "lab-base.log"
        with self._reporter.step("laboratory's base, Debian 13") as step:
            deadline = time.monotonic() + _BASE_SECONDS
            while self._building.poll() is None:
                if time.monotonic() > deadline:
                    raise SetupFailed(f"The base took longer than {_BASE_SECONDS:.0f} s: {log}")
                step.detail(tail(log, 1))
                time.sleep(_POLL_SECONDS)
        if self._building.returncode != 0:
            raise SetupFailed(
                f"The laboratory's base could not be built:\n{tail(log, 8)}",
                remedy=f"The whole log is {log}.",
            )

    def _boot_one(self, registry: Registry, name: str) -> Boot:
        machine = find_machine(registry, name)
        wanted = decide_enrolment(
            machine.state if machine else None,
            has_disk=find_record(self.settings, name) is not None,
            token_usable=self._token_is_usable(registry, name),
        )
        with registry.read() as session:
            before = jobs.listing(session, machine=machine.id, limit=1) if machine else []
        files = self._enrolment_files(registry, name, wanted)
        units = (UNIT_NAME,) if files else ()
        lab_machine.boot(self.settings, name, inject=files, enable=units)
        is_ready = machine is not None and machine.state is MachineState.READY
        return Boot(
            name,
            job_before=before[0].id if before else None,
            calls_home=not is_ready or wanted is not Enrolment.NONE,
        )

    def _enrolment_files(
        self, registry: Registry, name: str, wanted: Enrolment
    ) -> tuple[InjectedFile, ...]:
        """What to put into the machine so that it calls home; nothing if it needs nothing."""
        if wanted is Enrolment.NONE:
            return ()
        make = enrol if wanted is Enrolment.NEW_MACHINE else renew_token
        token = make(registry, self.settings, name).token
        files = first_boot_files(self.api_url, token, operator_keys(self.settings))
        return tuple(InjectedFile(file.path, file.content, file.mode) for file in files)

    def _token_is_usable(self, registry: Registry, name: str) -> bool:
        """Whether the token on the machine's disk is still good for a call home."""
        file = machine_folder(self.settings, name) / "upper" / TOKEN_PATH.lstrip("/")
        if not file.is_file():
            return False
        token = file.read_text(errors="replace").strip()
        with registry.read() as session:
            return enrolment.is_usable(session, token, now=datetime.now(UTC))

    def _until_ready(self, watch: Watch, step: Step, deadline: float) -> list[str]:
        look = watch.look()
        was_ready = look.is_ready
        while not look.is_final and time.monotonic() < deadline:
            step.detail(describe(look))
            time.sleep(_POLL_SECONDS)
            look = watch.look()
        if not look.is_ready:
            step.failed(f"{look.machine.name} is {look.state}")
            return [problem(look, self.settings.ready_timeout, watch.last_lines())]
        step.what = f"{look.machine.name} is ready"
        if was_ready:
            verify(self.settings, look.machine)
            step.what += f" since {look.machine.ready_at:%F %T}Z and answers over SSH"
        return []

    def _print_timeline(self, registry: Registry, name: str) -> None:
        with registry.read() as session:
            machine = machines.get(session, name)
            timeline = events.timeline(session, machine.id)
        print_timeline(machine, timeline)

    @contextmanager
    def _registry(self) -> Iterator[Registry]:
        registry = open_registry(self.settings.registry_url)
        try:
            yield registry
        finally:
            registry.close()


def laboratory_settings(settings: Settings) -> Settings:
    """The settings with which everything reaches this laboratory, and it us."""
    netns = lab_names(settings.home).netns
    bind = f"{netns}={lab_subnet(settings).gateway}:{settings.api_port}"
    values = settings.model_dump() | {
        "api_namespace_binds": (*settings.api_namespace_binds, bind),
        "ssh_proxies": (ssh_proxy_entry(settings), *settings.ssh_proxies),
    }
    return Settings(**values)
