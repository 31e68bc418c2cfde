"""The machines: add, list, look at, approve, retire."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from fleet import events, machines
from fleet.models import Event, Machine
from fleet.names import RFC1123_LABEL
from fleet.states import MachineState
from netboot import enrol
from netboot.access import ForOperators
from netboot.enrol import Enrolment
from netboot.problems import documented
from netboot.services import MachineReference, Use, utc_now

router = APIRouter(prefix="/api/v1/machines", tags=["machines"], dependencies=[ForOperators])

_ALWAYS = (401, 408, 413, 422, 429, 500)


class NewMachine(BaseModel):
    """A machine to be added: 1 to 63 of a-z, 0-9 and inner hyphens, and no reserved name."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "node-3"}]})

    # Judged by fleet.names, which says better than a pattern what is wrong.
    name: Annotated[
        str, Field(json_schema_extra={"pattern": f"^{RFC1123_LABEL.pattern}$", "maxLength": 63})
    ]


@router.get("", responses=documented(*_ALWAYS))
def list_machines(
    services: Use, state: MachineState | None = None, retired: bool = False
) -> list[Machine]:
    """All machines by name; retired ones only with `retired=true` or `state=retired`."""
    retired = retired or state is MachineState.RETIRED
    with services.registry.read() as session:
        found = machines.listing(session, retired=retired)
    return [machine for machine in found if state in (None, machine.state)]


@router.post("", status_code=201, responses=documented(400, 409, 503, *_ALWAYS))
def add_machine(body: NewMachine, services: Use) -> Enrolment:
    """Add a machine and make its token. The token is shown this once."""
    return enrol.enrol(services.registry, services.settings, body.name)


@router.get("/{machine}", responses=documented(404, *_ALWAYS))
def show_machine(machine: MachineReference, services: Use) -> Machine:
    """One machine."""
    with services.registry.read() as session:
        return machines.get(session, machine)


@router.get("/{machine}/timeline", responses=documented(404, *_ALWAYS))
def show_timeline(machine: MachineReference, services: Use) -> list[Event]:
    """What happened to a machine, oldest first."""
    with services.registry.read() as session:
        return events.timeline(session, machines.get(session, machine).id)


@router.post("/{machine}/approve", responses=documented(404, 409, *_ALWAYS))
def approve_machine(machine: MachineReference, services: Use) -> Machine:
    """Approve a machine to be installed and enrolled."""
    with services.registry.write() as session:
        found = machines.get(session, machine)
        return machines.transition(
            session, found.id, MachineState.APPROVED, now=utc_now(),
            message=f"{found.name} approved by an operator",
        )  # fmt: skip


@router.post("/{machine}/retire", responses=documented(404, 409, *_ALWAYS))
def retire_machine(machine: MachineReference, services: Use) -> Machine:
    """Retire a machine: its tokens are revoked, and its name is free again."""
    with services.registry.write() as session:
        return machines.retire(session, machine, now=utc_now())


@router.post("/{machine}/token", status_code=201, responses=documented(404, 409, 503, *_ALWAYS))
def renew_token(machine: MachineReference, services: Use) -> Enrolment:
    """Make a new token for a machine; its earlier ones are revoked."""
    return enrol.renew_token(services.registry, services.settings, machine)
