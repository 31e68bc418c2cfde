"""What a run's events amount to: which error, whether waiting can cure it, and the recap."""

import pytest

from fleet.errors import (
    DeadlineExceeded,
    HostKeysChanged,
    MusterError,
    PackagesLocked,
    PlaybookFailed,
    Unreachable,
)
from tasks.ansible_events import Event
from tasks.ansible_results import (
    End,
    HostCounts,
    PlaybookResult,
    TaskFailure,
    cause_of,
    error_of,
    merged,
    recap,
    result_of,
    transient_failures,
)


def failure(message: str, *, unreachable: bool = False, host: str = "node-1") -> TaskFailure:
    return TaskFailure(host=host, task="Do it", role=None, message=message, unreachable=unreachable)


def stats(**hosts: dict[str, int]) -> Event:
    return Event(kind="playbook_on_stats", stats={k.replace("_", "-"): v for k, v in hosts.items()})


@pytest.mark.parametrize(
    ("message", "unreachable", "kind"),
    [
        ("Failed to connect to the host via ssh: Connection timed out", True, Unreachable),
        ("Failed to connect to the host via ssh: No route to host", True, Unreachable),
        ("Connection closed by remote host", True, Unreachable),
        ("Failed to connect to the host via ssh: Host key verification failed.", True,
         HostKeysChanged),
        ("@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@", True, HostKeysChanged),
        ("No ED25519 host key is known for x and you have requested strict checking.", True,
         HostKeysChanged),
        ("root@10.0.0.3: Permission denied (publickey).", True, PlaybookFailed),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 123 (apt)",
         False, PackagesLocked),
        ("Failed to lock apt for exclusive operation: Failed to lock directory /var/lib/apt/lists/",
         False, PackagesLocked),
        ("E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another "
         "process using it?", False, PackagesLocked),
        ("E: Unable to locate package nothing", False, PlaybookFailed),
        ("Failed to lock the door", False, PlaybookFailed),
        ("Permission denied", False, PlaybookFailed),
    ],
)  # fmt: skip
def test_a_failure_has_its_kind(message: str, unreachable: bool, kind: type[MusterError]) -> None:
    """The message tells what waiting can cure from what a person must mend."""
    error = cause_of(failure(message, unreachable=unreachable))
    assert kind is type(error)
    assert "node-1" in error.detail
    assert error.remedy


def test_what_a_person_must_mend_outranks_what_waiting_cures() -> None:
    """With a failed role on one host and another unreachable, the role is the error."""
    result = PlaybookResult(
        failures=(
            failure("timed out", unreachable=True, host="node-1"),
            failure("broken", host="node-2"),
        ),
        end=End.FAILED,
    )
    error = error_of(result, "site.yaml")
    assert isinstance(error, PlaybookFailed)
    assert "node-2" in error.detail
    assert "1 more host failed" in error.detail
    assert ["node-1"] == [f.host for f in transient_failures(result)]


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (PlaybookResult(hosts={"node-1": HostCounts(ok=1)}), None, ""),
        (PlaybookResult(), PlaybookFailed, "matched none"),
        (PlaybookResult(end=End.TIMEOUT, duration=9), DeadlineExceeded, "after 9 s"),
        (PlaybookResult(end=End.KILLED, note="was killed."), PlaybookFailed, "was killed"),
        (PlaybookResult(end=End.FAILED, note="ERROR! bad\nYAML"), PlaybookFailed, "bad YAML"),
        (PlaybookResult(end=End.FAILED), PlaybookFailed, "no reason"),
    ],
)
def test_an_end_without_a_failed_task_has_its_error(
    result: PlaybookResult, kind: type[MusterError] | None, words: str
) -> None:
    """A run that did nothing, was stopped or never began is no success."""
    error = error_of(result, "site.yaml")
    assert (kind is None) == (error is None)
    if error is not None:
        assert kind is type(error)
        assert words in error.detail


def test_events_become_a_result() -> None:
    """Tasks are counted, hosts have their recap, and the failure names its step."""
    result = result_of(
        [
            Event(kind="playbook_on_task_start", task="Do it"),
            Event(kind="runner_on_failed", host="node-1", task="Do it", role="common", text="no"),
            Event(kind="runner_on_ok", host="node-2", task="Do it", changed=True),
            stats(node_1={"failed": 1}, node_2={"ok": 1, "changed": 1}),
        ],
        end=End.FAILED,
        duration=3.21,
    )
    assert 1 == result.tasks
    assert 1 == result.changed
    assert ("common : Do it", "no") == (result.failures[0].step, result.failures[0].message)
    assert "ok 1, changed 1, failed 1 in 3.2 s" == result.summary


def test_a_rescued_failure_is_none() -> None:
    """The recap counts it as rescued, so the host is well."""
    result = result_of(
        [
            Event(kind="runner_on_failed", host="node-1", task="Try", text="no"),
            stats(node_1={"ok": 2, "rescued": 1}),
        ],
        end=End.SUCCESSFUL,
        duration=1,
    )
    assert () == result.failures
    assert error_of(result, "site.yaml") is None


def test_a_killed_run_keeps_the_failures_it_had() -> None:
    """Without a recap, what failed counts."""
    result = result_of(
        [Event(kind="runner_on_failed", host="node-1", task="Try", text="no")],
        end=End.KILLED,
        duration=1,
    )
    assert ["node-1"] == [f.host for f in result.failures]


def test_last_words_of_ansible_are_kept_when_no_task_failed() -> None:
    """A playbook that cannot be read says why."""
    result = result_of(
        [Event(kind="verbose", text="[ERROR]: no such role")], end=End.FAILED, duration=1, note="x"
    )
    assert "[ERROR]: no such role" in result.note


def test_a_second_run_heals_the_hosts_it_ran_on() -> None:
    """Merged, only what still fails is left, and that decides the end."""
    first = PlaybookResult(
        hosts={"a": HostCounts(ok=1), "b": HostCounts(unreachable=1), "c": HostCounts(failed=1)},
        failures=(failure("gone", unreachable=True, host="b"), failure("broken", host="c")),
        end=End.FAILED,
        duration=2,
    )
    second = PlaybookResult(hosts={"b": HostCounts(ok=3)}, end=End.SUCCESSFUL, duration=1)
    both = merged(first, second)
    assert {"a": 1, "b": 3, "c": 0} == {host: counts.ok for host, counts in both.hosts.items()}
    assert ["c"] == [f.host for f in both.failures]
    assert (End.FAILED, 3) == (both.end, both.duration)
    healed = merged(first.model_copy(update={"failures": first.failures[:1]}), second)
    assert End.SUCCESSFUL == healed.end


def test_the_recap_is_a_table_with_the_failures_below() -> None:
    """Markdown in messages stays inert."""
    result = PlaybookResult(
        hosts={"node-1": HostCounts(ok=4, changed=2, failed=1)},
        failures=(failure("line one\n# two"),),
        end=End.FAILED,
        tasks=5,
        duration=1.25,
    )
    expected = """\
| machine | ok | changed | failed | unreachable | skipped |
|---|---:|---:|---:|---:|---:|
| node-1 | 4 | 2 | 1 | 0 | 0 |

failed, 5 tasks in 1.2 s

**node-1** at task **Do it**:

    line one
    # two
"""
    assert expected == recap(result)
