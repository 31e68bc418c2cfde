"""`./muster bench`: figures, printed with the description of the machine they come from."""

import subprocess
import sys

import typer

from fleet.settings import CHECKOUT


def bench(context: typer.Context) -> None:
    """Measure latency, throughput, playbook, memory and clone, or those that are named.

    It prints one table and judges nothing. Let the machine rest meanwhile; all together take a
    quarter of an hour, and `playbook` and `clone` need root.
    """
    done = subprocess.run([sys.executable, "-m", "bench", *context.args], cwd=CHECKOUT, check=False)
    raise typer.Exit(done.returncode)
