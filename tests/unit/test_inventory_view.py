"""The generated inventory: what stands in it, and when it is written."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fleet.models import Machine
from fleet.settings import Settings
from fleet.states import MachineState
from tasks.inventory import refresh, render

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s"


def machine(name: str, **changes: object) -> Machine:
    facts: dict[str, object] = {
        "id": f"id-of-{name}",
        "name": name,
        "state": MachineState.CALLED_HOME,
        "reason": None,
        "address": "10.0.0.3",
        "mac": None,
        "boot_id": None,
        "ssh_host_keys": (KEY,),
        "hardware": None,
        "created_at": NOW,
        "updated_at": NOW,
        "ready_at": None,
    }
    return Machine.model_validate(facts | changes)


def test_a_machine_has_its_variables(tmp_path: Path) -> None:
    """Address, user, key, pinned host keys and id; nothing else."""
    settings = Settings(home=tmp_path / "home", ssh_user="admin")
    hosts = yaml.safe_load(render([machine("node-1")], settings))["machines"]["hosts"]
    options = hosts["node-1"].pop("ansible_ssh_common_args")
    assert {
        "ansible_host": "10.0.0.3",
        "ansible_user": "admin",
        "ansible_host_key_checking": True,
        "ansible_ssh_private_key_file": str(tmp_path / "home/keys/operator_ed25519"),
        "muster_machine_id": "id-of-node-1",
    } == hosts["node-1"]
    assert "StrictHostKeyChecking=yes" in options
    assert "HostKeyAlias=id-of-node-1" in options
    assert str(tmp_path / "home/known_hosts/id-of-node-1") in options


@pytest.mark.parametrize(
    "changes",
    [
        {"state": MachineState.RETIRED},
        {"address": None},
        {"ssh_host_keys": None},
        {"ssh_host_keys": ()},
    ],
)
def test_machines_that_cannot_be_managed_are_left_out(
    changes: dict[str, object], tmp_path: Path
) -> None:
    """Retired, or never called home."""
    text = render([machine("node-1", **changes)], Settings(home=tmp_path))
    assert {"machines": {"hosts": {}}} == yaml.safe_load(text)


@given(st.permutations(["a", "b", "c", "d"]))
def test_order_does_not_matter(names: list[str]) -> None:
    """Equal machines make equal bytes."""
    settings = Settings(home=Path("/nowhere"))
    expected = render([machine(name) for name in sorted(names)], settings)
    assert expected == render([machine(name) for name in names], settings)


def test_remote_text_never_reaches_the_file(tmp_path: Path) -> None:
    """Hardware, reason and MAC may say what they like."""
    evil = "{{ lookup('pipe', 'id') }}"
    text = render(
        [machine("node-1", reason=evil, mac=evil, boot_id=evil, hardware={evil: evil})],
        Settings(home=tmp_path),
    )
    assert "lookup" not in text


def test_an_unchanged_view_is_not_written(tmp_path: Path) -> None:
    """The second refresh leaves content and time of the file alone."""
    settings = Settings(home=tmp_path)
    first = refresh(settings, [machine("b"), machine("a"), machine("c", address=None)])
    assert (True, ("a", "b")) == (first.changed, first.machines)
    before = first.path.stat()
    again = refresh(settings, [machine("a"), machine("b")])
    assert not again.changed
    assert (before.st_mtime_ns, before.st_ino) == (
        first.path.stat().st_mtime_ns,
        first.path.stat().st_ino,
    )
    assert refresh(settings, [machine("a")]).changed
    assert ["machines.yaml"] == [path.name for path in settings.inventory_dir.iterdir()]
