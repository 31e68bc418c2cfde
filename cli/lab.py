"""`./muster lab`: machines without hardware."""

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InvalidRequest
from fleet.settings import load_settings
from lab import machine, teardown
from lab.machine import LabMachine
from lab.packages import require_host
from lab.proxy_process import ensure_proxy
from lab.store import list_records

app = typer.Typer(no_args_is_help=True, help="Machines without hardware.")

Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Names of machines.")]
SomeNames = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME…]", help="Names of machines.")
]
All = Annotated[bool, typer.Option("--all", help="Every machine of this laboratory.")]


@app.command("list")
def list_machines(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Show the laboratory's machines: name, state, address, PID 1, namespace."""
    machines = machine.list_machines(load_settings())
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(found) for found in machines], indent=2))
    else:
        Console().print(_table(machines))


@app.command()
def boot(names: Names) -> None:
    """Start machines, made first where there are none, and wait for their sshd.

    They know nothing of this fleet: to enrol one, run in it the line that
    `./muster machine add` prints, or let `./muster up --lab N` do all of it.
    """
    settings, console = load_settings(), Console(stderr=True)
    require_host()
    ensure_proxy(settings)
    for name in names:
        _timed(
            console,
            f"booting {name}",
            lambda name=name: machine.boot(
                settings, name, progress=lambda step: console.print(f"  {step}", style="dim")
            ),
        )
    wanted = [found for found in machine.list_machines(settings) if found.name in names]
    Console().print(_table(wanted))


@app.command()
def stop(
    names: SomeNames = None,
    every: All = False,
    timeout: Annotated[float, typer.Option(help="Seconds until a machine is killed.")] = 30.0,
) -> None:
    """Shut machines down; their disks are kept.

    With the last one, the proxy and the network go too, unless `up` is using them.
    """
    settings, console = load_settings(), Console(stderr=True)
    require_host()
    for name in _chosen(names, every):
        _timed(console, f"stopping {name}", lambda name=name: machine.stop(settings, name, timeout))
    teardown.release_idle(settings)


@app.command()
def destroy(names: SomeNames = None, every: All = False) -> None:
    """End machines at once and remove their disks."""
    settings, console = load_settings(), Console(stderr=True)
    require_host()
    for name in _chosen(names, every):
        _timed(console, f"destroying {name}", lambda name=name: machine.destroy(settings, name))
    teardown.release_idle(settings)


@app.command()
def console(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A machine that runs.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND…]", help="Run this, not a shell.")
    ] = None,
) -> None:
    """Open a root shell in a machine, or run one command there (put `--` before it)."""
    require_host()
    enter = machine.console_command(load_settings(), name, command or ())
    raise typer.Exit(subprocess.run(enter, check=False).returncode)


def _chosen(names: list[str] | None, every: bool) -> list[str]:
    if bool(names) == every:
        raise InvalidRequest(
            "Neither machines nor --all were named, or both.",
            remedy="Name machines, or say --all.",
        )
    return names or [record.name for record in list_records(load_settings())]


def _timed(console: Console, what: str, action: Callable[[], object]) -> None:
    began = time.monotonic()
    with console.status(what):
        action()
    console.print(f"{what}: {time.monotonic() - began:.1f} s")


def _table(machines: list[LabMachine] | tuple[LabMachine, ...]) -> Table:
    table = Table("Name", "State", "Address", "PID 1", "Namespace")
    for found in machines:
        colour = "green" if found.state == "running" else "yellow"
        pid = str(found.leader_pid or "-")
        table.add_row(found.name, f"[{colour}]{found.state}[/]", found.address, pid, found.netns)
    return table
