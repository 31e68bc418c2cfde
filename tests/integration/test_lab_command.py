"""`./muster lab` as people and scripts use it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.lab import app
from fleet.errors import InvalidRequest, SetupFailed, UnknownMachine
from fleet.settings import CHECKOUT, Settings
from lab import teardown
from lab.packages import missing_packages


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUSTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def lab_home(home: Path) -> Iterator[Path]:
    """A home whose laboratory can run here, and is taken down afterwards."""
    if os.geteuid() != 0:
        pytest.skip("the laboratory needs root")
    if missing_packages():
        pytest.skip(f"Debian packages are missing: {' '.join(missing_packages())}")
    yield home
    teardown.cleanup_leftovers(Settings(home=home))


def lab(*arguments: str) -> str:
    """Run a command; returns what it prints, and raises what it raises."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert 0 == result.exit_code, result.output
    return result.stdout


def test_an_empty_laboratory_is_an_empty_array(home: Path) -> None:
    """Listing needs neither root nor anything that runs, and makes nothing."""
    assert [] == json.loads(lab("list", "--json"))
    assert "State" in lab("list")
    assert not home.exists()


@pytest.mark.root
def test_a_machines_day(lab_home: Path) -> None:
    """Boot, list, run a command in it, stop, destroy: each shows in the list."""
    assert "running" in lab("boot", "node-1")
    [booted] = json.loads(lab("list", "--json"))
    assert {"name", "state", "address", "leader_pid", "netns"} == set(booted)
    assert ("node-1", "running") == (booted["name"], booted["state"])
    lab("stop", "--all")
    [stopped] = json.loads(lab("list", "--json"))
    assert ("stopped", None) == (stopped["state"], stopped["leader_pid"])
    lab("destroy", "node-1")
    assert [] == json.loads(lab("list", "--json"))


@pytest.mark.root
def test_the_exit_code_of_a_command_inside_is_the_consoles(lab_home: Path) -> None:
    """`console NAME -- COMMAND` ends as the command ended."""
    lab("boot", "node-1")
    result = CliRunner().invoke(app, ["console", "node-1", "--", "sh", "-c", "exit 7"])
    assert 7 == result.exit_code


@pytest.mark.root
def test_mistakes_are_named(lab_home: Path) -> None:
    """No names, names beside --all, and unknown machines are told apart."""
    for arguments in (["stop"], ["stop", "node-1", "--all"]):
        with pytest.raises(InvalidRequest, match="Neither"):
            lab(*arguments)
    for command in ("stop", "destroy", "console"):
        with pytest.raises(UnknownMachine, match="ghost"):
            lab(command, "ghost")


@pytest.mark.root
def test_an_ordinary_user_is_told_to_be_root(lab_home: Path) -> None:
    """Without root nothing is begun, and the error says so."""
    script = (
        "import os; os.setuid(65534)\n"
        "from lab.packages import require_host\n"
        "try:\n    require_host()\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import cli.lab, fleet.settings\n{script}"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(SetupFailed.__name__)
    assert "root" in result.stdout
