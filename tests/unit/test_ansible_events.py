"""What is kept of Ansible's events, and the lines of a log made of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.redaction import Redactor
from tasks.ansible_events import TEXT_LENGTH, Event, EventReader, is_failure, log_line, progress


def compact(event: dict[str, Any]) -> Event | None:
    return EventReader(str).read(event)


def raw(kind: str, **data: Any) -> dict[str, Any]:
    """An event as ansible-runner gives it."""
    return {"event": kind, "event_data": {"host": "node-1", "task": "Do it", **data}}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (raw("runner_on_ok", res={"changed": False}), "ok: node-1: Do it"),
        (raw("runner_on_ok", res={"changed": True}), "changed: node-1: Do it"),
        (
            raw("runner_on_ok", res={"changed": True}, role="common", duration=2.04),
            "changed: node-1: common : Do it (2.0 s)",
        ),
        (
            raw("runner_on_ok", res={"msg": "hello"}, task_action="ansible.builtin.debug"),
            "ok: node-1: Do it: hello",
        ),
        (raw("runner_on_ok", res={"msg": "noise"}, task_action="apt"), "ok: node-1: Do it"),
        (raw("runner_on_skipped", res={}), "skipped: node-1: Do it"),
        (raw("runner_on_failed", res={"msg": "no"}), "FAILED: node-1: Do it: no"),
        (
            raw("runner_on_failed", res={"msg": "no"}, ignore_errors=True),
            "failed, ignored: node-1: Do it: no",
        ),
        (
            raw("runner_on_failed", res={"msg": "non-zero return code", "stderr": "cat: no file"}),
            "FAILED: node-1: Do it: non-zero return code: cat: no file",
        ),
        (
            raw("runner_item_on_failed", res={"msg": "no", "item": "b"}),
            "failed item: node-1: Do it [b]: no",
        ),
        (
            raw(
                "runner_on_failed",
                res={
                    "msg": "One or more items failed",
                    "results": [{"item": "a"}, {"item": "b", "failed": True, "msg": "broken"}],
                },
            ),
            "FAILED: node-1: Do it: One or more items failed: b: broken",
        ),
        (
            raw("runner_on_unreachable", res={"msg": "Failed to connect"}),
            "UNREACHABLE: node-1: Do it: Failed to connect",
        ),
        (raw("playbook_on_play_start", task=None, name="Site"), "play: Site"),
        (raw("playbook_on_no_hosts_matched", task=None), "no host matched this play"),
        (
            {"event": "warning", "stdout": "\x1b[35m[WARNING]: old\x1b[0m"},
            "ansible: [WARNING]: old",
        ),
    ],
)
def test_a_result_becomes_a_line(event: dict[str, Any], line: str) -> None:
    """Each kind of result has its words, its step, and a message where one tells something."""
    told = compact(event)
    assert told is not None
    assert line == log_line(told)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "verbose", "stdout": ""},
        {"event": "runner_on_start", "event_data": {"host": "node-1"}},
        {"event": "playbook_on_notify", "event_data": {}},
        {},
    ],
)
def test_events_without_news_are_dropped(event: dict[str, Any]) -> None:
    """What nobody would read does not travel."""
    assert compact(event) is None


def test_a_censored_result_stays_censored() -> None:
    """`no_log` leaves nothing but Ansible's own note."""
    res = {"censored": "the output has been hidden", "changed": True}
    told = compact(raw("runner_on_failed", res=res))
    assert told == Event(kind="runner_on_failed", host="node-1", task="Do it", changed=True)


def test_only_failures_that_count_are_failures() -> None:
    """Ignored errors and failed items are none; unreachable is one."""
    kinds = [
        raw("runner_on_failed", res={}),
        raw("runner_on_unreachable", res={}),
        raw("runner_on_failed", res={}, ignore_errors=True),
        raw("runner_item_on_failed", res={}),
    ]
    told = [compact(event) for event in kinds]
    assert [True, True, False, False] == [is_failure(event) for event in told if event]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@given(
    kind=st.sampled_from(["runner_on_ok", "runner_on_failed", "runner_on_unreachable"]),
    message=json_values,
    results=st.lists(json_values, max_size=3),
    stderr=json_values,
)
def test_whatever_a_module_returns_fits(
    kind: str, message: Any, results: list[Any], stderr: Any
) -> None:
    """A result of any shape becomes one bounded event and survives its journey as JSON."""
    told = compact(raw(kind, res={"msg": message, "results": results, "stderr": stderr}))
    assert told is not None
    assert len(told.text) <= TEXT_LENGTH
    assert told == Event.model_validate_json(told.model_dump_json(exclude_defaults=True))
    assert log_line(told)


@given(st.integers(0, 100_000), st.none() | st.integers(1, 1000))
def test_progress_rises_and_never_arrives(tasks: int, expected: int | None) -> None:
    """More tasks, no less progress; the hundred is left to the end."""
    assert 0.0 <= progress(tasks, expected) <= progress(tasks + 1, expected) <= 99.0


def test_progress_follows_the_last_run() -> None:
    """Half of the tasks that the last run had are half of the way."""
    assert 49.5 == progress(15, 30)


def test_secrets_are_out_before_a_text_is_cut() -> None:
    """No half of a secret stays at the edge of a long message, a name or an item."""
    hush = "hush-" * 10
    reader = EventReader(Redactor([hush]))
    text = "x" * (TEXT_LENGTH - 20) + hush
    told = reader.read(raw("runner_on_failed", res={"msg": text, "item": hush}, play=hush))
    assert told is not None
    assert "hush" not in told.model_dump_json()
    named = reader.read(raw("playbook_on_task_start", task=f"With {hush}"))
    assert named is not None
    assert "With [redacted]" == named.task
