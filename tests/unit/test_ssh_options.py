"""SSH: options, pins, proxies, and what a look at a machine amounts to."""

import json
import stat
from pathlib import Path

import pytest

from fleet.errors import InvalidRequest, SetupFailed, VerificationFailed
from fleet.settings import Settings
from tasks.ssh import ensure_operator_key, judge, pin_host_keys, proxy_command, ssh_options
from tests.unit.test_inventory_view import KEY, machine


def test_every_connection_is_pinned(tmp_path: Path) -> None:
    """Strict checking against the machine's own file, under its id, and nobody's agent or keys."""
    options = ssh_options(Settings(home=tmp_path, connect_timeout=7), machine("node-1"))
    assert options[::2] == ["-o"] * (len(options) // 2)
    assert {
        "StrictHostKeyChecking=yes",
        f'UserKnownHostsFile="{tmp_path}/known_hosts/id-of-node-1"',
        "GlobalKnownHostsFile=/dev/null",
        "HostKeyAlias=id-of-node-1",
        "CheckHostIP=no",
        "UpdateHostKeys=no",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "ConnectTimeout=7",
    } == set(options[1::2])


def test_a_home_with_odd_letters_is_quoted() -> None:
    """Blanks and percent signs mean nothing to ssh."""
    options = ssh_options(Settings(home=Path("/a b/100%")), machine("node-1"))
    assert 'UserKnownHostsFile="/a b/100%%/known_hosts/id-of-node-1"' in options


@pytest.mark.parametrize(
    ("proxies", "address", "expected"),
    [
        ((), "10.0.0.3", None),
        (("10.0.0.0/24=nc %h %p",), "10.0.0.3", "nc %h %p"),
        (("10.0.0.0/24=nc %h %p",), "10.0.1.3", None),
        (("10.0.0.0/24=nc %h %p",), "fd00::3", None),
        (("fd00::/8=nc -6 %h %p",), "fd00::3", "nc -6 %h %p"),
        (("10.0.0.0/24=first", "10.0.0.0/8=second"), "10.0.0.3", "first"),
        (("10.0.0.0/24=env A=b nc %h %p",), "10.0.0.3", "env A=b nc %h %p"),
    ],
)
def test_the_first_network_that_holds_the_address_counts(
    proxies: tuple[str, ...], address: str, expected: str | None
) -> None:
    """Addresses outside of every network are reached directly."""
    assert expected == proxy_command(proxies, address)


@pytest.mark.parametrize("entry", ["nonsense", "10.0.0.0/24", "10.0.0.0/24=", "10.0.0.3/24=nc"])
def test_a_damaged_proxy_entry_is_named(entry: str) -> None:
    """The error shows the entry's form."""
    with pytest.raises(SetupFailed, match="MUSTER_SSH_PROXIES"):
        proxy_command((entry,), "10.0.0.3")


def test_host_keys_are_pinned_under_the_machines_id(tmp_path: Path) -> None:
    """One line a key; the second pinning writes nothing; other keys replace the file."""
    settings = Settings(home=tmp_path)
    first = pin_host_keys(settings, machine("node-1"))
    assert first.changed
    assert f"id-of-node-1 {KEY}\n" == first.path.read_text()
    before = first.path.stat().st_ino
    assert not pin_host_keys(settings, machine("node-1", address="10.0.0.9")).changed
    assert before == first.path.stat().st_ino
    assert pin_host_keys(settings, machine("node-1", ssh_host_keys=(KEY, KEY))).changed


def test_a_machine_without_keys_cannot_be_pinned(tmp_path: Path) -> None:
    """There is no first use to trust."""
    with pytest.raises(InvalidRequest, match="node-1 has no SSH host keys"):
        pin_host_keys(Settings(home=tmp_path), machine("node-1", ssh_host_keys=None))


def test_the_operators_key_is_made_once(tmp_path: Path) -> None:
    """ed25519, for nobody else to read; a lost public half comes back."""
    settings = Settings(home=tmp_path)
    path = ensure_operator_key(settings)
    public = path.with_name(f"{path.name}.pub")
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    before = (path.read_bytes(), public.read_text().split()[:2])
    public.unlink()
    assert path == ensure_operator_key(settings)
    assert before == (path.read_bytes(), public.read_text().split()[:2])


def facts(**changes: str) -> str:
    return json.dumps(
        {"name": "node-1", "machine_id": "id-of-node-1", "roles": ["common"]} | changes
    )


def test_a_machine_as_it_should_be_is_verified() -> None:
    """Hostname and facts agree with the registry."""
    seen = judge(machine("node-1"), f"node-1\n{facts()}\n")
    assert ("node-1", "id-of-node-1", ("common",)) == (seen.hostname, seen.machine_id, seen.roles)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (f"debian\n{facts()}", "hostname 'debian'"),
        (f"node-1\n{facts(name='node-2')}", "name in its facts 'node-2'"),
        (f"node-1\n{facts(machine_id='other')}", "facts of machine 'other'"),
        ("node-1\n{not json", "damaged"),
        ("node-1\n[]", "damaged"),
        ("node-1\n", "damaged"),
        ("", "damaged"),
        ("x" * 100_000, "damaged"),
    ],
)
def test_a_machine_that_differs_is_refused(output: str, words: str) -> None:
    """The error says what differs and stays short, whatever the machine prints."""
    with pytest.raises(VerificationFailed, match=words) as caught:
        judge(machine("node-1"), output)
    assert len(str(caught.value)) < 400
