"""`./muster test`: everything that a checkout must pass."""

import typer

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def test(context: typer.Context) -> None:
    """Run lint, unit, integration and e2e tests, or those that are named: unit, e2e …

    What follows goes to pytest: ./muster test unit -k names. Tests that cannot run here are
    skipped and listed at the end; with CI=true such a skip is a failure.
    """
    from cli.stages import run

    raise typer.Exit(run(context.args))
