"""How commands print: tables for people, JSON for programs, and lines of progress."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_json(value: Any) -> None:
    """Print models, or lists and dicts of plain values, as indented JSON."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = ""
) -> None:
    """Print rows under their headings; texts are shown as they are, never as markup."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(as_text(cell) for cell in row))
    _console().print(table)


def as_text(value: object) -> Text:
    """A cell of a table: nothing as a dash, moments in the local zone, the rest as it is."""
    if value is None or value == "":
        return Text("–")
    if isinstance(value, Text):
        return value
    if isinstance(value, datetime):
        return Text(f"{value.astimezone():%F %T}")
    return Text(str(value))


def since(moment: datetime | None, now: datetime) -> str:
    """How long ago, roughly: `42 s`, `5 min`, `3 h`, `12 d`."""
    if moment is None:
        return "–"
    seconds = max(0, int((now - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class Reporter:
    """Lines of progress on standard output; on a terminal the step at work is shown live."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()

    def say(self, text: str, style: str = "") -> None:
        """A line of its own."""
        self.console.print(Text(text, style=style))

    @contextmanager
    def step(self, what: str) -> Iterator["Step"]:
        """A piece of work: `✓ what (1.2 s)` once it is done, `✗ …` when an exception ends it."""
        step = Step(self, what)
        began = time.monotonic()
        try:
            with self._shown(step):
                yield step
        except BaseException:
            self.say(f"✗ {what} ({time.monotonic() - began:.1f} s)", "red")
            raise
        sign, style = ("✗", "red") if step.has_failed else ("✓", "")
        self.say(f"{sign} {step.what} ({time.monotonic() - began:.1f} s)", style)

    @contextmanager
    def _shown(self, step: "Step") -> Iterator[None]:
        if not self.console.is_terminal:
            self.say(f"• {step.what}")
            yield
            return
        with self.console.status(Text(step.what)) as status:
            step.on_detail = lambda text: status.update(Text(text))
            yield


class Step:
    """A step at work; `what` may be reworded while it runs."""

    def __init__(self, reporter: Reporter, what: str) -> None:
        self.what = what
        self.has_failed = False
        self.on_detail: Callable[[str], None] = lambda _: None
        self._reporter = reporter
        self._last = ""

    def failed(self, what: str) -> None:
        """The step ends without success though nothing is raised."""
        self.what = what
        self.has_failed = True

    def detail(self, text: str) -> None:
        """Say where the step stands: live on a terminal, else a line whenever it changes."""
        if text == self._last:
            return
        self._last = text
        self.on_detail(f"{self.what}: {text}")
        if not self._reporter.console.is_terminal:
            self._reporter.say(f"  {text}")


def _console() -> Console:
    # Where the output is a file, a table must not be folded to a terminal's 80 columns.
    width = None if sys.stdout.isatty() else 200
    return Console(highlight=False, soft_wrap=False, width=width)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
