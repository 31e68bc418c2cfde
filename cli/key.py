"""`./muster key`: operators' keys for the API."""

from typing import Annotated

import typer

app = typer.Typer(help="Operators' keys for the API.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Operators' keys for the API."""


@app.command("new")
def new_key(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Make a key and its digest; Muster keeps the digest alone, where you put it."""
    import secrets

    from cli.render import print_json
    from fleet.enrolment import TOKEN_BYTES, digest

    made = secrets.token_urlsafe(TOKEN_BYTES)
    if as_json:
        print_json({"key": made, "sha256": digest(made)})
        return
    typer.echo(f"key (shown this once)  {made}\nits SHA-256            {digest(made)}\n")
    typer.echo("Put the digest, beside others with commas between, into MUSTER_API_KEYS or")
    typer.echo("api_keys in muster.toml, and restart the API. The key goes into requests:")
    typer.echo(f"  Authorization: Bearer {made}")
