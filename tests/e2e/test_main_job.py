"""Muster's main job in one command: a machine boots, calls home, and is configured."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from fleet.processes import HOME_MARK, end, marked
from fleet.settings import CHECKOUT, Settings
from lab.addresses import lab_names
from lab.network import namespaces_of
from lab.teardown import cleanup_leftovers, mounts_below

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root (namespaces, systemd-nspawn)"),
    pytest.mark.timeout(1500),
]

STATES = ("added", "call-home", "called-home", "submitted", "configuring", "ready")


@pytest.fixture
def clean_lab(settings: Settings) -> Iterator[Settings]:
    yield settings
    cleanup_leftovers(settings)


@pytest.fixture
def start(clean_lab: Settings, tmp_path: Path) -> Iterator[Callable[[], tuple[Popen, Path]]]:
    """Starts `up --lab 1` to stay; gives its process and the file of its output."""
    started: list[Popen] = []

    def start_up() -> tuple[Popen, Path]:
        log = tmp_path / f"up-{len(started)}.log"
        with log.open("wb") as output:
            started.append(
                subprocess.Popen(
                    command(clean_lab), stdout=output, stderr=output, stdin=subprocess.DEVNULL
                )
            )
        return started[-1], log

    yield start_up
    for process in started:
        process.kill()
        process.wait()
    end(marked(HOME_MARK, str(clean_lab.home)), grace=5)


def command(settings: Settings, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "cli", "up", "--lab", "1", *arguments),
        *("--home", str(settings.home)),
        *("--api-port", str(settings.api_port)),
        *("--prefect-port", str(settings.prefect_port)),
    ]


def wait_for(words: str, log: Path, process: Popen, *, timeout: float = 600) -> None:
    """Wait until the output holds the words; fails with the output when `up` ends before."""
    deadline = time.monotonic() + timeout
    while words not in log.read_text():
        over = time.monotonic() > deadline or process.poll() is not None
        if over and words not in log.read_text():
            pytest.fail(f"waited for {words!r}, and `up` said:\n{log.read_text()}")
        time.sleep(0.2)


def check(settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(settings, "--check"),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=1200,
    )


def muster(settings: Settings, *arguments: str) -> str:
    """The output of a command on this home, which must succeed."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MUSTER_HOME": str(settings.home)},
        timeout=300,
    )
    assert 0 == result.returncode, result.stderr
    return result.stdout + result.stderr


def ask(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    return json.loads(muster(settings, *arguments, "--json"))


def leftovers(settings: Settings) -> list[object]:
    """Processes, namespaces and mounts that bear this home's marks and names."""
    return [
        *marked(HOME_MARK, str(settings.home)),
        *namespaces_of(lab_names(settings.home)),
        *mounts_below(Path("/proc/self/mountinfo").read_text(), settings.home),
    ]


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def test_one_command_makes_a_machine_ready_and_leaves_nothing(clean_lab: Settings):
    """`up --lab 1 --check` ends with 0 once the machine is ready; run again it keeps its state."""
    before = interfaces()
    first = check(clean_lab)
    assert 0 == first.returncode, first.stdout + first.stderr
    kinds = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +[\d.]+ s +(\S+)", first.stdout, re.M)
    assert list(STATES) == [kind for kind in kinds if kind in STATES]
    assert f"http://127.0.0.1:{clean_lab.prefect_port}/runs/flow-run/" in first.stdout
    assert [] == leftovers(clean_lab)
    assert before == interfaces()
    assert [("lab-1", "ready")] == [
        (m["name"], m["state"]) for m in ask(clean_lab, "machine", "list")
    ]
    assert ["succeeded"] == [job["state"] for job in ask(clean_lab, "job", "list")]
    assert [] == ask(clean_lab, "todo")

    second = check(clean_lab)
    assert 0 == second.returncode, second.stdout + second.stderr
    assert re.search(r"lab-1 is ready since .* and answers over SSH", second.stdout)
    assert ["succeeded"] == [job["state"] for job in ask(clean_lab, "job", "list")]
    assert [] == leftovers(clean_lab)
    assert before == interfaces()


def test_a_machine_that_fails_makes_the_check_fail(
    clean_lab: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The exit code is 1, and reason, failing task and the end of the log are told."""
    playbook = tmp_path / "failing.yaml"
    playbook.write_text(
        "- hosts: machines\n  gather_facts: false\n  tasks:\n"
        "    - name: Fail on purpose\n      ansible.builtin.fail:\n        msg: it had to be\n"
    )
    monkeypatch.setenv("MUSTER_PLAYBOOK", str(playbook))
    result = check(clean_lab)
    assert 1 == result.returncode
    assert "lab-1 is failed" in result.stderr
    assert "Fail on purpose" in result.stderr
    assert ["failed"] == [job["state"] for job in ask(clean_lab, "job", "list")]
    assert 1 <= len(ask(clean_lab, "todo"))
    assert [] == leftovers(clean_lab)


def test_a_failed_job_is_read_and_retried_from_the_command_line(
    clean_lab: Settings,
    start: Callable[[], tuple[Popen, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """`up` stays after a failure; `job log` shows it, and `job retry` heals it once mended."""
    cause = tmp_path / "cause"
    cause.touch()
    playbook = tmp_path / "fragile.yaml"
    playbook.write_text(
        "- hosts: machines\n  gather_facts: false\n  tasks:\n"
        "    - name: Fail while there is cause\n"
        "      ansible.builtin.fail:\n        msg: the cause is there\n"
        f"      when: lookup('ansible.builtin.fileglob', '{cause}') | length > 0\n"
        f"- import_playbook: {CHECKOUT / 'playbook.yaml'}\n"
    )
    monkeypatch.setenv("MUSTER_PLAYBOOK", str(playbook))
    process, log = start()
    wait_for("Everything runs.", log, process)
    assert "lab-1 is failed" in log.read_text()
    (job,) = ask(clean_lab, "job", "list")
    assert "the cause is there" in muster(clean_lab, "job", "log", job["id"])
    assert 1 <= len(ask(clean_lab, "todo"))

    cause.unlink()
    muster(clean_lab, "job", "retry", job["id"][:8])
    assert "The job succeeded." in muster(clean_lab, "job", "log", "--follow", job["id"])
    assert ["ready"] == [machine["state"] for machine in ask(clean_lab, "machine", "list")]
    process.send_signal(signal.SIGINT)
    assert 0 == process.wait(120)
    assert [] == ask(clean_lab, "todo")
    assert [] == leftovers(clean_lab)


def test_after_a_crash_of_everything_the_next_up_recovers(
    clean_lab: Settings, start: Callable[[], tuple[Popen, Path]]
):
    """kill -9 of `up` and its supervisor leaves processes and a machine; all of it is found."""
    process, log = start()
    wait_for("booted lab-1 (", log, process)
    supervisor = int((clean_lab.home / "run" / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGSTOP)
    process.kill()
    process.wait()
    os.kill(supervisor, signal.SIGKILL)
    assert [] != leftovers(clean_lab)
    result = check(clean_lab)
    assert 0 == result.returncode, result.stdout + result.stderr
    assert "Cleaned up what was left" in result.stdout
    assert [] == leftovers(clean_lab)
