"""What a playbook's events amount to: a result, an error or none, and a recap. Pure."""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from pydantic import Field

from fleet.errors import (
    DeadlineExceeded,
    HostKeysChanged,
    MusterError,
    PackagesLocked,
    PlaybookFailed,
    Unreachable,
)
from fleet.models import Frozen
from tasks.ansible_events import TEXT_LENGTH, Event, is_failure

_PACKAGES_LOCKED = re.compile(
    r"could not get lock|unable to (?:acquire|lock)\b.*\block|failed to lock apt"
    r"|is held by process|is another process using it",
    re.IGNORECASE | re.DOTALL,
)
_HOST_KEYS = re.compile(
    r"host key verification failed|remote host identification has changed"
    r"|no \S+ host key is known",
    re.IGNORECASE,
)
_REFUSED_LOGIN = re.compile(r"permission denied|too many authentication failures", re.IGNORECASE)


class End(StrEnum):
    """How ansible-playbook itself ended."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    TIMEOUT = "timeout"
    KILLED = "killed"


class HostCounts(Frozen):
    """The recap of one host, as Ansible counts."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0


class TaskFailure(Frozen):
    """A task that ended a host's play. `item` is the loop's item it failed at."""

    host: str
    task: str
    role: str | None
    message: str
    unreachable: bool

    @property
    def step(self) -> str:
        return f"{self.role} : {self.task}" if self.role else self.task


class PlaybookResult(Frozen):
    """What a playbook did. `note` holds Ansible's last words when no task failed; `duration` is in
    seconds; `tasks` is how many tasks began.
    """

    hosts: dict[str, HostCounts] = Field(default_factory=dict)
    failures: tuple[TaskFailure, ...] = ()
    end: End = End.SUCCESSFUL
    tasks: int = 0
    duration: float = 0.0
    note: str = ""

    @property
    def changed(self) -> int:
        return sum(counts.changed for counts in self.hosts.values())

    @property
    def summary(self) -> str:
        """One line of counts over all hosts."""
        hosts = self.hosts.values()
        counts = [f"{name} {sum(getattr(h, name) for h in hosts)}" for name in ("ok", "changed")]
        for name in ("failed", "unreachable"):
            total = sum(getattr(h, name) for h in hosts)
            counts += [f"{name} {total}"] if total else []
        return f"{', '.join(counts)} in {self.duration:.1f} s"


def result_of(
    events: Iterable[Event], *, end: End, duration: float, note: str = ""
) -> PlaybookResult:
    """The result that a run's events amount to.

    A failure that a rescue caught is none: the recap counts it as rescued.
    """
    failures: dict[str, TaskFailure] = {}
    stats: dict[str, dict[str, int]] = {}
    tasks = 0
    output: list[str] = []
    for event in events:
        tasks += event.kind == "playbook_on_task_start"
        if is_failure(event) and event.host:
            failures[event.host] = _failure(event)
        if event.stats is not None:
            stats = event.stats
        if event.kind in {"verbose", "error"}:
            output.append(event.text)
    hosts = {host: HostCounts(**counts) for host, counts in sorted(stats.items())}
    if hosts:
        failures = {h: f for h, f in failures.items() if not _is_well(hosts.get(h))}
    said = note or "" if failures else "\n".join([*output[-5:], note]).strip()
    return PlaybookResult(
        hosts=hosts,
        failures=tuple(failures[host] for host in sorted(failures)),
        end=end,
        tasks=tasks,
        duration=duration,
        note=said[-TEXT_LENGTH:],
    )


def _is_well(counts: HostCounts | None) -> bool:
    return counts is not None and not (counts.failed or counts.unreachable)


def _failure(event: Event) -> TaskFailure:
    where = f" (item {event.item})" if event.item else ""
    return TaskFailure(
        host=event.host or "-",
        task=event.task or "a task",
        role=event.role,
        message=f"{event.text or 'no message'}{where}",
        unreachable=event.kind == "runner_on_unreachable",
    )


def is_transient(failure: TaskFailure) -> bool:
    """Whether waiting can cure it: the host did not answer, or another program holds apt's lock."""
    return isinstance(cause_of(failure), (Unreachable, PackagesLocked))


