"""Every command explains itself."""

import pytest
from typer.testing import CliRunner

from cli.main import app

COMMANDS = (
    "", "up", "test", "todo", "machine", "machine list", "machine show", "machine add",
    "machine token", "machine retire", "job", "job list", "job show", "job log", "job retry",
    "job cancel", "lab", "lab list", "key", "key new",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_what_a_command_does(command: str):
    """Each command and each group has a help text."""
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert 0 == result.exit_code
    assert "Usage:" in result.output
