"""The control plane on one host: which processes it is made of, started and stopped in order."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from cli import supervisor
from cli.claim import run_dir, temporary_dir
from cli.render import Reporter
from cli.supervisor import Program, Supervisor
from fleet import processes
from fleet.errors import DeadlineExceeded, MusterError, SetupFailed
from fleet.prefect_environment import prefect_environment
from fleet.settings import CHECKOUT, Settings

_POLL_SECONDS = 0.2
_REQUEST_SECONDS = 2.0
_ENDED = frozenset({"BACKOFF", "EXITED", "FATAL", "UNKNOWN"})


def programs(settings: Settings, *, laboratory: bool) -> list[Program]:
    """The programs of the control plane, in the order of their start."""
    python = sys.executable
    pool = ("--pool", settings.work_pool, "--type", "process")
    wanted = [
        Program("prefect", (python, "-m", "prefect", "server", "start"), 200, stop_seconds=15),
        Program("api", (python, "-m", "netboot.serve"), 300),
        # Last up and first down: a worker that lost its server lingers for minutes.
        Program(
            "worker", (python, "-m", "prefect", "worker", "start", *pool), 400,
            autostart=False, stop_seconds=15,
        ),
    ]  # fmt: skip
    proxy = Program("proxy", (python, "-m", "lab.proxy"), 100)
    return [proxy, *wanted] if laboratory else wanted


def environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """What every process of the control plane gets: settings, Prefect's, and the home's mark."""
    binaries = str(Path(sys.executable).parent)
    temporary = temporary_dir(settings)
    return {
        **inherited,
        **({"TMPDIR": str(temporary)} if temporary else {}),
        "PATH": f"{binaries}{os.pathsep}{inherited.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        **settings.to_environment(),
        **prefect_environment(settings),
        processes.HOME_MARK: str(settings.home),
    }


def start_supervisor(settings: Settings, *, laboratory: bool) -> Supervisor:
    """Start supervisord; Prefect's server and the API (and the proxy) start at once with it."""
    return supervisor.start(
        programs(settings, laboratory=laboratory),
        run_dir=run_dir(settings),
        logs_dir=settings.logs_dir,
        environment=environment(settings, os.environ),
        root=os.geteuid() == 0,
    )


def wait_until_healthy(settings: Settings, running: Supervisor, reporter: Reporter) -> None:
    """Wait until server and API answer. Raises SetupFailed with the culprit's last words."""
    checks = (
        ("prefect", "Prefect server", f"{settings.prefect_url}/api/health"),
        ("api", "API", f"http://{settings.api_host}:{settings.api_port}/healthz"),
    )
    deadline = time.monotonic() + settings.start_timeout
    for name, title, url in checks:
        with reporter.step(f"{title} at {url.rsplit('/', 1)[0].removesuffix('/api')}"):
            _wait_for(lambda url=url: _answers(url), running, name, deadline, settings)


def deploy(settings: Settings) -> None:
    """Make or renew work pool, deployments and automation. Raises SetupFailed."""
    log = settings.logs_dir / "deploy.log"
    with log.open("wb") as output:
        result = subprocess.run(
            [sys.executable, "-m", "flows.deploy"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=CHECKOUT,
            env=environment(settings, os.environ),
            timeout=settings.start_timeout,
            check=False,
        )
    if result.returncode != 0:
        raise SetupFailed(
            f"The flows could not be deployed:\n{supervisor.tail(log, 12)}",
            remedy=f"The whole log is {log}.",
        )


def start_worker(settings: Settings, running: Supervisor) -> None:
    """Start the worker and wait until it runs. Raises SetupFailed with its last words."""
    running.start("worker")
    deadline = time.monotonic() + settings.start_timeout
    _wait_for(
        lambda: running.states()["worker"].state == "RUNNING", running, "worker", deadline, settings
    )


def raise_if_lost(running: Supervisor) -> None:
    """Raise SetupFailed, with its last words, for a program that was given up."""
    for state in running.states().values():
        if state.state == "FATAL":
            raise SetupFailed(
                f"{state.name} ended again and again. Its log ends with:\n"
                f"{running.last_words(state.name)}",
                remedy=f"The whole log is {running.logs_dir / f'{state.name}.log'}.",
            )


def stop_work(settings: Settings, running: Supervisor | None) -> None:
    """Stop the worker, then the runs that it had started, while Prefect can still note it."""
    if running is None or not running.alive():
        return
    try:
        running.stop("worker", timeout=25.0)
        supervised = {state.pid for state in running.states().values()} | {running.process.pid}
    except MusterError:
        return  # what is left is ended with all the rest
    left = processes.marked(processes.HOME_MARK, str(settings.home))
    processes.end([p for p in left if p.pid not in supervised], grace=5.0)


def stop(settings: Settings, running: Supervisor | None, *, grace: float) -> None:
    """Stop what still runs of the control plane and wait for its end.

    Raises DeadlineExceeded naming processes that would not go.
    """
    if running is not None:
        running.shut_down(timeout=grace)
    home = str(settings.home)
    processes.end(processes.marked(processes.HOME_MARK, home), grace=min(grace, 5.0))
    left = processes.marked(processes.HOME_MARK, home)
    if left:
        raise DeadlineExceeded(
            f"These processes did not end: {', '.join(str(p.pid) for p in left)}.",
            remedy="End them by hand; the next `./muster up` tries again as well.",
        )


def _wait_for(
    condition: Callable[[], bool],
    running: Supervisor,
    name: str,
    deadline: float,
    settings: Settings,
) -> None:
    # While starting, a program that ended is a failure; later the supervisor restarts it.
    while True:
        state = running.states()[name]
        if state.state in _ENDED:
            raise _did_not_start(running, name, f"{name} ended while starting: {state.note}")
        if condition():
            return
        if time.monotonic() > deadline:
            seconds = f"{settings.start_timeout:.0f} s (MUSTER_START_TIMEOUT)"
            raise _did_not_start(running, name, f"{name} did not answer within {seconds}")
        time.sleep(_POLL_SECONDS)


def _did_not_start(running: Supervisor, name: str, what: str) -> SetupFailed:
    return SetupFailed(
        f"{what.rstrip('.')}. Its log ends with:\n{running.last_words(name)}",
        remedy=f"The whole log is {running.logs_dir / f'{name}.log'}.",
    )


def _answers(url: str) -> bool:
    try:
        # Neighbours on this host: a proxy from the environment has no business here.
        return httpx.get(url, timeout=_REQUEST_SECONDS, trust_env=False).is_success
    except httpx.HTTPError:
        return False