def transient_failures(result: PlaybookResult) -> tuple[TaskFailure, ...]:
    """The failures whose hosts are worth another try."""
    if result.end is End.TIMEOUT:
        return ()
    return tuple(failure for failure in result.failures if is_transient(failure))


def error_of(result: PlaybookResult, playbook: str) -> MusterError | None:
    """The failure that a result amounts to, or None.

    What a person must mend outranks what waiting can cure.
    """
    if result.end is End.TIMEOUT:
        return DeadlineExceeded(
            f"{playbook} was stopped after {result.duration:.0f} s.",
            remedy="See the run's log for the task that took so long, or raise MUSTER_RUN_TIMEOUT.",
        )
    ranked = sorted(result.failures, key=is_transient)
    if ranked:
        error = cause_of(ranked[0])
        others = len(ranked) - 1
        if others:
            error.detail += f" ({others} more host{'s' * (others > 1)} failed.)"
        return error
    if result.end is not End.SUCCESSFUL:
        last = (result.note or "Ansible gave no reason").strip().splitlines()
        return PlaybookFailed(
            f"{playbook} ended without a result: {' '.join(last)[:500]}",
            remedy="See the run's log.",
        )
    if not result.hosts:
        return PlaybookFailed(
            f"{playbook} matched none of the machines.",
            remedy="Check `hosts:` of its plays against the groups of the inventory.",
        )
    return None


def cause_of(failure: TaskFailure) -> MusterError:
    """The error that a failed task amounts to."""
    message = " ".join(failure.message.split())
    if failure.unreachable and _HOST_KEYS.search(message):
        return HostKeysChanged(
            f"{failure.host} answers with other SSH host keys than it called home with: {message}",
            remedy="If it was reinstalled on purpose, enrol it afresh with a new token: "
            f"muster machine token {failure.host}. If not, another machine has its address.",
        )
    if failure.unreachable and _REFUSED_LOGIN.search(message):
        return PlaybookFailed(
            f"{failure.host} refuses the operator's key: {message}",
            remedy="Put the public key of Muster into its authorized_keys: muster key show",
        )
    if failure.unreachable:
        return Unreachable(
            f"{failure.host} did not answer at task {failure.step!r}: {message}",
            remedy="See that it is powered on and on the network, then retry the run.",
        )
    if _PACKAGES_LOCKED.search(message):
        return PackagesLocked(
            f"Another program on {failure.host} holds the package database "
            f"(task {failure.step!r}): {message}",
            remedy="Let it finish, then retry the run.",
        )
    return PlaybookFailed(
        f"Task {failure.step!r} failed on {failure.host}: {message}",
        remedy="Mend the cause, then retry the run.",
    )


def merged(first: PlaybookResult, second: PlaybookResult) -> PlaybookResult:
    """One result of two runs of a playbook, the second on some of the first one's hosts."""
    again = set(second.hosts) | {failure.host for failure in second.failures}
    kept = tuple(f for f in first.failures if f.host not in again)
    # What the first run failed for may be gone while hosts beyond the second run's still failed.
    end = second.end if second.end is not End.SUCCESSFUL else End.FAILED if kept else second.end
    return PlaybookResult(
        hosts=dict(sorted((first.hosts | second.hosts).items())),
        failures=tuple(sorted((*kept, *second.failures), key=lambda f: f.host)),
        end=end,
        tasks=max(first.tasks, second.tasks),
        duration=first.duration + second.duration,
        note=second.note,
    )


def recap(result: PlaybookResult) -> str:
    """The recap as a Markdown table, with the failed tasks below it."""
    columns = ("ok", "changed", "failed", "unreachable", "skipped")
    lines = [
        f"| machine | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
        *(
            f"| {host} | {' | '.join(str(getattr(counts, name)) for name in columns)} |"
            for host, counts in result.hosts.items()
        ),
        "",
        f"{result.end}, {result.tasks} tasks in {result.duration:.1f} s",
    ]
    return "\n".join([*lines, *failure_blocks(result.failures)]) + "\n"


def failure_blocks(failures: Sequence[TaskFailure]) -> list[str]:
    """The failed tasks as Markdown, messages as indented code."""
    lines: list[str] = []
    for failure in failures:
        lines += ["", f"**{_inline(failure.host)}** at task **{_inline(failure.step)}**:", ""]
        lines += [f"    {line}" for line in failure.message.splitlines()]
    return lines


def _inline(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
