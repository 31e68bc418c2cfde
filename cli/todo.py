"""`./muster todo`: the failures that want a person, from TODO.md."""

from typing import Annotated

import typer


def todo(
    everything: Annotated[bool, typer.Option("--all", help="Show healed entries too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print the open entries of TODO.md: failed runs that no later run has healed."""
    from dataclasses import asdict

    from cli.registry import settings
    from cli.render import print_json, print_table
    from fleet import todo as todo_file

    loaded = settings()
    entries = [e for e in todo_file.read(loaded.todo_file) if e.open or everything]
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        typer.echo(f"Nothing to do ({loaded.todo_file}).")
        return
    rows = [
        ("open" if e.open else "healed", e.title, loaded.flow_run_url(e.flow_run_id))
        for e in entries
    ]
    print_table(("state", "failure", "run"), rows)
    typer.echo(f"Excerpts of their logs: {loaded.todo_file}")
