"""TODO.md: one entry per failed run and attempt, newest last, ticked when a later attempt heals it.

The text is transformed purely (`with_entry`, `ticked`); `record` and `tick` read, transform and
replace the file under a lock, so that hooks, recorder and reconciler may all tell of one failure.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

HEADER = """\
# TODO

Failures that want a person, newest last. Muster adds entries and ticks those that a later run
healed; edit freely, but leave the `muster:` comments where they are.
"""
# What stands for the machine of a run about none or several.
SEVERAL = "-"
_LOCK_SECONDS = 30
_REASON_LENGTH = 300
_EXCERPT_LINES = 20
_EXCERPT_WIDTH = 200
_AT = "%F %TZ"
_BEGINS_WITH_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# Only a line that begins so is a mark: texts from outside are indented further or escaped.
_ENTRY = re.compile(
    r"^- \[(?P<tick>[ x])\] (?P<title>.*)\n(?P<body>(?:^(?!- \[).*\n?)*?)"
    r"^  <!-- muster: run=(?P<run>[\w-]+) attempt=(?P<attempt>\d+) "
    r"flow=(?P<flow>\S+) machine=(?P<machine>\S+) -->$",
    re.MULTILINE,
)

State = TypeVar("State")


@dataclass(frozen=True)
class Entry:
    """A failure. `excerpt` is redacted log text; `run_url` leads to the run in Prefect's UI.

    `flow` is the flow's name and `machine` the machine's (or the run's limit): a later success of
    the same flow for the same machine heals the entry.
    """

    at: datetime
    flow: str
    machine: str
    step: str
    reason: str
    flow_run_id: str
    attempt: int
    run_url: str
    excerpt: str


@dataclass(frozen=True)
class Listed:
    """An entry as found in the file."""

    open: bool
    title: str
    flow: str
    machine: str
    flow_run_id: str
    attempt: int


def record(path: Path, entry: Entry) -> bool:
    """Add the entry unless its run and attempt stand there; returns whether it was added."""
    return _edit(path, lambda text: with_entry(text, entry))


def tick(path: Path, *, flow_run_id: str, flow: str, machine: str, now: datetime) -> bool:
    """Tick the open entries that the success of run `flow_run_id` heals: its own earlier attempts,
    and those of the same flow for the same machine. `now` is when it succeeded: what failed after
    that stays open. Returns whether any was ticked.
    """
    return _edit(
        path,
        lambda text: ticked(text, flow_run_id=flow_run_id, flow=flow, machine=machine, now=now),
    )


def attempts(
    states: Sequence[State], is_failure: Callable[[State], bool]
) -> list[tuple[int, State]]:
    """The failed attempts among a run's states, oldest state first, numbered from 1. Pure.

    A failure right after another, without a new beginning between them, is the same attempt's.
    """
    before = (None, *states)
    failed = [
        state
        for earlier, state in zip(before, states, strict=False)
        if is_failure(state) and (earlier is None or not is_failure(earlier))
    ]
    return list(enumerate(failed, start=1))


def read(path: Path) -> list[Listed]:
    """The entries in the file's order; none if there is no file."""
    return parse(path.read_text(encoding="utf-8")) if path.exists() else []


def parse(text: str) -> list[Listed]:
    """The entries of a file's text, in its order."""
    return [_listed(found) for found in _ENTRY.finditer(text)]


def _listed(found: re.Match[str]) -> Listed:
    return Listed(
        open=found["tick"] == " ",
        title=found["title"],
        flow=found["flow"],
        machine=found["machine"],
        flow_run_id=found["run"],
        attempt=int(found["attempt"]),
    )


def with_entry(text: str, entry: Entry) -> str:
    """`text` with `entry` at its end, or unchanged if its run and attempt stand there."""
    marks = {(listed.flow_run_id, listed.attempt) for listed in parse(text)}
    if (entry.flow_run_id, entry.attempt) in marks:
        return text
    return f"{(text or HEADER).rstrip()}\n\n{render(entry)}"


def render(entry: Entry) -> str:
    lines = [
        f"- [ ] {entry.at.strftime(_AT)} · {_line(entry.machine)} · {_line(entry.step)}: "
        f"{_line(entry.reason)[:_REASON_LENGTH]}",
        f"  - run: <{entry.run_url}> (attempt {entry.attempt})",
    ]
    excerpt = [_line(line)[:_EXCERPT_WIDTH] for line in entry.excerpt.splitlines() if line.strip()]
    if excerpt:
        lines += ["", *(f"        {line}" for line in excerpt[-_EXCERPT_LINES:]), ""]
    mark = (
        f"run={entry.flow_run_id} attempt={entry.attempt} "
        f"flow={_word(entry.flow)} machine={_word(entry.machine)}"
    )
    lines.append(f"  <!-- muster: {mark} -->")
    return "\n".join(lines) + "\n"


def heals(*, flow_run_id: str, flow: str, machine: str, failed: Listed) -> bool:
    """Whether the success of a run heals a failed one: its own earlier attempt, or the same flow's
    for the same machine. A run about several machines heals only itself.
    """
    if failed.flow_run_id == flow_run_id:
        return True
    return machine != SEVERAL and (_word(flow), _word(machine)) == (failed.flow, failed.machine)


def ticked(text: str, *, flow_run_id: str, flow: str, machine: str, now: datetime) -> str:
    """`text` with the entries that the run heals ticked, each saying by which run and when."""
    at = now.strftime(_AT)

    def heal(found: re.Match[str]) -> str:
        failed = _listed(found)
        matches = heals(flow_run_id=flow_run_id, flow=flow, machine=machine, failed=failed)
        failed_at = _BEGINS_WITH_TIME.match(found["title"])
        is_newer = failed_at is not None and failed_at[0] > at
        if not failed.open or is_newer or not matches:
            return found[0]
        head, _, mark = found[0].rpartition("\n")
        return f"- [x]{head[5:]}\n  - healed {at} by run {flow_run_id}\n{mark}"

    return _ENTRY.sub(heal, text)


def _word(text: str) -> str:
    """A word for the mark, free of white space."""
    return re.sub(r"\s+", "", _line(text)) or SEVERAL


def _line(text: str) -> str:
    """One line of inert Markdown: no control characters, no comment or code marks."""
    flat = _CONTROL.sub(" ", text.replace("\n", " ").replace("\t", " "))
    return flat.replace("`", "'").replace("<!--", "<! --").replace("-->", "-- >").strip()


def _edit(path: Path, change: Callable[[str], str]) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = change(before)
        if after == before:
            return False
        _replace(path, after)
        return True


def _replace(path: Path, text: str) -> None:
    """Write a whole new file and rename it over the old one, so that no crash leaves half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
