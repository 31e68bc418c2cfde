"""What the flows decide before they act."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.errors import InvalidRequest, MusterError, UnknownMachine
from fleet.redaction import Redactor
from fleet.runs import excerpt_of, machine_of, reason_of
from fleet.settings import CHECKOUT, Settings
from flows.failures import Attempt, FailedRun, entries_of
from flows.handle_call_home import handle_call_home
from flows.record_failure import record_failure
from flows.run_playbook import resolve_limit, resolve_playbook, run_playbook
from tests.unit.test_inventory_view import machine

NOW = datetime(2026, 1, 2, tzinfo=UTC)
FLEET = [machine("node-1"), machine("node-2"), machine("new", address=None, ssh_host_keys=None)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("node-1", ["node-1"]),
        ("node-2,node-1", ["node-1", "node-2"]),
        (" node-2 , node-2 ,", ["node-2"]),
        ("machines", ["node-1", "node-2"]),
    ],
)
def test_a_limit_names_machines(limit: str, expected: list[str]) -> None:
    """One, several, or all that can be managed, each once and by name."""
    assert expected == [m.name for m in resolve_limit(limit, FLEET)]


@pytest.mark.parametrize(
    ("limit", "kind"),
    [
        ("node-3", UnknownMachine),
        ("node-1,node-3", UnknownMachine),
        ("all", UnknownMachine),
        ("node-*", UnknownMachine),
        ("!node-1", UnknownMachine),
        ("node-1:node-2", UnknownMachine),
        ("@/etc/passwd", UnknownMachine),
        (",", UnknownMachine),
        ("new", InvalidRequest),
    ],
)
def test_what_names_no_machine_is_refused(limit: str, kind: type[MusterError]) -> None:
    """Ansible's patterns are none of ours, so a slip never widens a run."""
    with pytest.raises(kind):
        resolve_limit(limit, FLEET)


def test_a_fleet_without_machines_is_said() -> None:
    """No run is started on nothing."""
    with pytest.raises(InvalidRequest, match="No machine has called home"):
        resolve_limit("machines", FLEET[2:])


def test_a_playbook_lies_in_the_checkout(tmp_path: Path) -> None:
    """By its path there, or beside the playbook of the settings; the settings' by default."""
    own = tmp_path / "site.yaml"
    for path in (own, tmp_path / "other.yml", tmp_path / "note.txt"):
        path.write_text("[]")
    settings = Settings(home=tmp_path / "home", playbook=own)
    assert own == resolve_playbook(None, settings)
    assert CHECKOUT / "playbook.yaml" == resolve_playbook("playbook.yaml", settings)
    assert tmp_path / "other.yml" == resolve_playbook("other.yml", settings)
    for name in ("missing.yaml", "note.txt", "/etc/hostname", "../etc/passwd", "", "."):
        with pytest.raises(InvalidRequest):
            resolve_playbook(name, settings)


def test_a_playbook_outside_of_the_checkout_is_refused(tmp_path: Path) -> None:
    """Neither an absolute path nor a link leads out."""
    outside = tmp_path / "out" / "evil.yaml"
    room = tmp_path / "room"
    outside.parent.mkdir()
    room.mkdir()
    outside.write_text("[]")
    (room / "site.yaml").write_text("[]")
    (room / "link.yaml").symlink_to(outside)
    settings = Settings(home=tmp_path / "home", playbook=room / "site.yaml")
    for name in (str(outside), "link.yaml", "../out/evil.yaml"):
        with pytest.raises(InvalidRequest, match="outside"):
            resolve_playbook(name, settings)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Flow run encountered an exception: PlaybookFailed: Task 'x' failed.", "Task 'x' failed."),
        ("Flow run encountered an exception: ValueError: odd", "ValueError: odd"),
        ("Crash detected! Execution was cancelled", "Execution was cancelled"),
        ("first\nsecond", "first"),
        (None, "Crashed"),
        ("  ", "Crashed"),
    ],
)
def test_a_reason_is_one_line(message: str | None, expected: str) -> None:
    """Free of Prefect's and our class names; the state's name if there is no message."""
    assert expected == reason_of(message, "Crashed")


def test_a_traceback_is_cut_to_its_end() -> None:
    """The excerpt is for people: the last lines of the log without frames and hooks."""
    messages = [
        "play: Site",
        "failed\nTraceback (most recent call last):\n  File x\n    y\nValueError: odd",
        "Running hook 'record_failure' in response to entering state 'Failed'",
    ]
    assert ("play: Site", "failed ValueError: odd") == excerpt_of(messages)
    assert 20 == len(excerpt_of(f"line {n}" for n in range(100)))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], "-"),
        (["machine:a"], "a"),
        (["agent:write", "machine:a"], "a"),
        (["machine:a", "machine:b"], "-"),
    ],
)
def test_a_run_is_about_the_machine_that_its_tags_name(tags: list[str], expected: str) -> None:
    """One machine, or none in particular."""
    assert expected == machine_of(tags)


def test_each_failed_attempt_has_an_entry() -> None:
    """Step and excerpt belong to the last attempt, and secrets are taken out."""
    failed = FailedRun(
        id="run",
        flow="handle-call-home",
        machine="node-1",
        step="verify",
        job_id=None,
        is_child=False,
        is_failed=True,
        attempts=(
            Attempt(number=1, at=NOW, reason="the hush is out"),
            Attempt(number=2, at=NOW, reason="again"),
        ),
        excerpt=("said hush",),
    )
    first, second = entries_of(failed, Redactor(["hush"]), "http://url")
    assert (1, "handle-call-home", "the [redacted] is out", "") == (
        first.attempt, first.step, first.reason, first.excerpt,
    )  # fmt: skip
    assert (2, "verify", "again", "said [redacted]") == (
        second.attempt, second.step, second.reason, second.excerpt,
    )  # fmt: skip


def test_the_parameters_describe_themselves() -> None:
    """Tools are made of this schema: each parameter has a description and its bounds."""
    for flow in (run_playbook, handle_call_home, record_failure):
        properties = flow.parameters.properties
        assert all(shown.get("description") for shown in properties.values()), flow.name
    properties = run_playbook.parameters.properties
    assert {"limit", "playbook", "tags", "check"} == set(properties)
    assert 1 == properties["limit"]["minLength"]
