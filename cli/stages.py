"""The stages of `./muster test`: all are run, also after one failed, and summed up at the end."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cli.junit import Skip, read_skips
from cli.packages import ensure_packages
from cli.render import Reporter, print_table
from fleet.errors import MusterError
from fleet.settings import CHECKOUT
from lab.packages import HOST_PACKAGES

# What tests start for real: databases, a browser, ssh at both ends, laboratory machines.
DEBIAN_PACKAGES = (
    *HOST_PACKAGES,
    "chromium",
    "git",
    "openssh-server",
    "postgresql",
)
PYTEST_FOLDERS = ("unit", "integration", "e2e")
NAMES = ("lint", *PYTEST_FOLDERS)
_NOTHING_COLLECTED = 5


@dataclass(frozen=True)
class Stage:
    """One command of the test run; `folder` is that of its tests if it is pytest's."""

    name: str
    command: tuple[str, ...]
    folder: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a stage ended. `skips` are what could not run here."""

    stage: Stage
    passed: bool
    seconds: float
    skips: tuple[Skip, ...] = ()


def choose(arguments: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stages that are named first among the arguments (all if none is), and what follows."""
    names: list[str] = []
    rest = list(arguments)
    while rest and rest[0] in NAMES:
        names.append(rest.pop(0))
    return tuple(names) or NAMES, tuple(rest)


def make_stages(names: Sequence[str], pytest_arguments: Sequence[str]) -> list[Stage]:
    """The commands behind the names, in the order of NAMES. Pure."""
    stages = list(_lint_stages()) if "lint" in names else []
    for folder in PYTEST_FOLDERS:
        if folder in names:
            command = (_binary("pytest"), f"tests/{folder}", *pytest_arguments)
            stages.append(Stage(folder, command, folder))
    return stages


def verdict(outcomes: Sequence[Outcome], *, ci: bool) -> tuple[bool, str]:
    """Whether the run passed, and the sentence that says so. Pure."""
    failed = [outcome.stage.name for outcome in outcomes if not outcome.passed]
    skips = sum(len(outcome.skips) for outcome in outcomes)
    if failed:
        return False, f"FAILED: {', '.join(failed)}."
    if skips and ci:
        return False, f"FAILED: {skips} tests were skipped, and CI may skip none."
    if skips:
        return True, f"PASSED, but {skips} tests could not run here."
    return True, "PASSED: everything ran."


def run(arguments: Sequence[str]) -> int:
    """Set up, run the stages that the arguments name, sum up; returns the exit code."""
    names, pytest_arguments = choose(arguments)
    if set(names) & {"integration", "e2e"}:
        _install_debian_packages()
    outcomes = [_run_stage(stage) for stage in make_stages(names, pytest_arguments)]
    passed, sentence = verdict(outcomes, ci=os.environ.get("CI", "").lower() in {"1", "true"})
    _summarise(outcomes)
    Console(highlight=False).print(Text(sentence, style="bold green" if passed else "bold red"))
    return 0 if passed else 1


def _lint_stages() -> tuple[Stage, ...]:
    return (
        Stage("ruff check", (_binary("ruff"), "check")),
        Stage("ruff format", (_binary("ruff"), "format", "--check")),
        Stage("pyright", (_binary("pyright"),)),
        Stage("import-linter", (_binary("lint-imports"),)),
        Stage("ansible-lint", (_binary("ansible-lint"), "--offline")),
    )


def _binary(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _install_debian_packages() -> None:
    """Install what is missing; what cannot be is told, and the tests skip what needs it."""
    reporter = Reporter()
    try:
        ensure_packages(DEBIAN_PACKAGES, reporter)
    except MusterError as error:
        reporter.say(str(error), "yellow")


def _run_stage(stage: Stage) -> Outcome:
    Console(highlight=False).rule(Text(stage.name, style="bold"), align="left")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{_path()}"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="muster-test-") as scratch:
        report = Path(scratch) / "junit.xml"
        extra = (f"--junitxml={report}",) if stage.folder else ()
        status = subprocess.run(
            [*stage.command, *extra], cwd=CHECKOUT, env=environment, check=False
        ).returncode
        skips = read_skips(report) if stage.folder else ()
    passed = status == 0 or (stage.folder is not None and status == _NOTHING_COLLECTED)
    return Outcome(stage, passed, time.monotonic() - began, skips)


def _path() -> str:
    return os.environ.get("PATH", os.defpath)


def _summarise(outcomes: Sequence[Outcome]) -> None:
    console = Console(highlight=False)
    console.rule(Text("summary", style="bold"), align="left")
    skips = [skip for outcome in outcomes for skip in outcome.skips]
    if skips:
        print_table(("could not run here", "reason"), [(s.test, s.reason) for s in skips])
        console.print()
    print_table(
        ("stage", "result", "seconds"),
        [(o.stage.name, _result(o), f"{o.seconds:.1f}") for o in outcomes],
    )
    console.print()


def _result(outcome: Outcome) -> Text:
    if not outcome.passed:
        return Text("failed", style="red")
    if outcome.skips:
        return Text(f"passed, {len(outcome.skips)} skipped", style="yellow")
    return Text("passed", style="green")
