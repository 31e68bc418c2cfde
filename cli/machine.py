"""`./muster machine`: machines in the registry."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleet.models import Event, Machine
    from netboot.enrol import Enrolment

app = typer.Typer(help="Machines: list, show, add, token, retire.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(metavar="MACHINE", help="The machine's name or id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command("list")
def list_machines(
    as_json: AsJson = False,
    retired: Annotated[bool, typer.Option("--retired", help="Show retired machines too.")] = False,
) -> None:
    """List the machines: state, address, and for how long they have been so."""
    from cli.registry import registry
    from cli.render import print_json, print_table, since
    from fleet import machines

    with registry() as opened, opened.read() as session:
        found = machines.listing(session, retired=retired)
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("There are no machines yet: muster machine add NAME")
        return
    now = datetime.now(UTC)
    print_table(
        ("name", "state", "address", "since", "reason"),
        [(m.name, m.state, m.address, since(m.updated_at, now), m.reason) for m in found],
    )


@app.command("show")
def show_machine(reference: Reference, as_json: AsJson = False) -> None:
    """Show one machine with its timeline."""
    from cli.registry import registry
    from cli.render import print_json
    from fleet import events, machines

    with registry() as opened, opened.read() as session:
        machine = machines.get(session, reference)
        timeline = events.timeline(session, machine.id)
    if as_json:
        print_json(
            machine.model_dump(mode="json")
            | {"timeline": [event.model_dump(mode="json") for event in timeline]}
        )
        return
    _print_machine(machine)
    print_timeline(machine, timeline)


@app.command("add")
def add_machine(
    name: Annotated[str, typer.Argument(help="Its name: a hostname such as node-3.")],
    as_json: AsJson = False,
) -> None:
    """Add a machine and print the command to run on it, as root, so that it calls home.

    The token in it is good for one enrolment and is shown this once.
    """
    from cli.registry import registry, settings
    from netboot.enrol import enrol

    loaded = settings()
    with registry(loaded) as opened:
        _print_enrolment(enrol(opened, loaded, name), as_json)


@app.command("token")
def renew_machine_token(reference: Reference, as_json: AsJson = False) -> None:
    """Make a new token for a machine; the earlier ones are revoked."""
    from cli.registry import registry, settings
    from netboot.enrol import renew_token

    loaded = settings()
    with registry(loaded) as opened:
        _print_enrolment(renew_token(opened, loaded, reference), as_json)


@app.command("retire")
def retire_machine(reference: Reference, as_json: AsJson = False) -> None:
    """Retire a machine: its tokens are revoked and its name is free again."""
    from cli.registry import registry
    from cli.render import print_json
    from fleet import machines

    with registry() as opened, opened.write() as session:
        machine = machines.retire(session, reference, now=datetime.now(UTC))
    if as_json:
        print_json(machine)
    else:
        typer.echo(f"{machine.name} is retired.")


def print_timeline(machine: "Machine", timeline: "list[Event]") -> None:
    """A machine's events, each with the seconds since the first."""
    from cli.render import print_table

    if not timeline:
        return
    first = timeline[0].at
    rows = [
        (event.at, f"{(event.at - first).total_seconds():.1f} s", event.kind, event.message)
        for event in timeline
    ]
    print_table(("time", "after", "event", "what"), rows, title=f"Timeline of {machine.name}")


def _print_machine(machine: "Machine") -> None:
    from cli.render import print_table

    facts = machine.model_dump(exclude={"hardware", "ssh_host_keys"})
    hardware = machine.hardware or {}
    facts |= {name: value for name, value in hardware.items() if isinstance(value, str | int)}
    print_table(("machine", machine.name), [(name, value) for name, value in facts.items()])
    for key in machine.ssh_host_keys or ():
        typer.echo(f"host key  {key}")
    typer.echo()


def _print_enrolment(enrolment: "Enrolment", as_json: bool) -> None:
    from cli.render import print_json

    if as_json:
        print_json(enrolment)
        return
    typer.echo("Run this on the machine, as root (the token is shown this once):\n")
    typer.echo(enrolment.command)
