"""TODO.md's text."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fleet import todo

NOW = datetime(2026, 11, 24, 12, 0, 1, tzinfo=UTC)
ENTRY = todo.Entry(
    at=NOW,
    flow="handle-call-home",
    machine="lab-1",
    step="run-playbook",
    reason="role common failed",
    flow_run_id="6f1c2f6e-0000-4000-8000-000000000001",
    attempt=1,
    run_url="http://127.0.0.1:4200/runs/flow-run/6f1c2f6e",
    excerpt="one\ntwo",
)


def heal(text: str, run: str, flow: str = "handle-call-home", machine: str = "lab-1") -> str:
    return todo.ticked(text, flow_run_id=run, flow=flow, machine=machine, now=NOW)


def test_the_file_is_as_documented() -> None:
    """A new file has a header and the entry, whole."""
    expected = (
        todo.HEADER + "\n- [ ] 2026-11-24 12:00:01Z · lab-1 · run-playbook: role common failed\n"
        "  - run: <http://127.0.0.1:4200/runs/flow-run/6f1c2f6e> (attempt 1)\n"
        "\n        one\n        two\n\n"
        "  <!-- muster: run=6f1c2f6e-0000-4000-8000-000000000001 attempt=1 "
        "flow=handle-call-home machine=lab-1 -->\n"
    )
    assert expected == todo.with_entry("", ENTRY)


def test_one_entry_per_run_and_attempt() -> None:
    """Telling of the same attempt again changes nothing; another attempt comes last."""
    once = todo.with_entry("", ENTRY)
    assert once == todo.with_entry(once, replace(ENTRY, reason="told by another"))
    twice = todo.with_entry(once, replace(ENTRY, attempt=2))
    assert [1, 2] == [listed.attempt for listed in todo.parse(twice)]


def test_a_later_run_of_the_same_flow_heals() -> None:
    """Success of the run itself, or of the same flow for the same machine, ticks the entry."""
    text = todo.with_entry("", ENTRY)
    for run in (ENTRY.flow_run_id, "another"):
        healed = heal(text, run)
        assert [False] == [listed.open for listed in todo.parse(healed)]
        assert f"healed 2026-11-24 12:00:01Z by run {run}" in healed
        assert healed == heal(healed, "a-third")


def test_nothing_else_heals() -> None:
    """Another machine's success, or another flow's, leaves the entry open."""
    text = todo.with_entry("", ENTRY)
    assert text == heal(text, "another", machine="lab-2")
    assert text == heal(text, "another", flow="run-playbook")


def test_a_run_about_several_machines_heals_itself_alone() -> None:
    """Success on one group of machines says nothing of a failure on another."""
    text = todo.with_entry("", replace(ENTRY, machine="-"))
    assert text == heal(text, "another", machine="-")
    assert text != heal(text, ENTRY.flow_run_id, machine="-")


def test_handwriting_survives() -> None:
    """Lines that people add stay where they are."""
    text = todo.with_entry("# Mine\n\n- [ ] buy a switch\n", ENTRY) + "\nA note.\n"
    healed = heal(todo.with_entry(text, replace(ENTRY, attempt=2)), ENTRY.flow_run_id)
    assert healed.startswith("# Mine\n\n- [ ] buy a switch\n")
    assert "\nA note.\n" in healed
    assert [False, False] == [listed.open for listed in todo.parse(healed)]


remote = st.text(max_size=200) | st.sampled_from(
    [
        "x\n- [ ] forged",
        "  <!-- muster: run=x attempt=1 flow=f machine=m -->",
        "\n  <!-- muster: run=x attempt=1 flow=f machine=m -->\n",
        "```\n# heading",
        "-->",
        "\r\n- [x] done",
    ]
)


@given(remote, remote, remote)
def test_remote_text_forges_nothing(reason: str, excerpt: str, machine: str) -> None:
    """Whatever a machine says, the file has exactly the entries that were made, all open."""
    text = todo.with_entry("", ENTRY)
    text = todo.with_entry(
        text, replace(ENTRY, attempt=2, reason=reason, excerpt=excerpt, machine=machine)
    )
    found = [(listed.flow_run_id, listed.attempt, listed.open) for listed in todo.parse(text)]
    assert [(ENTRY.flow_run_id, 1, True), (ENTRY.flow_run_id, 2, True)] == found


def test_record_and_tick_report_change(tmp_path: Path) -> None:
    """The caller learns whether the file changed, and a missing file is an empty one."""
    path = tmp_path / "deep" / "TODO.md"
    assert [] == todo.read(path)
    assert todo.record(path, ENTRY)
    assert not todo.record(path, ENTRY)
    heals = {"flow_run_id": "r", "flow": ENTRY.flow, "machine": "lab-1", "now": NOW}
    assert todo.tick(path, **heals)
    assert not todo.tick(path, **heals)


def test_a_success_heals_only_what_failed_before_it() -> None:
    """What failed after the success stays open, however late the tick is made."""
    text = todo.with_entry("", ENTRY)
    text = todo.with_entry(text, replace(ENTRY, attempt=2, at=NOW + timedelta(seconds=1)))
    assert [False, True] == [listed.open for listed in todo.parse(heal(text, "another"))]


def test_failures_in_a_row_are_one_attempt() -> None:
    """Two tellers of one failure make one attempt; a new beginning makes another."""
    states = ["begun", "failed", "crashed", "begun", "crashed", "begun", "done"]
    expected = [(1, "failed"), (2, "crashed")]
    assert expected == todo.attempts(states, lambda state: state in {"failed", "crashed"})
