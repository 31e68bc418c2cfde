"""One run of `up`, read from top to bottom: prepare, start, wait, stay, stop."""

import time
from datetime import UTC, datetime

from cli import control_plane, preflight
from cli.claim import claim
from cli.failure import tell_failure
from cli.interrupts import Hurry, Interrupted, Interrupts, interrupts
from cli.laboratory import Laboratory
from cli.packages import CONTROL_PLANE, ensure_packages
from cli.render import Reporter
from cli.supervisor import ProgramState, Supervisor
from fleet.errors import MusterError
from fleet.registry import open_registry
from fleet.settings import Settings
from lab.teardown import cleanup_leftovers
from tasks.ssh import ensure_operator_key

_STAY_POLL_SECONDS = 0.5


class Session:
    """What is running, so that it can be stopped from wherever the start came to an end."""

    def __init__(self, settings: Settings, machines: int, reporter: Reporter) -> None:
        self.laboratory = Laboratory(settings, machines, reporter) if machines else None
        self.settings = self.laboratory.settings if self.laboratory else settings
        self.reporter = reporter
        self.supervisor: Supervisor | None = None

    def prepare(self) -> None:
        """Make everything ready that costs nothing to have: folders, key, registry, network."""
        with self.reporter.step("home, key and registry") as step:
            step.what = f"home {self.settings.home}"
            ensure_operator_key(self.settings)
            open_registry(self.settings.registry_url).close()
        if self.laboratory:
            self.laboratory.prepare()

    def start(self) -> list[str]:
        """Start the control plane, and the laboratory's machines beside it.

        Returns what is wrong with machines that did not become ready.
        """
        self.supervisor = control_plane.start_supervisor(
            self.settings, laboratory=self.laboratory is not None
        )
        if self.laboratory:
            self.laboratory.start_building()
        control_plane.wait_until_healthy(self.settings, self.supervisor, self.reporter)
        with self.reporter.step("flows deployed"):
            control_plane.deploy(self.settings)
        with self.reporter.step("worker"):
            control_plane.start_worker(self.settings, self.supervisor)
        if self.laboratory is None:
            return []
        self.laboratory.boot()
        return self.laboratory.wait_until_ready(self.supervisor)

    def tell_urls(self) -> None:
        settings, say = self.settings, self.reporter.say
        say("")
        say(f"Prefect   {settings.prefect_url}", "bold")
        say(f"API       http://{settings.api_host}:{settings.api_port}/docs", "bold")
        for line in self.laboratory.run_lines() if self.laboratory else ():
            say(line)
        say(f"logs      {settings.logs_dir}")
        say("")

    def stay(self) -> None:
        """Say what changes among the processes until somebody interrupts.

        Raises SetupFailed when a process could not be kept running.
        """
        assert self.supervisor is not None  # noqa: S101 - started before
        self.reporter.say("Everything runs. Ctrl-C stops it.")
        seen: dict[str, ProgramState] = {}
        while True:
            states = self.supervisor.states()
            for line in changes(seen, states, time.time()):
                self.reporter.say(f"{datetime.now(UTC).astimezone():%T} {line}")
            control_plane.raise_if_lost(self.supervisor)
            seen = states
            time.sleep(_STAY_POLL_SECONDS)

    def stop(self) -> None:
        """Stop worker, runs, machines, API and server in this order; nothing is left behind."""
        self.reporter.say("")
        with self.reporter.step("stopped worker and runs"):
            control_plane.stop_work(self.settings, self.supervisor)
        if self.laboratory:
            self.laboratory.stop_machines()
        self._end(grace=40.0)

    def hurry(self) -> None:
        """Kill what still runs."""
        self._end(grace=0.5)

    def _end(self, *, grace: float) -> None:
        with self.reporter.step("stopped all processes"):
            control_plane.stop(self.settings, self.supervisor, grace=grace)
            if self.laboratory:
                self.laboratory.clean_up()


def run(settings: Settings, *, machines: int, check: bool) -> int:
    """Run `up` from start to end; returns its exit code.

    Raises MusterError before anything is started; later failures are told, and all is stopped.
    """
    reporter = Reporter()
    session = Session(settings, machines, reporter)
    ensure_packages(CONTROL_PLANE, reporter)
    if session.laboratory:
        session.laboratory.require_host()
    preflight.make_folders(session.settings)
    with interrupts() as signals, claim(session.settings) as crashed:
        _clean_up_leftovers(session, crashed=crashed)
        preflight.check_ports(preflight.needed_ports(session.settings))
        try:
            return _start_and_stay(session, check=check)
        finally:
            _stop(session, signals)


def _start_and_stay(session: Session, *, check: bool) -> int:
    try:
        session.prepare()
        problems = session.start()
        session.tell_urls()
        for problem in problems:
            tell_failure(problem, "Retry its run in Prefect's UI, or: muster job retry JOB")
        if check:
            return 1 if problems else 0
        session.stay()
    except Interrupted:
        session.reporter.say("Stopping (Ctrl-C again hurries).")
        # Somebody who ends a check early has not seen it succeed.
        return 1 if check else 0
    except MusterError as error:
        tell_failure(error.detail, error.remedy)
        return 1
    return 0


def _stop(session: Session, signals: Interrupts) -> None:
    signals.stopping()
    try:
        session.stop()
    except Hurry:
        session.hurry()
    signals.ignore()


def _clean_up_leftovers(session: Session, *, crashed: bool) -> None:
    """End what an earlier `up` left. Laboratory machines that were booted by hand may go on
    unless `up` is about to run a laboratory itself.
    """
    ended = preflight.end_leftovers(session.settings)
    found = [f"{ended} processes"] if ended else []
    if crashed or session.laboratory:
        found += cleanup_leftovers(session.settings)
    if found:
        session.reporter.say(f"Cleaned up what was left: {', '.join(found)}.")


def changes(
    before: dict[str, ProgramState], after: dict[str, ProgramState], now: float
) -> list[str]:
    """One line for each program that is not as it was. Pure; `now` is the Unix clock."""
    lines: list[str] = []
    for name, state in after.items():
        old = before.get(name)
        if old is not None and (old.state, old.pid) == (state.state, state.pid):
            continue
        restarted = old is not None and old.pid and state.pid and old.pid != state.pid
        word = "restarted" if restarted else state.state.lower()
        uptime = f", up {now - state.started:.0f} s" if state.pid else f": {state.note}"
        process = f" (process {state.pid}" + uptime + ")" if state.pid else uptime
        lines.append(f"{name:<8} {word}{process}")
    return lines
