"""What Ansible says while it works, cut down to what Muster needs. Pure."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fleet.models import Frozen

TEXT_LENGTH = 2000
_LONGEST_TEXT = 10 * TEXT_LENGTH
_ITEM_LENGTH = 200
_HALFWAY_TASKS = 20
_OUTPUT = frozenset({"verbose", "warning", "error", "deprecated", "system_warning"})
_STARTS = frozenset({"playbook_on_start", "playbook_on_play_start", "playbook_on_task_start"})
_RESULTS = {
    "runner_on_ok": "ok",
    "runner_on_failed": "FAILED",
    "runner_on_unreachable": "UNREACHABLE",
    "runner_on_skipped": "skipped",
    "runner_item_on_failed": "failed item",
    "runner_retry": "retrying",
}
_GENERIC = ("non-zero return code", "MODULE FAILURE", "One or more items failed", "All items")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Event(Frozen):
    """One event of a playbook, cut down to what a log, a recap and a decision need.

    `text` is a result's message or a line of Ansible's own output, at most TEXT_LENGTH long;
    `stats` is the recap by host, in the last event alone. Times are in seconds.
    """

    kind: str
    host: str | None = None
    task: str | None = None
    role: str | None = None
    play: str | None = None
    item: str | None = None
    changed: bool = False
    ignored: bool = False
    text: str = ""
    duration: float | None = None
    stats: dict[str, dict[str, int]] | None = None

    @property
    def step(self) -> str:
        """The task's name with its role's before it."""
        name = self.task or "a task"
        return f"{self.role} : {name}" if self.role else name


class EventReader:
    """Reads ansible-runner's events, with the secrets taken out of every text by `redact`."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact

    def read(self, event: Mapping[str, Any]) -> Event | None:
        """The part of an event that Muster needs; None for events without news."""
        kind = str(event.get("event", ""))
        data: Mapping[str, Any] = event.get("event_data") or {}
        if kind in _OUTPUT:
            text = self._clean(str(event.get("stdout") or ""))
            return Event(kind=kind, text=text) if text else None
        if kind == "playbook_on_stats":
            return Event(kind=kind, stats=_stats(data))
        if kind in _STARTS or kind.startswith("playbook_on_no_hosts"):
            return self._event(kind, data, {})
        if kind in _RESULTS:
            result = data.get("res")
            return self._event(kind, data, result if isinstance(result, Mapping) else {})
        return None

    def _event(self, kind: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> Event:
        speaks = kind != "runner_on_ok" or _is_debug(data)
        return Event(
            kind=kind,
            host=data.get("host"),
            task=self._clean(str(data.get("task") or data.get("name") or "")) or None,
            role=data.get("role"),
            play=self._clean(str(data.get("play") or "")) or None,
            item=self._item(result),
            changed=bool(result.get("changed")),
            ignored=bool(data.get("ignore_errors")),
            text=self._message(result) if speaks else "",
            duration=data.get("duration"),
        )

    def _item(self, result: Mapping[str, Any]) -> str | None:
        label = result.get("_ansible_item_label", result.get("item"))
        return None if label is None else self._clean(str(label))[:_ITEM_LENGTH]

    def _message(self, result: Mapping[str, Any]) -> str:
        """The most telling text of a task's result."""
        message = self._clean(_text(result.get("msg", "")))
        if not message or message.startswith(_GENERIC):
            detail = next(self._details(result), "")
            message = ": ".join(part for part in (message, detail) if part)
        return message[:TEXT_LENGTH] or self._clean(_text(result.get("skip_reason") or ""))

    def _details(self, result: Mapping[str, Any]) -> Iterator[str]:
        """What else a result says of its failure, the most telling first."""
        for name in ("stderr", "module_stderr", "stdout"):
            if result.get(name):
                yield self._clean(_text(result[name]))
        for item in result.get("results") or ():
            if isinstance(item, Mapping) and item.get("failed"):
                yield f"{self._item(item) or 'item'}: {self._message(item)}"

    def _clean(self, text: str) -> str:
        # Cut after the secrets are out, or half of one could stay at the edge.
        plain = _ANSI.sub("", text[:_LONGEST_TEXT]).replace("\r", "").strip()
        return self._redact(plain)[:TEXT_LENGTH]


def _is_debug(data: Mapping[str, Any]) -> bool:
    return str(data.get("task_action", "")).rpartition(".")[2] in {"debug", "assert", "fail"}


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "\n".join(str(part) for part in value)
    return str(value)


def _stats(data: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    ours = {
        "ok": "ok", "changed": "changed", "failures": "failed", "dark": "unreachable",
        "skipped": "skipped", "rescued": "rescued", "ignored": "ignored",
    }  # fmt: skip
    hosts: dict[str, dict[str, int]] = {}
    for theirs, name in ours.items():
        for host, count in (data.get(theirs) or {}).items():
            hosts.setdefault(host, {})[name] = count
    return hosts


def log_line(event: Event) -> str | None:
    """The line of the run's log for an event, or None for one that is not worth a line."""
    if event.kind in _RESULTS:
        word = "changed" if event.kind == "runner_on_ok" and event.changed else _RESULTS[event.kind]
        if event.ignored and event.kind == "runner_on_failed":
            word = "failed, ignored"
        took = f" ({event.duration:.1f} s)" if (event.duration or 0) >= 1 else ""
        item = f" [{event.item}]" if event.item else ""
        text = f": {event.text}" if event.text else ""
        return f"{word}: {event.host}: {event.step}{item}{took}{text}"
    if event.kind == "playbook_on_play_start":
        return f"play: {event.task or event.play or ''}"
    if event.kind.startswith("playbook_on_no_hosts"):
        return "no host matched this play"
    if event.kind in {"warning", "system_warning", "error"}:
        return f"ansible: {event.text}"
    return None


def progress(tasks: int, expected: int | None = None) -> float:
    """Percent of a run after so many tasks, 99 at most: the end alone makes it 100.

    `expected` is how many the last run had; without one the figure nears 99 ever more slowly.
    """
    share = tasks / expected if expected else 1.0 - 2.0 ** (-tasks / _HALFWAY_TASKS)
    return round(99.0 * min(1.0, share), 1)


def is_failure(event: Event) -> bool:
    """Whether the event ends a host's play, unless a rescue follows."""
    return event.kind == "runner_on_unreachable" or (
        event.kind == "runner_on_failed" and not event.ignored
    )
