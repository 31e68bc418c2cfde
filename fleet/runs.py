"""What Muster makes of a flow run's tags, messages and log, wherever it is told of one. Pure.

The flows' hooks, the recorder and the reconciler tell of the same failures; what they say must be
the same.
"""

import re
from collections.abc import Iterable, Sequence

from fleet import errors
from fleet.todo import SEVERAL

MACHINE_TAG = "machine:"
# The recorder's own failures would make an entry about making an entry.
NOT_RECORDED = frozenset({"record-failure"})
EXCERPT_LINES = 20

_PREFIX = re.compile(r"^(Flow run encountered an exception|Crash detected!)[:.]?\s*")
# The class names of our errors say nothing that their words do not.
_OUR_ERROR = re.compile(
    rf"^(?:{'|'.join(name for name, kind in vars(errors).items() if isinstance(kind, type))}): "
)


def machine_of(tags: Sequence[str]) -> str:
    """The machine that a run's tags name, or `-` if they name none or several."""
    named = [tag.removeprefix(MACHINE_TAG) for tag in tags if tag.startswith(MACHINE_TAG)]
    return named[0] if len(named) == 1 else SEVERAL


def reason_of(message: str | None, name: str) -> str:
    """One line that says why a run is in the state called `name`, from the state's message."""
    lines = _PREFIX.sub("", (message or "").strip()).splitlines()
    return _OUR_ERROR.sub("", lines[0]) if lines else name


def excerpt_of(messages: Iterable[str]) -> tuple[str, ...]:
    """The last lines of a log, tracebacks cut to what they end with."""
    lines: list[str] = []
    for message in messages:
        if message.startswith("Running hook"):
            continue
        head, traceback, rest = message.partition("Traceback (most recent call last)")
        text = f"{head.strip()} {rest.strip().splitlines()[-1]}" if traceback else message
        lines += text.splitlines()
    return tuple(lines[-EXCERPT_LINES:])
