"""Muster's main job in one command: a machine boots, calls home, and is configured."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.processes import HOME_MARK, marked
from fleet.settings import Settings
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


def check(settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-P", "-m", "cli", "up", "--lab", "1", "--check"),
            *("--home", str(settings.home)),
            *("--api-port", str(settings.api_port)),
            *("--prefect-port", str(settings.prefect_port)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=1200,
    )


def ask(settings: Settings, *arguments: str) -> list[dict[str, object]]:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "cli", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MUSTER_HOME": str(settings.home)},
    )
    return json.loads(result.stdout)


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
