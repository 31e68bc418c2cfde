"""Enrol a machine: its row, its token, and the line to run on it.

The API and the command line both come here, so `POST /api/v1/machines` and `muster machine add`
give the same answer.
"""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from fleet import enrolment, machines
from fleet.errors import IllegalTransition
from fleet.registry import Registry
from fleet.settings import Settings
from fleet.states import MachineState
from netboot.first_boot import install_command, machines_url


class Enrolment(BaseModel):
    """`token` is shown this once and kept nowhere; `command` is run as root on the machine."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "machine_id": "0c3a8f5e-58a5-4a9f-8f0e-6f2f3f3a7b42",
                    "token": "(43 letters, digits, - and _)",
                    "command": "curl -fsS http://10.0.0.1:8100/first-boot/install.sh "
                    "| MUSTER_TOKEN=(the token) sh",
                }
            ]
        },
    )

    machine_id: str
    token: str
    command: str


def enrol(registry: Registry, settings: Settings, name: str) -> Enrolment:
    """Add a machine called `name`. Raises InvalidName, NameTaken, SetupFailed (no usable URL)."""
    url = machines_url(settings)
    now = datetime.now(UTC)
    with registry.write() as session:
        machine = machines.add(session, name, now=now)
        token = enrolment.mint(session, machine, now=now, life=settings.token_life)
    return Enrolment(machine_id=machine.id, token=token, command=install_command(url, token))


def renew_token(registry: Registry, settings: Settings, reference: str) -> Enrolment:
    """A new token for a machine, by id or name; its earlier ones are revoked.

    Raises UnknownMachine, IllegalTransition (retired), SetupFailed (no usable URL).
    """
    url = machines_url(settings)
    now = datetime.now(UTC)
    with registry.write() as session:
        machine = machines.get(session, reference)
        if machine.state is MachineState.RETIRED:
            raise IllegalTransition(
                f"Machine {machine.name} is retired and cannot be enrolled.",
                remedy="This state is final; its name is free for a new machine.",
            )
        token = enrolment.mint(session, machine, now=now, life=settings.token_life)
    return Enrolment(machine_id=machine.id, token=token, command=install_command(url, token))
