"""`./muster up`: the control plane, and a laboratory if you like, until Ctrl-C."""

from pathlib import Path
from typing import Annotated

import typer


def up(
    lab: Annotated[
        int, typer.Option(metavar="N", min=0, help="Boot N laboratory machines; needs root.")
    ] = 0,
    check: Annotated[
        bool,
        typer.Option("--check", help="Stop once all is up; exit code 0 only if it came up."),
    ] = False,
    home: Annotated[
        Path | None, typer.Option(help="Where state is kept (MUSTER_HOME).", show_default=False)
    ] = None,
    api_port: Annotated[
        int | None, typer.Option(help="Port of the API (MUSTER_API_PORT).", show_default=False)
    ] = None,
    prefect_port: Annotated[
        int | None, typer.Option(help="Port of Prefect (MUSTER_PREFECT_PORT).", show_default=False)
    ] = None,
) -> None:
    """Start API, Prefect server and worker, keep them running, and stop them all on Ctrl-C.

    With --lab N also N Debian machines without hardware: each boots, calls home and is
    configured; its timeline is printed once it is ready.
    """
    from cli.session import run
    from fleet.settings import load_settings

    settings = load_settings(home=home, api_port=api_port, prefect_port=prefect_port)
    raise typer.Exit(run(settings, machines=lab, check=check))
