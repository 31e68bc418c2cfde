"""The command line: which commands there are, and how a failure is told.

The files of the commands import what they need when they run: `./muster machine list` shall not
wait for what only `up` needs.
"""

import sys
from typing import TYPE_CHECKING

import typer

from cli import bench, job, key, lab, machine, test, todo, up
from cli.failure import tell_failure
from fleet.errors import MusterError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

app = typer.Typer(
    name="muster",
    help="From a pile of old PCs to a cluster you can talk to.",
    epilog="Settings come from options, MUSTER_ variables or muster.toml: see docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("test", context_settings=test.CONTEXT)(test.test)
app.command("bench", context_settings=test.CONTEXT)(bench.bench)
app.add_typer(machine.app, name="machine")
app.add_typer(job.app, name="job")
app.command("todo")(todo.todo)
app.add_typer(lab.app, name="lab")
app.add_typer(key.app, name="key")


def main() -> None:
    """Run a command; a failure is a line of what happened and one of what to do next."""
    try:
        app(prog_name="muster")
    except MusterError as error:
        tell_failure(error.detail, error.remedy)
        sys.exit(1)
    except ValueError as error:
        problems = _settings_problems(error)
        if not problems:
            raise
        for problem in problems:
            tell_failure(problem, "docs/settings.md describes every setting.")
        sys.exit(1)


def _settings_problems(error: ValueError) -> list[str]:
    """What is wrong with which MUSTER_ variable, if the error is about the settings."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    if isinstance(error, ValidationError) and error.title == "Settings":
        return [_describe(problem) for problem in error.errors(include_url=False)]
    return [str(error)] if isinstance(error, SettingsError) else []


def _describe(problem: "ErrorDetails") -> str:
    """A problem with one setting, without its value, which may be a secret."""
    name = str(problem["loc"][0]).upper()
    return f"MUSTER_{name}: {problem['msg'].removeprefix('Value error, ')}"
