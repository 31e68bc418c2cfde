"""What Ansible's own programs make of the checkout, without a machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.names import RESERVED_NAMES
from fleet.settings import CHECKOUT

PROGRAMS = Path(sys.executable).parent


def run_by_hand(home: Path, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run one of Ansible's programs in the checkout, as somebody whose MUSTER_HOME is `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment = {
        "MUSTER_HOME": str(home),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }
    return subprocess.run(
        [str(PROGRAMS / program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        timeout=120,
        env=kept | environment,
    )


def write_view(home: Path, text: str) -> None:
    (home / "inventory").mkdir()
    (home / "inventory" / "machines.yaml").write_text(text)


def test_inventory_without_machines_is_no_cause_for_warnings(tmp_path: Path) -> None:
    """Before the first machine the inventory is quiet and has no hosts; its groups are reserved."""
    done = run_by_hand(tmp_path, "ansible-inventory", "--list")
    assert done.stderr == ""
    inventory = json.loads(done.stdout)
    assert inventory["_meta"]["hostvars"] == {}
    assert set(inventory) - {"_meta"} <= RESERVED_NAMES


def test_playbook_without_machines_is_no_cause_for_warnings(tmp_path: Path) -> None:
    """Before the first machine the playbook has nothing to do and nothing to warn of."""
    done = run_by_hand(tmp_path, "ansible-playbook", "playbook.yaml")
    assert (done.returncode, done.stderr) == (0, "")


def test_machines_of_the_view_join_the_hand_kept_groups(tmp_path: Path) -> None:
    """A machine of the view is in `machines` and has the group's variables."""
    write_view(tmp_path, "machines: {hosts: {node-1: {ansible_host: 192.0.2.7}}}")
    done = run_by_hand(tmp_path, "ansible-inventory", "--list")
    assert done.stderr == ""
    inventory = json.loads(done.stdout)
    assert inventory["machines"]["hosts"] == ["node-1"]
    variables = inventory["_meta"]["hostvars"]["node-1"]
    assert variables["ansible_host"] == "192.0.2.7"
    assert "common_authorized_keys" in variables


def test_unsafe_text_in_the_view_stays_text(tmp_path: Path) -> None:
    """A value marked `!unsafe` is printed as it stands, its braces never evaluated."""
    write_view(tmp_path, "machines: {hosts: {node-1: {model: !unsafe '{{ 6 * 7 }}'}}}")
    ask = ("node-1", "--connection", "local", "-m", "ansible.builtin.debug", "-a", "var=model")
    done = run_by_hand(tmp_path, "ansible", *ask)
    assert done.returncode == 0, done.stderr
    assert "{{ 6 * 7 }}" in done.stdout


@pytest.mark.parametrize("text", ["machines: [", "just words", ""])
def test_a_broken_view_is_an_error(tmp_path: Path, text: str) -> None:
    """A view that cannot be read stops the playbook; it never passes for a fleet of none."""
    write_view(tmp_path, text)
    done = run_by_hand(tmp_path, "ansible-playbook", "playbook.yaml")
    assert done.returncode != 0
    assert "registry.yaml" in done.stderr


def test_playbook_passes_ansible_lint(tmp_path: Path) -> None:
    """ansible-lint accepts playbook and roles under its profile `production`, offline."""
    done = run_by_hand(
        tmp_path, "ansible-lint", "--offline", "--nocolor", "playbook.yaml", "roles", "inventory"
    )
    assert done.returncode == 0, done.stdout + done.stderr
